"""Where points become durable before any sink sees them."""
