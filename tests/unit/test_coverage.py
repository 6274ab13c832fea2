"""Coverage: when there is a gap, how far it reaches, and what has to be saved of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.backfill.coverage import Coverage, Covered
from app.model import MAX_SECONDS, Gap, Times

SECOND = 1_000_000_000
START = 1_795_000_000
"""Home Assistant's clock and ours, in seconds, when a test begins."""


class Clock:
    """Our own clock, which a test sets."""

    def __init__(self) -> None:
        self.now = float(START)

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Our clock."""
    return Clock()


def at(seconds: float) -> int:
    """Return nanoseconds, so many seconds after the start."""
    return (START * SECOND) + int(seconds * SECOND)


def span(oldest: float, newest: float) -> Times:
    """Return a span, in seconds after the start."""
    return Times(at(oldest), at(newest))


def began(coverage: Coverage, *, clock: Clock | None = None, reason: str = "restart") -> Gap | None:
    """Begin a span."""
    return coverage.connected(reason=reason)  # type: ignore[arg-type]  # one of two words


def bound(coverage: Coverage, oldest: float, newest: float, *, reach_s: float = 36_000) -> None:
    """List Home Assistant's states."""
    coverage.bound(oldest_ns=at(oldest), newest_ns=at(newest), reach_ns=int(reach_s * SECOND))


def committed(coverage: Coverage, oldest: float, newest: float, *, first: int = 1) -> None:
    """Receive points, and have a transaction save them."""
    coverage.received(span(oldest, newest))
    coverage.mark_saved(
        coverage.changes_to_save(span(oldest, newest), received_at=START + oldest, first=first)
    )


def streamed(coverage: Coverage, oldest: float, newest: float, *, reason: str = "restart") -> None:
    """Begin a span and commit its first points."""
    began(coverage, reason=reason)
    committed(coverage, oldest, newest)


def bounds(gap: Gap) -> tuple[float, float]:
    """Return seconds after the start."""
    return (gap.start_ns - at(0)) / SECOND, (gap.end_ns - at(0)) / SECOND


def restarted(coverage: Coverage, clock: Clock, **options: bool) -> Coverage:
    """Return what a new process makes of what was saved."""
    fresh = Coverage(clock=clock, **options)
    fresh.open(coverage.covered, coverage.gaps())
    return fresh


# The bounds of a gap are Home Assistant's own times


def test_the_first_connection_of_a_journal_opens_no_gap(clock: Clock) -> None:
    """The journal covers from Home Assistant's newest state on, or from the first event."""
    coverage = Coverage(clock=clock)

    assert began(coverage) is None
    assert coverage.is_unbounded
    bound(coverage, -1000, 5)

    assert coverage.covered == Covered(at(5), at(5), START)
    assert coverage.gaps() == []
    assert not coverage.is_unbounded


def test_a_gap_ends_with_the_first_event_of_the_new_connection(clock: Clock) -> None:
    """What was missed is older than that. Our own clock is a year wrong."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 1, 10)

    coverage = restarted(coverage, clock)
    clock.now -= 366 * 86_400
    gap = began(coverage)
    assert gap is not None
    assert (bounds(gap), gap.end_known) == ((10, 10), False)
    committed(coverage, 62, 70)
    coverage = restarted(coverage, clock)
    streamed(coverage, 121, 121)

    assert [bounds(gap) for gap in coverage.open_gaps()] == [(10, 70), (70, 121)]
    assert all(gap.end_known for gap in coverage.gaps())
    assert [gap.reason for gap in coverage.gaps()] == ["restart", "restart"]
    assert coverage.opened.is_set()


def test_in_a_quiet_home_a_gap_reaches_to_the_newest_state_and_stays_open_ended(
    clock: Clock,
) -> None:
    """A removal is in no state: the end is not known before an event comes."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 1, 10)
    began(coverage, reason="disconnect")

    bound(coverage, -1000, 50)

    (gap,) = coverage.open_gaps()
    assert (bounds(gap), gap.end_known) == ((10, 50), False)
    assert coverage.covered is not None
    assert coverage.covered.through_ns == at(50)


