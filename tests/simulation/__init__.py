"""The whole service in virtual time, between a simulated Home Assistant and a simulated database.

`docs/PROOF.md` describes it. `python -m tests.simulation` runs it.
"""
