"""Hand-written neighbors that speak real protocols."""