def test_connections_without_an_event_have_one_gap_before_them(clock: Clock) -> None:
    """Also over a crash: it is saved before its end is known."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 1, 10)

    first = began(coverage, reason="disconnect")
    second = began(coverage, reason="disconnect")
    coverage = restarted(coverage, clock)
    third = began(coverage)
    committed(coverage, 90, 91)

    assert first == second == third
    assert [bounds(gap) for gap in coverage.gaps()] == [(10, 91)]


def test_a_disconnect_during_a_fill_opens_another_gap(clock: Clock) -> None:
    """Its last answer may have come before."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 1, 10)
    gap = began(coverage)
    assert gap is not None
    coverage.start_filling(gap)
    bound(coverage, -1000, 50)

    other = began(coverage, reason="disconnect")
    committed(coverage, 90, 91)

    assert other is not None
    assert [bounds(gap) for gap in coverage.open_gaps()] == [(10, 50), (50, 91)]


def test_an_update_of_a_gap_keeps_the_end_that_became_known_meanwhile(clock: Clock) -> None:
    """The first event may come while it is being filled."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 1, 10)
    gap = began(coverage)
    assert gap is not None
    committed(coverage, 90, 91)

    coverage.update(replace(gap, changes=7))

    (gap,) = coverage.open_gaps()
    assert (bounds(gap), gap.end_known, gap.changes) == ((10, 91), True, 7)


def test_the_first_connection_to_a_home_assistant_that_was_absent_opens_a_gap(
    clock: Clock,
) -> None:
    """Since a minute before the oldest state, and no longer ago than the recorder keeps."""
    coverage = Coverage(clock=clock)
    gap = coverage.connected(reason="restart", was_absent=True)
    assert gap is not None
    assert not gap.start_known
    committed(coverage, 500, 501)

    bound(coverage, 100, 600)
    assert [bounds(gap) for gap in coverage.open_gaps()] == [(40, 501)]

    other = Coverage(clock=clock)
    other.connected(reason="restart", was_absent=True)
    bound(other, -100_000, 600, reach_s=1000)
    assert [bounds(gap) for gap in other.open_gaps()] == [(-400, 600)]


def test_a_second_connection_before_the_first_event_opens_a_gap(clock: Clock) -> None:
    """The first came and went before Home Assistant's states were listed."""
    coverage = Coverage(clock=clock)
    began(coverage)

    gap = began(coverage, reason="disconnect")

    assert gap is not None
    assert (gap.start_known, gap.end_known) == (False, False)


def test_a_commit_of_points_from_before_a_reconnect_does_not_move_coverage_back(
    clock: Clock,
) -> None:
    """Its points happened before the connection was lost; the next gap begins behind the last."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 0, 0)
    coverage.received(span(1, 10))
    unsaved = coverage.changes_to_save(span(1, 10), received_at=START + 1)
    began(coverage)
    coverage.received(span(61, 61))
    coverage.mark_saved(unsaved)
    coverage.mark_saved(coverage.changes_to_save(span(11, 12), received_at=START + 1))

    assert coverage.covered is not None
    assert coverage.covered.through_ns == at(61)


def test_a_clock_set_back_while_disconnected_opens_a_gap_of_its_own(clock: Clock) -> None:
    """What was missed before it was set back, and after: that is an hour before the event."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 1, 5)
    committed(coverage, 36_000, 37_000)

    streamed(coverage, 20_030, 20_031)

    found = [(gap.reason, bounds(gap)) for gap in coverage.open_gaps()]
    assert found == [("clock", (16_430, 20_031)), ("restart", (37_000, 40_600))]
    assert all(gap.end_known for gap in coverage.gaps())
    assert coverage.covered is not None
    assert coverage.covered.through_ns == at(20_031)


