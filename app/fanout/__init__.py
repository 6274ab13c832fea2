"""Live changes for whoever watches now."""
