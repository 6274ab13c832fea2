"""Tests: sentences about the service."""
