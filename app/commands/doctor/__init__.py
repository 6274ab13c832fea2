"""`python -m app doctor`: checks everything the service needs, and explains what to fix.

It may run while the service runs: it takes no lock and touches none of its files. `checks.py`
decides what a reading means; `machine.py`, `home_assistant.py` and `database.py` take the
readings; `command.py` runs them and prints the result.
"""
