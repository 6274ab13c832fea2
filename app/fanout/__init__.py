"""Live changes for the subscribers of /ws."""
