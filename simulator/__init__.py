"""The one fake Home Assistant, and a simulated home played through it."""
