"""Worlds that failed once, each with the bug of the service that it found.

A plan is a seed with its actions, as a failed run writes it, so that it stays the same when faults
are added.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.simulation.test_simulation import simulate

KEPT = Path(__file__).parent / "kept"
pytestmark = pytest.mark.timeout(300)
BUGS = {
    "clock_set_forward": "After the wall clock was set forward, health said for up to half an hour"
    " that the registries were out of date.",
    "excluded_for_a_while": "After the filter had excluded an entity for a while, its first change"
    " in a gap had the previous state from before that time, or none.",
    "interrupted_start": "First states of a start of Home Assistant that was stopped before it was"
    " complete were read back with a previous state.",
    "named_while_unavailable": "An entity that was removed in a gap lost its class and unit when"
    " only an unavailable state had named them in the ten minutes before.",
    "purged_before": "Rows that followed purged ones were read back with the state from before the"
    " gap as their previous state.",
    "recalled_states": "The newest change before a crash was recalled from the journal and not"
    " saved, so after a second restart a gap began with the state before it.",
    "unknown_previous_state": "A start of Home Assistant that was complete ten minutes before a gap"
    " was searched only from its end on, so the first change of an entity had no previous state.",
}


def test_every_kept_plan_has_a_sentence() -> None:
    """And every sentence a plan."""
    assert {path.stem for path in KEPT.glob("*.json")} == set(BUGS)


def test_every_world_that_failed_once_passes() -> None:
    """BUGS says what went wrong in each; the trace of each is its own."""
    run = simulate("--plan", *(str(KEPT / f"{name}.json") for name in BUGS))

    traces = set(re.findall(r"trace (\w+)", run.stdout))

    assert run.returncode == 0, run.stdout[-5000:]
    assert len(traces) == len(BUGS)
