"""Checks of Home Assistant and the database, each with its sentence: for the doctor and the set-up.

`checks.py` decides what a reading means; `home_assistant.py` and `database.py` take the readings.
"""
