"""Encodes changes as line protocol."""
