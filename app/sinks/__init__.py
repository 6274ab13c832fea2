"""Where points go: InfluxDB, the embedded store, and what they refused."""
