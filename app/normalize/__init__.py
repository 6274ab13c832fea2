"""From Home Assistant's messages to enriched changes; pure functions."""
