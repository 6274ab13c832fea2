"""Health of the service as sensors in Home Assistant, and a notification while data is at risk."""
