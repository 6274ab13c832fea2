"""When Home Assistant was restarted, as far as logbook, states and rows show it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from app.model import Lifecycle, Times
from app.normalize.restarts import Search, Written, first_write_ns, searches

SECOND = 1_000_000_000
SPAN = Times(0, 2_000 * SECOND)


def wrote(
    at_s: float,
    entity_id: str = "sensor.a",
    *,
    changed_s: float | None = None,
    repeats: bool = False,
) -> Written:
    """Return a row."""
    return Written(
        time_ns=round(at_s * SECOND),
        changed_ns=round((at_s if changed_s is None else changed_s) * SECOND),
        entity_id=entity_id,
        repeats=repeats,
    )


def searched(
    *, stopped: Sequence[int] = (), started: Sequence[int] = (), oldest_state: int | None = None
) -> list[tuple[int, int, bool]]:
    """Return the bounds of each search in seconds, and whether it is certain."""
    lifecycle = Lifecycle([at * SECOND for at in stopped], [at * SECOND for at in started])
    oldest_state_ns = None if oldest_state is None else oldest_state * SECOND
    return [
        (search.times.oldest_ns // SECOND, search.times.newest_ns // SECOND, search.is_certain)
        for search in searches(SPAN, lifecycle=lifecycle, oldest_state_ns=oldest_state_ns)
    ]


@pytest.mark.parametrize(
    ("stopped", "started", "oldest_state", "expected"),
    [
        ([], [], None, []),
        ([], [], -5, []),  # a state from before the span: it was not restarted in it
        ([], [], 2_500, []),
        ([900], [940], 920, [(900, 920, True)]),
        ([900], [940], None, [(900, 940, True)]),
        ([], [940], 920, [(340, 920, True)]),  # killed
        ([], [], 920, [(320, 920, False)]),  # without a logbook
        # perhaps begun before the span: its first states would seem to be from before it
        ([], [], 300, []),
        ([], [300], None, []),
        ([], [300, 940], None, [(340, 940, True)]),
        ([], [600], None, [(0, 600, True)]),
        ([100, 900], [140, 940], 920, [(100, 140, True), (900, 920, True)]),
        ([100], [140, 400], 390, [(100, 140, True), (140, 390, True)]),
        ([100, 900], [140], 920, [(100, 140, True), (900, 920, False)]),  # not yet started
        # stopped again before it had started
        ([100, 200], [240], 220, [(100, 200, True), (200, 220, True)]),
        ([100, 200], [], 220, [(100, 200, True), (200, 220, False)]),
    ],
)
def test_a_restart_is_searched_between_its_stop_and_its_oldest_state(
    stopped: list[int],
    started: list[int],
    oldest_state: int | None,
    expected: list[tuple[int, int, bool]],
) -> None:
    """And at most ten minutes before it when nobody recorded the stop."""
    assert searched(stopped=stopped, started=started, oldest_state=oldest_state) == expected


CERTAIN = Search(Times(100 * SECOND, 200 * SECOND), is_certain=True)
UNCERTAIN = Search(Times(100 * SECOND, 200 * SECOND), is_certain=False)


def found(search: Search, *rows: Written) -> float | None:
    """Return the moment in seconds."""
    first_ns = first_write_ns(search, rows)
    return None if first_ns is None else first_ns / SECOND


def test_the_first_row_after_the_silence_is_the_first_after_the_restart() -> None:
    """While Home Assistant stops and starts nothing is written."""
    rows = [wrote(101), wrote(101.5), wrote(120), wrote(120.1, "zone.home", repeats=True)]

    assert found(CERTAIN, *rows) == 120


def test_the_first_state_that_repeats_bounds_the_search() -> None:
    """A start may have silences as well, as while it waits for a slow integration."""
    rows = [wrote(101), wrote(110, "zone.home", repeats=True), wrote(150), wrote(199)]

    assert found(CERTAIN, *rows) == 110


def test_a_row_before_an_older_state_is_not_the_first_after_a_restart() -> None:
    """An entity that kept its `last_changed` has not lost its state."""
    rows = [
        wrote(101),
        wrote(110),
        wrote(111, "light.b", changed_s=105),
        wrote(130),
        wrote(130.1, "zone.home", repeats=True),
    ]

    assert found(CERTAIN, *rows) == 130


def test_first_states_of_the_start_before_do_not_bound_the_search() -> None:
    """Home Assistant still writes some after it has started, and may be killed soon after."""
    rows = [
        wrote(100.1, "zone.home", repeats=True),
        wrote(101),
        wrote(102),
        wrote(103),
        wrote(120),
        wrote(120.1, "sun.sun", repeats=True),
    ]

    assert found(CERTAIN, *rows) == 120


def test_first_states_of_the_start_before_are_no_sign_of_another_restart() -> None:
    """All current states may be young because they changed soon after the start."""
    rows = [wrote(100.1 + n / 10, f"zone.z{n}", repeats=True) for n in range(3)]

    assert found(UNCERTAIN, *rows, *[wrote(101 + n) for n in range(99)]) is None


def test_a_state_that_began_in_the_silence_is_the_first_after_the_start() -> None:
    """Home Assistant sets some states before its recorder listens."""
    rows = [
        wrote(101),
        wrote(101.1, "light.b", changed_s=100.5),
        wrote(160),
        wrote(161, "person.owner", changed_s=155),
    ]

    assert found(CERTAIN, *rows) == 155


def test_the_oldest_current_state_may_be_older_than_every_row_after_the_start() -> None:
    """The rows up to it were all written before Home Assistant was killed."""
    search = Search(Times(100 * SECOND, 150 * SECOND), is_certain=True, state_ns=150 * SECOND)
    rows = [wrote(101), wrote(104), wrote(104.1, "light.b", changed_s=103.5)]

    assert found(search, *rows) == 150


def test_an_entity_that_always_repeats_its_state_is_no_sign_of_a_restart() -> None:
    """`force_update` writes every value again."""
    forced = [wrote(at, "sensor.forced", repeats=True) for at in (102, 103, 104, 150)]

    assert found(CERTAIN, *forced, wrote(150.1, "zone.home", repeats=True)) == 150


def test_without_a_silence_a_restart_is_after_the_longest_pause() -> None:
    """Whatever the machine."""
    assert found(CERTAIN, *[wrote(at) for at in (100.5, 101, 102.5, 103)]) == 102.5


def test_without_rows_a_restart_is_at_the_end_of_the_search() -> None:
    """An entity that had a state before and has one later was written anew."""
    assert found(CERTAIN) == 200


@pytest.mark.parametrize(("repeating", "expected"), [(0, None), (1, None), (2, 150)])
def test_without_a_logbook_several_entities_have_to_repeat_their_state(
    repeating: int, expected: float | None
) -> None:
    """All states may be young because all entities change often."""
    rows = [wrote(at) for at in (101, 102, 103, 150)]
    rows += [wrote(150.1 + n, f"zone.z{n}", repeats=True) for n in range(repeating)]

    assert found(UNCERTAIN, *rows) == expected
