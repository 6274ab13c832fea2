"""The set-up in the browser: finds Home Assistant and databases, tests them, and saves a choice."""