def test_a_clock_set_back_is_noticed_after_a_gap_without_events_was_filled(clock: Clock) -> None:
    """The first event may come much later."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 36_000, 37_000)
    gap = began(coverage)
    assert gap is not None
    coverage.close(gap, "filled", detail=None)

    committed(coverage, 20_030, 20_031)

    assert [(gap.reason, bounds(gap)) for gap in coverage.open_gaps()] == [
        ("clock", (16_430, 20_031))
    ]


def test_a_clock_set_forward_while_disconnected_is_part_of_one_gap(clock: Clock) -> None:
    """Both what happened before that and after it lie in the gap."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 1, 5)

    streamed(coverage, 3_600, 3_601)

    assert [bounds(gap) for gap in coverage.open_gaps()] == [(5, 3_601)]


def test_a_commit_under_way_does_not_undo_the_effect_of_a_clock_set_back(clock: Clock) -> None:
    """Its points are of the future: the next gap would begin there, and time be missing."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 3600, 3700)
    unsaved = coverage.changes_to_save(span(3701, 3702), received_at=START + 3701)
    began(coverage, reason="disconnect")
    coverage.received(span(30, 31))
    coverage.mark_saved(unsaved)

    assert coverage.covered is not None
    assert coverage.covered.through_ns == at(31)
    assert coverage.changes_to_save().covered == coverage.covered


def test_a_clock_set_back_while_events_stream_moves_the_end_of_coverage_back(clock: Clock) -> None:
    """A gap that began in what was the future would leave out what came since."""
    coverage = Coverage(clock=clock)
    began(coverage)
    committed(coverage, 3600, 3610)
    clock.now -= 7200  # ours is the clock of the same machine
    committed(coverage, 20, 25)

    streamed(coverage, 4000, 4001)

    assert [bounds(gap) for gap in coverage.open_gaps()] == [(25, 4001)]


def test_points_slightly_out_of_order_do_not_move_the_end_of_coverage_back(clock: Clock) -> None:
    """Only a clock goes back by seconds."""
    coverage = Coverage(clock=clock)
    began(coverage)
    committed(coverage, 10, 20)
    committed(coverage, 18, 19)

    assert coverage.covered is not None
    assert coverage.covered.through_ns == at(20)


# Points that were dropped


def test_dropped_points_become_a_gap(clock: Clock) -> None:
    """They were received, and are not in the journal."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 0, 0)

    coverage.lost(span(3, 4), "journal_stalled")

    (gap,) = coverage.open_gaps()
    assert (bounds(gap), gap.reason) == ((3, 4), "journal_stalled")
    assert coverage.opened.is_set()


def test_dropped_points_close_in_time_become_one_gap(clock: Clock) -> None:
    """An overload drops thousands of batches; those of one reason and time are one story."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 0, 0)

    coverage.lost(span(10, 11), "journal_full")
    clock.now += 5
    coverage.lost(span(20, 21), "journal_full")
    coverage.lost(span(5, 6), "journal_full")
    coverage.lost(span(20, 21), "journal_stalled")
    coverage.lost(span(40, 41), "journal_full")

    assert [bounds(gap) for gap in coverage.open_gaps()] == [(5, 21), (20, 21), (40, 41)]
    assert coverage.open_gaps()[0].found_at == START + 5


@pytest.mark.parametrize("begun", ["taken", "half filled"])
def test_dropped_points_do_not_extend_a_gap_that_is_being_filled(clock: Clock, begun: str) -> None:
    """An attempt that fills it would not go back for the added time, which becomes a second gap."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 0, 0)
    coverage.lost(span(10, 20), "journal_full")
    (gap,) = coverage.open_gaps()
    if begun == "taken":
        coverage.start_filling(gap)
    else:
        coverage.update(replace(gap, filled_ns=at(19)))

    coverage.lost(span(15, 22), "journal_full")
    coverage.lost(span(23, 24), "journal_full")

    assert [bounds(gap) for gap in coverage.open_gaps()] == [(10, 20), (15, 24)]


def test_dropped_points_without_a_time_open_no_gap(clock: Clock) -> None:
    """What did not come live from Home Assistant is still where it came from."""
    coverage = Coverage(clock=clock)

    coverage.lost(None, "journal_full")

    assert coverage.gaps() == []


