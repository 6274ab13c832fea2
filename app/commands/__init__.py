"""What `python -m app` can do beside running the service."""
