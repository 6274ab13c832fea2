"""The whole service at the promised rate: every event reaches the database."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.end_to_end import Load, measure


@pytest.mark.parametrize("coalesced", [True, False], ids=["coalesced", "one event per frame"])
async def test_ten_thousand_events_a_second_are_sustained(
    tmp_path: Path, *, coalesced: bool
) -> None:
    """Every event is in the database exactly once, and Home Assistant never disconnects.

    Only the benchmarks measure speed.
    """
    load = Load(
        seconds=5,
        coalesced=coalesced,
        watchers=0,
        check=True,
        # On a busy machine events may be late, but not lost.
        patient=True,
        max_pending_points=100_000,
    )

    outcome = await measure(load, tmp_path)

    assert (outcome.events, 0, 0, 0) == (
        outcome.written,
        outcome.missing,
        outcome.repeated,
        outcome.disconnects,
    )