def test_the_number_of_open_gaps_has_a_bound(clock: Clock) -> None:
    """From then on the last gap grows, and nothing falls out of it."""
    coverage = Coverage(clock=clock)
    for number in range(1_100):
        streamed(coverage, number * 10 + 2, number * 10 + 3)

    assert coverage.count("open") == 1_000
    assert bounds(coverage.open_gaps()[-1]) == (9993, 10_993)


def test_a_request_opens_the_time_before_the_journal_began(clock: Clock) -> None:
    """What was captured is not read again."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 0, 0)
    committed(coverage, 1, 50)
    clock.now = START + 50

    gaps = coverage.request(span(-1000, 40), entity_ids=["sensor.b", "sensor.a", "sensor.b"])

    (gap,) = gaps
    assert (bounds(gap), gap.reason) == ((-1000, 0), "requested")
    assert gap.entity_ids == ("sensor.b", "sensor.a")
    assert coverage.opened.is_set()
    assert coverage.request(span(10, 40), entity_ids=[]) == []


def test_a_request_opens_no_future_time(clock: Clock) -> None:
    """Nor for the time before computers had one: a journal holds what fits 64 bits."""
    coverage = Coverage(clock=clock)

    (gap,) = coverage.request(Times(-(10**20), 10**20), entity_ids=[])
    assert (gap.start_ns, gap.end_known) == (0, False)
    assert gap.end_ns < MAX_SECONDS * SECOND

    bound(coverage, -100, 7)
    assert [bounds(gap)[1] for gap in coverage.open_gaps()] == [7]


def test_a_repeated_request_opens_no_second_gap(clock: Clock) -> None:
    """A command that was cut off may be started again."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 0, 0)
    (gap,) = coverage.request(span(-1000, 0), entity_ids=[])

    assert [gap.id] == [
        again.id for again in coverage.request(span(-500, 0), entity_ids=["sensor.a"])
    ]

    coverage.close(gap, "filled", detail=None)
    assert coverage.request(span(-500, 0), entity_ids=[]) == []


def test_a_request_for_other_entities_opens_another_gap(clock: Clock) -> None:
    """A request for one entity, or for all known ones, does not cover another entity."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 0, 0)
    (first,) = coverage.request(span(-1000, 0), entity_ids=["sensor.a"])
    coverage.close(first, "filled", detail=None)
    assert coverage.request(span(-1000, 0), entity_ids=["sensor.a"]) == []

    (other,) = coverage.request(span(-1000, 0), entity_ids=["sensor.b"])
    (both,) = coverage.request(span(-1000, 0), entity_ids=["sensor.a", "sensor.c"])[1:]
    for gap in (other, both):
        coverage.close(gap, "filled", detail=None)
    (everything,) = coverage.request(span(-1000, 0), entity_ids=[])
    coverage.close(everything, "filled", detail=None)
    (unknown_then,) = coverage.request(span(-1000, 0), entity_ids=["sensor.d"])

    assert [gap.entity_ids for gap in (other, both, everything, unknown_then)] == [
        ("sensor.b",),
        ("sensor.a", "sensor.c"),
        (),
        ("sensor.d",),
    ]


def test_a_request_for_entities_opens_gaps_that_were_filled_before(
    clock: Clock,
) -> None:
    """They may have had no state then, and no source may have listed them."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 0, 10)
    coverage = restarted(coverage, clock)
    streamed(coverage, 50, 60)
    (gap,) = coverage.open_gaps()
    coverage.close(gap, "filled", detail=None)

    (again,) = coverage.request(span(5, 60), entity_ids=["sensor.a"])
    coverage.close(again, "nothing_recorded", detail=None)

    assert again.entity_ids == ("sensor.a",)
    assert gap.start_ns < again.start_ns <= again.end_ns <= gap.end_ns
    assert coverage.request(span(5, 60), entity_ids=[]) == []


