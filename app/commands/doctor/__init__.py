"""`python -m app doctor`: checks everything the service needs, and explains what to fix.

It may run while the service runs: it takes no lock and touches none of its files. `command.py`
runs the checks of `app/doctor` and of this machine (`machine.py`) and prints the result.
"""
