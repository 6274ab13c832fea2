"""What every package uses: logs, metrics, SQLite, retries, errors, the network."""