@pytest.mark.parametrize("enabled", [True, False])
def test_a_request_reopens_an_unfillable_gap(clock: Clock, *, enabled: bool) -> None:
    """Now a person wants it: it is filled however old it is, and whatever is filled unasked."""
    coverage = Coverage(clock=clock, fills=enabled)
    streamed(coverage, 0, 0)
    streamed(coverage, 60, 61)
    (gap,) = coverage.open_gaps()
    coverage.close(gap, "unfillable", detail="too old")

    (again,) = coverage.request(span(10, 20), entity_ids=[])

    assert (again.id, again.state, again.reason) == (gap.id, "open", "requested")
    assert (again.detail, again.closed_at) == (None, None)
    assert coverage.will_be_filled(again)


def test_a_request_fills_gaps_that_are_not_filled_automatically(clock: Clock) -> None:
    """With BACKFILL_ENABLED=false they stay open, and that is not `captured`."""
    coverage = Coverage(clock=clock, fills=False)
    streamed(coverage, 0, 0)
    gap = began(coverage)
    assert gap is not None
    committed(coverage, 60, 61)
    assert not coverage.will_be_filled(gap)

    (wanted,) = coverage.request(span(10, 20), entity_ids=[])

    assert wanted.id == gap.id
    assert coverage.will_be_filled(wanted)


def test_a_request_does_not_change_gaps_that_are_filled_automatically(clock: Clock) -> None:
    """They keep their reason, and the request does not wait for them."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 0, 0)
    streamed(coverage, 60, 61)

    assert coverage.request(span(10, 20), entity_ids=[]) == []


def test_splitting_a_gap_gives_up_only_its_older_part(clock: Clock) -> None:
    """The rest keeps its id, so that what is known of its start stays with it."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 0, 0)
    gap = began(coverage)
    assert gap is not None
    committed(coverage, 60, 61)

    lost, rest = coverage.split(gap, at(20), detail="too old")

    assert (bounds(lost), lost.state, lost.detail) == ((0, 20), "unfillable", "too old")
    assert (bounds(rest), rest.state, rest.id) == ((20, 61), "open", gap.id)
    assert rest.filled_ns == at(20)  # as in a half filled one, the earlier state is unknown
    assert [rest] == coverage.open_gaps()
    assert coverage.gap(lost.id) == lost


def test_splitting_a_gap_never_replaces_another_gap(clock: Clock) -> None:
    """Also with so many open gaps that new ones are merged."""
    coverage = Coverage(clock=clock)
    for number in range(1_001):
        streamed(coverage, number * 10 + 2, number * 10 + 3)
    oldest, *others = coverage.open_gaps()

    coverage.split(oldest, oldest.start_ns + SECOND, detail="too old")

    assert others == coverage.open_gaps()[1:]
    assert coverage.count("unfillable") == 1


def test_only_the_newest_thousand_closed_gaps_are_retained(clock: Clock) -> None:
    """The others are deleted from the file."""
    coverage = Coverage(clock=clock)
    for number in range(1_003):
        streamed(coverage, number * 10 + 2, number * 10 + 3)
        for gap in coverage.open_gaps():
            coverage.close(gap, "filled", detail=None)

    unsaved = coverage.changes_to_save()
    coverage.mark_saved(unsaved)

    assert list(unsaved.deleted) == [2]
    assert coverage.count("filled") == 1_000
    assert coverage.gap(2) is None
    assert coverage.changes_to_save().deleted == []


def test_a_reopened_gap_is_not_deleted(clock: Clock) -> None:
    """A person asks for it in the very moment in which the file forgets it."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 0, 0)
    for number in range(1, 1_002):
        gap = began(coverage)
        assert gap is not None
        committed(coverage, number * 10, number * 10 + 1)
        coverage.close(gap, "unfillable", detail="too old")
    unsaved = coverage.changes_to_save()
    assert list(unsaved.deleted) == [1]

    (again,) = coverage.request(span(1, 2), entity_ids=[])
    coverage.mark_saved(unsaved)

    assert [again] == coverage.changes_to_save().gaps


def test_saved_changes_of_coverage_are_not_saved_again(clock: Clock) -> None:
    """And what changed while it was being saved is."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 0, 0)
    gap = began(coverage)
    assert gap is not None
    unsaved = coverage.changes_to_save()
    assert list(unsaved.gaps) == [gap]
    newer = coverage.update(replace(gap, changes=7))

    coverage.mark_saved(unsaved)

    assert list(coverage.changes_to_save().gaps) == [newer]
    assert coverage.changes_to_save().covered is None
    coverage.mark_saved(coverage.changes_to_save())
    assert coverage.changes_to_save().gaps == []


