"""What was missed, and how it is read back from Home Assistant's recorder."""
