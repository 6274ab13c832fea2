"""From changes to line-protocol bytes; pure functions."""