def test_a_failed_transaction_does_not_change_coverage(clock: Clock) -> None:
    """What points cover is true when they are durable, not before."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 0, 0)

    coverage.changes_to_save(span(1, 10), received_at=START + 1)

    assert coverage.covered is not None
    assert coverage.covered.through_ns == at(0)


def test_rows_are_retained_for_two_minutes_and_while_a_gap_is_open(clock: Clock) -> None:
    """Of Home Assistant's time: what is read back near an edge is compared with them."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 0, 1)
    committed(coverage, 2, 3, first=10)
    clock.now += 1e9  # our own clock decides nothing
    committed(coverage, 100, 101, first=20)
    committed(coverage, 119, 120, first=30)
    assert coverage.keep_from == 1
    committed(coverage, 139, 140, first=40)
    assert coverage.keep_from == 20

    gap = began(coverage)
    assert gap is not None
    committed(coverage, 900, 901, first=50)
    assert gap.keep_from == coverage.keep_from == 20

    coverage.close(gap, "filled", detail=None)
    assert coverage.keep_from == 50


def test_retained_rows_are_known_after_a_restart(clock: Clock) -> None:
    """The file says which is the oldest one near the edge."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 0, 1)
    committed(coverage, 300, 300, first=70)
    committed(coverage, 301, 301, first=80)

    again = restarted(coverage, clock)

    assert again.keep_from == 70


def test_retained_rows_have_a_bound_when_the_clock_is_set_back(clock: Clock) -> None:
    """They would else stay until the time comes again."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 1e6, 1e6)
    for number in range(1_000):
        committed(coverage, number, number, first=number + 2)

    assert coverage.keep_from == 880  # of second 878


def test_backfilled_points_do_not_change_which_rows_are_retained(clock: Clock) -> None:
    """The edge is that of live events: rows beside it must be there when the next gap comes."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 0, 1)
    committed(coverage, 200, 201, first=5)
    coverage.mark_saved(coverage.changes_to_save(None, received_at=START + 5_000, first=9_000))

    gap = began(coverage)

    assert gap is not None
    assert gap.keep_from == 5


def test_a_gap_that_will_not_be_filled_retains_no_rows(clock: Clock) -> None:
    """With BACKFILL_ENABLED=false the journal would else grow to its bound."""
    coverage = Coverage(clock=clock, fills=False)
    streamed(coverage, 0, 1)
    began(coverage)
    committed(coverage, 900, 901, first=5)

    assert coverage.keep_from == 5


def test_open_gaps_are_known_after_a_restart(clock: Clock) -> None:
    """And numbers go on, so that no two gaps are called the same."""
    coverage = Coverage(clock=clock)
    streamed(coverage, 0, 0)
    streamed(coverage, 60, 61)

    again = restarted(coverage, clock)

    assert again.opened.is_set()
    assert coverage.gaps() == again.gaps()
    gap = began(again)
    assert gap is not None
    assert gap.id == 2


def test_a_journal_in_memory_logs_the_command_that_reads_a_gap_back(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A journal in memory keeps no account of what was missed."""
    coverage = Coverage(is_persistent=False, clock=clock)
    streamed(coverage, 0, 0)
    committed(coverage, 1, 10)

    assert began(coverage, reason="disconnect") is None
    committed(coverage, 60, 60)
    coverage.lost(span(61, 62), "journal_stalled")

    assert coverage.gaps() == []
    assert coverage.covered is not None
    assert coverage.covered.through_ns == at(60)
    (record,) = caplog.records
    assert "python -m app backfill --since 2026-11-18T" in record.getMessage()
    (gap,) = coverage.request(span(10, 60), entity_ids=[])
    assert bounds(gap) == (10, 60)
