"""Where events come from: Home Assistant's WebSocket API."""
