"""What Home Assistant knows of entities, devices and areas."""
