"""Tests against real neighbors."""
