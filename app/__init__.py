"""Every state change of Home Assistant, written durably to InfluxDB."""

__version__ = "0.1.0"
