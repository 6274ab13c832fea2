"""Tests against real dependencies."""
