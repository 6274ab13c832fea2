"""InfluxDB 1, 2 and 3, and VictoriaMetrics."""
