"""Tests without sockets or disks."""
