"""Tests of one package with real sockets and files."""
