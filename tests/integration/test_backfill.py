"""The whole way back: a real journal, the real source, and a recorder behind a socket."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from app.model import Lines, Times, nanoseconds
from app.normalize.filter import EntityFilter
from app.runtime.errors import CommandFailed, SourceProtocolError
from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.captured_home import (
    HISTORY,
    SENSOR,
    TOKEN,
    CapturedHome,
    assert_once,
    numbers,
    previous,
    running,
    states,
)
from tests.fakes.journal import tidy
from tests.fakes.still_house import StillHouse, now


async def test_a_fill_that_was_killed_continues_without_repeating_a_change(
    home: CapturedHome, tmp_path: Path
) -> None:
    """Nothing twice, nothing missing, and each change follows the one before it."""
    await home.capture(0, 5)
    home.count(5, 1_005)

    process = home.process()
    process.time.holding = lambda: process.telemetry.backfilled >= 400
    async with running(process):
        await process.until(lambda: process.telemetry.backfilled >= 400)
        home.kill(tmp_path / "killed")
    assert process.coverage.count("open") == 1

    _, points = await home.fill()

    assert_once(points)
    assert numbers(0, 1_005) == states(points)
    assert [None, *numbers(0, 1_004)] == previous(points)


async def test_a_fill_whose_connection_failed_continues_where_it_stopped(
    home: CapturedHome, house: StillHouse
) -> None:
    """Windows that are done stay done, and the first row behind them knows the one before."""
    house.change_every(1, since_s=300)
    await home.capture(0, 1)
    home.count(1, 101)

    async with home.interrupted_fill():
        pass
    points = await home.points()

    assert_once(points)
    assert numbers(0, 101) == states(points)
    assert [None, *numbers(0, 100)] == previous(points)
    assert [point.fields.get("duration_in_state_seconds") for point in points[1:]].count(None) == 0


async def test_a_fill_starts_again_when_a_source_that_was_missing_answers(
    home: CapturedHome, house: StillHouse
) -> None:
    """What only the logbook names was not in the windows that are done."""
    start = house.change_every(1, since_s=300)
    await home.capture(0, 1)
    for state in ("on", "off"):
        house.set_state("light.guest", state)
    house.remove("light.guest")
    house.logbook_entries = [{"entity_id": "light.guest", "when": start.timestamp()}]
    home.count(1, 101)

    async with home.interrupted_fill(refused_commands=["logbook/get_events"]) as process:
        process.refused_commands.clear()
    points, gap = await home.points(), process.gap()

    assert_once(points)
    assert states(points) == numbers(0, 101)
    assert states(points, "light.guest") == ["on", "off", None]
    assert "logbook" in gap.sources
    assert not [text for text in gap.limitations if "does not show logbook" in text]


async def test_a_continued_fill_retains_the_limitations_of_its_first_attempt(
    home: CapturedHome, house: StillHouse
) -> None:
    """Here that the recorder does not reach back to the start."""
    house.change_every(1, since_s=300)
    await home.capture(0, 1)
    home.count(1, 101)
    house.recorded[SENSOR] = house.recorded[SENSOR][2:]

    async with home.interrupted_fill() as process:
        pass

    assert any("holds no state from before" in text for text in process.gap().limitations)


async def test_live_events_are_committed_while_a_gap_is_filled(
    home: CapturedHome, house: StillHouse
) -> None:
    """While one is being filled they become durable as ever."""
    await home.capture(0, 5)
    home.count(5, 1_005)
    process = home.process()
    process.time.holding = lambda: 200 <= process.telemetry.backfilled < 1_000 and held
    held = True

    async with running(process):
        await process.until(lambda: process.telemetry.backfilled >= 200)
        house.set_state(SENSOR, "1005")
        await process.until_journaled(1)
        assert process.coverage.count("open") == 1
        held = False
        await process.until_filled()
        points = await process.points()

    assert_once(points)
    assert numbers(0, 1_006) == states(points)


async def test_backfill_writes_no_faster_than_its_rate(home: CapturedHome) -> None:
    """No more than BACKFILL_RATE points a second, in small appends; what is there is read fast."""
    await home.capture(0, 1)
    home.count(1, 1_001)

    process, _ = await home.fill(home.process(points_per_s=50))

    pauses = [seconds for seconds in process.time.slept if seconds not in {0.1, 1.0, 6.0}]
    compared = 1 / 50_000  # the one point of the journal
    assert pauses == [compared, *[4.0] * 5]
    assert process.telemetry.backfilled == 1_000


async def test_restarts_in_a_row_write_nothing_twice(home: CapturedHome) -> None:
    """What came live in the first second of a connection lies in the gap as well."""
    for number in range(4):
        async with running(home.process()) as process:
            await home.counted(process, number * 10, number * 10 + 5)
            await process.until_filled(gaps=number)
            points = await process.points()
        home.count(number * 10 + 5, number * 10 + 10)

    assert_once(points)
    assert numbers(0, 35) == states(points)
    assert [None, *numbers(0, 34)] == previous(points)
    live = [int(str(p.fields["state_value"])) % 10 < 5 for p in points]
    assert live == ["backfilled" not in point.fields for point in points]


async def test_the_last_live_point_before_a_gap_is_not_read_back_after_a_long_fill(
    home: CapturedHome, house: StillHouse
) -> None:
    """The newest live point is the start of the next gap, however long ago it came."""
    await home.capture(0, 1)
    house.set_state(SENSOR, "1")
    process = home.process()
    async with running(process):
        await home.counted(process, 2, 3)
        await process.until_filled()
        process.journal.ack("influxdb", process.journal._cursors.tail)  # all is delivered
        # Hours later old points are still put into the journal: read back, or retried.
        old = Lines(b"events,entity_id=sensor.old x=1 1\n", 1)
        await process.journal.append(old, received_at=process.time() + 7_200)
        process.journal.ack("influxdb", process.journal._cursors.tail)
        await asyncio.sleep(0.1)
    house.set_state(SENSOR, "3")

    process, points = await home.fill(gaps=2)

    counted = [point for point in points if point.tags["entity_id"] == SENSOR]
    assert states(points)[-2:] == ["2", "3"]
    assert "backfilled" not in counted[-2].fields
    assert "backfilled" in counted[-1].fields


async def test_an_entity_that_changed_unrecorded_is_listed_and_its_newest_state_written(
    home: CapturedHome, house: StillHouse
) -> None:
    """Its newest state; what came before it cannot be known."""
    async with running(home.process()) as process:
        house.set_state("sensor.secret", "a")
        house.set_state("sensor.still", "b")
        await process.until_journaled(2)
    house.set_state("sensor.secret", "c")
    del house.recorded["sensor.secret"]

    process, points = await home.fill()

    assert process.gap().unrecorded == ("sensor.secret",)
    assert states(points, "sensor.secret") == ["a", "c"]
    assert previous(points, "sensor.secret") == [None, "a"]
    assert states(points, "sensor.still") == ["b"]


async def test_without_history_a_gap_is_unfillable_and_the_newest_states_are_written(
    home: CapturedHome, house: StillHouse, caplog: pytest.LogCaptureFixture
) -> None:
    """The gap is given up, with the reason."""
    async with FakeHomeAssistant(house, token=TOKEN, unknown_commands=[HISTORY]) as fake:
        house.fire, home.fake = fake.fire, fake
        await home.capture(0, 1)
        home.count(1, 5)
        process, points = await home.fill()

    gap = process.gap()
    assert (gap.state, gap.unrecorded) == ("unfillable", (SENSOR,))
    assert "unknown_command" in str(gap.detail)
    assert states(points) == ["0", "4"]
    assert "cannot be filled" in caplog.text


@pytest.mark.parametrize("code", ["unknown_error", "home_assistant_error", "timeout"])
async def test_a_temporary_error_of_the_recorder_is_retried(
    home: CapturedHome, house: StillHouse, code: str
) -> None:
    """The recorder may be busy with itself: it is asked again."""
    await home.capture(0, 1)
    house.set_state(SENSOR, "1")
    process = home.process()
    process.failures = [CommandFailed(HISTORY, code=code, message="Unknown error")] * 3

    _, points = await home.fill(process)

    assert process.gap().state == "filled"
    assert states(points) == ["0", "1"]


async def test_a_gap_whose_attempts_all_fail_is_unfillable_with_the_reason(
    home: CapturedHome,
) -> None:
    """After ten attempts, an hour or so, the gap is given up with the reason."""
    await home.capture(0, 1)
    process = home.process()
    process.failures = [CommandFailed(HISTORY, code="unknown_error", message="broken")] * 100

    await home.fill(process)

    gap = process.gap()
    # The last attempt looks for an entity that is to blame.
    assert (gap.state, len(process.failures)) == ("unfillable", 100 - 10 - 1)
    assert "broken" in str(gap.detail)


async def test_an_entity_whose_history_fails_costs_only_its_own_history(
    home: CapturedHome, house: StillHouse
) -> None:
    """All others are read back, and the gap names it."""
    await home.capture(0, 1)
    house.set_state("sensor.bad", "1")
    house.set_state(SENSOR, "1")

    process = home.process()
    process.refuses = lambda parameters: "sensor.bad" in str(parameters["entity_ids"])
    process.refusal = CommandFailed(HISTORY, code="unknown_error", message="Unknown error")
    async with running(process):
        house.set_state(SENSOR, "2")
        await process.until_filled()
        points = await process.points()
        gap = process.gap()

    assert states(points) == numbers(0, 3)
    assert states(points, "sensor.bad") == ["1"]
    assert "Home Assistant fails to show the history of sensor.bad." in gap.limitations


async def test_a_gap_that_always_fails_does_not_block_newer_gaps(
    home: CapturedHome, house: StillHouse
) -> None:
    """An answer that cannot be decoded costs its own gap, and health names that one."""
    house.restart_time(lambda: now() - timedelta(hours=3))
    await home.capture(0, 1)
    spoiled = str(house.set_state(SENSOR, "1")["time_fired"])
    house.let_pass(seconds=1_000)

    def refuses(parameters: Mapping[str, object]) -> bool:
        return str(parameters["start_time"]) < spoiled < str(parameters["end_time"])

    process = home.process()
    process.refuses = refuses
    async with running(process):
        await home.counted(process, 2, 3)
        await process.until(lambda: process.backfill.status().reason is not None)
        house.let_pass(seconds=60)
        house.set_state(SENSOR, "3")
        await process.until_journaled(2)
    house.let_pass(seconds=3600)
    house.set_state(SENSOR, "4")

    process = home.process()
    process.refuses = refuses
    async with running(process):
        house.set_state(SENSOR, "5")
        await process.until(lambda: process.coverage.count("filled") == 1)
        newer, older = process.coverage.gaps()
        reason = process.backfill.status().reason
        assert (newer.state, older.state) == ("filled", "open")
        process.refuses = lambda _: False
        await process.until_filled(2)
        points = await process.points()

    assert reason is not None
    assert "cannot be read back" in reason
    assert process.backfill.status().reason is None
    assert_once(points)
    assert states(points) == numbers(0, 6)


async def test_what_an_earlier_process_missed_without_ever_connecting_is_read_back(
    home: CapturedHome, house: StillHouse
) -> None:
    """Home Assistant was absent at the first start, and there when the service started again."""
    async with home.process().journal:
        house.set_state(SENSOR, "0")
        house.set_state(SENSOR, "1")

    _, points = await home.fill()

    assert states(points) == ["0", "1"]


@pytest.mark.parametrize("kept", [5, 1_000])
async def test_a_gap_says_that_the_recorder_does_not_reach_back_to_its_start(
    home: CapturedHome, house: StillHouse, kept: int
) -> None:
    """It was purged: what is left is read back, and what is missing is not passed over."""
    house.restart_time(lambda: now() - timedelta(hours=12))
    await home.capture(0, 1)
    for number in range(1, 10):
        house.let_pass(seconds=3_600)
        house.set_state(SENSOR, str(number))
    house.recorded[SENSOR] = house.recorded[SENSOR][-kept:]

    process, points = await home.fill()

    is_named = any("holds no state from before" in text for text in process.gap().limitations)
    assert is_named == (kept == 5)
    first = points[1]
    assert previous([first]) == [None if kept == 5 else "0"]


async def test_a_gap_says_that_rows_were_purged_while_it_was_filled(
    home: CapturedHome, house: StillHouse
) -> None:
    """And the first row after them has no previous state."""
    house.change_every(1, since_s=300)
    await home.capture(0, 1)
    home.count(1, 201)

    async with home.interrupted_fill() as process:
        filled = len(await home.points())
        house.recorded[SENSOR] = house.recorded[SENSOR][filled + 50 :]
    points = await home.points()

    assert any("holds no state from before" in text for text in process.gap().limitations)
    assert len(points) < 201
    assert [*map(previous, [[point] for point in points])].count([None]) == 2


@pytest.mark.parametrize(
    ("hours", "retention_h", "asked", "is_reported"),
    [(3, 2, 1, True), (3, 4, 1, False), (3, None, 1, False), (0.5, 0.25, 0, False)],
)
async def test_a_gap_says_that_the_database_does_not_retain_its_start(
    home: CapturedHome,
    house: StillHouse,
    hours: float,
    retention_h: float | None,
    *,
    asked: int,
    is_reported: bool,
) -> None:
    """All of it is read back nevertheless: the database decides. None retains less than an hour."""
    house.restart_time(lambda: now() - timedelta(hours=hours))
    await home.capture(0, 1)
    house.set_state(SENSOR, "1")
    house.restart_time(now)
    process = home.process()
    process.retention_s = retention_h and retention_h * 3600
    async with running(process):
        house.set_state(SENSOR, "2")
        await process.until_filled()
        points = await process.points()

    sentence = "The database keeps points for 2 h and does not store older ones."
    assert any(text.startswith(sentence) for text in process.gap().limitations) == is_reported
    assert (states(points), process.asked["retention"]) == (numbers(0, 3), asked)


async def test_with_backfill_disabled_a_gap_is_filled_on_request(
    home: CapturedHome, house: StillHouse
) -> None:
    """BACKFILL_ENABLED=false: the gap is noted, and stays open until somebody wants it."""
    await home.capture(0, 1, fills=False)
    house.set_state(SENSOR, "1")

    async with running(home.process(fills=False)) as process:
        await home.counted(process, 2, 3)
        assert process.gap().state == "open"
        assert process.asked[HISTORY] == 0
        since = nanoseconds(datetime.now(UTC) - timedelta(hours=1))
        process.coverage.request(Times(since, nanoseconds(datetime.now(UTC))), entity_ids=[])
        await process.until_filled()
        points = await process.points()

    assert_once(points)
    assert states(points) == ["0", "1", "2"]


async def test_only_the_part_of_a_gap_beyond_the_maximum_age_is_given_up(
    home: CapturedHome, house: StillHouse, caplog: pytest.LogCaptureFixture
) -> None:
    """BACKFILL_MAX_HOURS before Home Assistant's newest state a gap is cut in two."""
    ago = datetime.now(UTC) - timedelta(hours=3)
    house._moments = iter([ago, ago + timedelta(minutes=30), ago + timedelta(hours=2)])
    await home.capture(0, 1)
    house.set_state(SENSOR, "1")
    house.set_state(SENSOR, "2")

    process, points = await home.fill(home.process(max_hours=1), gaps=2)

    lost, rest = sorted(process.coverage.gaps(), key=lambda gap: gap.start_ns)
    assert (lost.state, rest.state) == ("unfillable", "filled")
    assert lost.detail == "Older than BACKFILL_MAX_HOURS (1)"
    assert "is not filled: Older than BACKFILL_MAX_HOURS (1)" in caplog.text
    assert states(points) == ["0", "2"]
    assert previous(points) == [None, "1"]


async def test_what_a_full_journal_refused_is_read_back_when_there_is_room(
    home: CapturedHome, house: StillHouse
) -> None:
    """With `drop_new` the gap stays open until then."""
    process = home.process()
    bounds = process.journal._bounds
    async with running(process):
        await home.counted(process, 0, 5)
        process.journal._bounds = replace(bounds, max_bytes=1)
        home.count(5, 10)
        await process.until(lambda: process.telemetry.dropped["journal_full"] >= 5)
        reason = process.backfill.status().reason
        assert process.coverage.count("open") == 1
        process.journal._bounds = bounds
        house.set_state(SENSOR, "10")
        await process.until_journaled(6)
        await process.until_filled()
        points = await process.points()

    assert_once(points)
    assert reason is not None
    assert reason.startswith("Events were dropped before they were durable")
    assert process.backfill.status().reason is None
    assert process.coverage.gaps()[0].reason == "journal_full"
    assert numbers(0, 11) == states(points)


async def test_an_entity_renamed_in_a_gap_ends_under_its_old_id_and_begins_under_its_new_one(
    home: CapturedHome, house: StillHouse
) -> None:
    """The old one was removed, the new one begins: as in the live events of Home Assistant."""
    await home.capture(0, 1)
    house.remove(SENSOR)
    house.set_state("sensor.renamed", "0")

    _, points = await home.fill()

    assert previous(points) == [None, "0"]
    assert points[1].fields["removed"] is True
    assert states(points, "sensor.renamed") == ["0"]
    assert previous(points, "sensor.renamed") == [None]


async def test_a_gap_is_not_read_before_home_assistant_has_started(
    home: CapturedHome, house: StillHouse
) -> None:
    """Its history is not there before it is RUNNING."""
    await home.capture(0, 1)
    house.set_state(SENSOR, "1")
    house.ha_state = "NOT_RUNNING"

    async with running(home.process()) as process:
        await process.until(lambda: 1.0 in process.time.slept)
        assert process.asked[HISTORY] == 0
        house.ha_state = "RUNNING"
        await process.until_filled()
        points = await process.points()

    assert states(points) == ["0", "1"]


async def test_last_states_are_updated_from_the_journal_after_a_kill(
    home: CapturedHome, house: StillHouse, tmp_path: Path
) -> None:
    """A crash forgets what was not saved; the newest points know it, and old ones do no harm."""
    process = home.process()
    async with running(process):
        house.set_state(SENSOR, "0", {"n": 0})
        house.set_state(SENSOR, "1", {"n": 0})
        await process.until_journaled(2)
        process.journal._housekeeping._states_saved_at = 0.0
        await tidy(process.journal)
        process.journal._housekeeping._save_states_s = 3600.0
        house.set_state(SENSOR, "1", {"n": 1})
        await process.until_journaled(3)
        known = {name: process.last_states.get(name) for name in [SENSOR]}
        old = Lines(b'events,entity_id=%s backfilled=true,state_value="x" 1\n' % SENSOR.encode(), 1)
        await process.journal.append(old, received_at=time.time())
        home.kill(tmp_path / "killed")

    async with running(home.process()) as process:
        recalled = {name: process.last_states.get(name) for name in [SENSOR]}

    assert known == recalled


@pytest.mark.parametrize("missed", [["1"], ["1", "0"]])
async def test_a_state_recalled_across_a_gap_has_no_known_beginning(
    home: CapturedHome, house: StillHouse, tmp_path: Path, missed: Sequence[str]
) -> None:
    """An update of attributes does not show it either; the recorder does."""
    house.change_every(1, since_s=200)
    await home.capture(0, 1)
    for state in missed:
        house.set_state(SENSOR, state)
    process = home.process()
    process.refuses = lambda _: True
    process.journal._housekeeping._save_states_s = 3600.0
    async with running(process):
        house.set_state(SENSOR, missed[-1], {"n": 1})
        await process.until_journaled(1)
        home.kill(tmp_path / "killed")
    house.set_state(SENSOR, "2")

    _, points = await home.fill(gaps=2)

    assert states(points) == ["0", *missed, missed[-1], "2"]
    durations = [point.fields["duration_in_state_seconds"] for point in points[1:]]
    assert durations == [*[1.0 for _ in missed], 0.0, 2.0]


async def test_a_damaged_row_does_not_stop_the_start(home: CapturedHome, tmp_path: Path) -> None:
    """It is counted as missing, and its time is read back."""
    process = home.process()
    process.journal._housekeeping._save_states_s = 3600.0
    async with running(process):
        await home.counted(process, 0, 1)
        home.kill(tmp_path / "killed")
    with contextlib.closing(sqlite3.connect(tmp_path / "killed" / "journal.db")) as connection:
        connection.execute("UPDATE journal_rows SET gzip = zeroblob(9)")
        connection.execute("UPDATE journal SET states_through = 0")
        connection.commit()
        # The log holds the row as it was, from which it would be recovered.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    process, _ = await home.fill(gaps=2)
    reasons = [gap.reason for gap in process.coverage.gaps() if gap.state != "unfillable"]

    assert sorted(reasons) == ["damage", "restart"]


# Which entities


async def test_entities_that_lived_only_in_the_gap_are_read_back(
    home: CapturedHome, house: StillHouse
) -> None:
    """The logbook, the statistics and the registry name them; the gap names its sources."""
    await home.capture(0, 1)
    for entity_id in ("switch.guest", "sensor.rented_meter", "light.disabled"):
        house.set_state(entity_id, "1")
        row = house.remove(entity_id)
        assert row
    when = now().timestamp()
    house.logbook_entries = [{"entity_id": "switch.guest", "state": "1", "when": when}]
    house.statistic_ids = ["sensor.rented_meter", "recorder:external"]
    house.rows["entity"] = [
        {"entity_id": "light.disabled", "platform": "demo", "disabled_by": "user", "id": "1"}
    ]

    process, points = await home.fill()

    for entity_id in ("switch.guest", "sensor.rented_meter", "light.disabled"):
        assert states(points, entity_id) == ["1", None]
        assert previous(points, entity_id) == [None, "1"]
    assert process.gap().sources == (
        "states",
        "captured",
        "entity_registry",
        "statistics",
        "logbook",
    )
    assert "single state" in process.gap().limitations[0]


async def test_a_gap_without_a_row_is_not_filled_but_nothing_recorded(home: CapturedHome) -> None:
    """The recorder was purged, or nothing changed: it does not say."""
    await home.capture(0, 1)

    process, _ = await home.fill()

    assert (process.gap().state, process.gap().changes) == ("nothing_recorded", 0)
    assert "holds nothing" in str(process.gap().detail)


async def test_an_entity_that_nothing_knows_is_named(home: CapturedHome, house: StillHouse) -> None:
    """Whether before the request or, without a connection then, when the gap is read."""
    async with running(home.process()) as process:
        await home.counted(process, 0, 1)
        house.set_state("sensor.removed", "1")
        house.remove("sensor.removed")
        await process.until_journaled(3)
        process.last_states.__init__()  # type: ignore[misc]  # a new service has seen nothing
        unknown = await process.backfill.unknown_entities([SENSOR, "sensor.removed", "sensor.typo"])
        since = nanoseconds(datetime.now(UTC) - timedelta(hours=1))
        (gap,) = process.coverage.request(
            Times(since, nanoseconds(datetime.now(UTC))), entity_ids=["sensor.typo"]
        )
        await process.until_filled()
        closed = process.coverage.gap(gap.id)

    assert unknown == ["sensor.typo"]
    assert closed is not None
    assert (closed.state, closed.detail) == ("unfillable", "Nothing knows sensor.typo")


# A recorder that is behind


async def test_a_gap_stays_open_while_the_recorder_is_behind(
    home: CapturedHome, house: StillHouse
) -> None:
    """However long its database is locked; health gives the reason."""
    await home.capture(0, 1)
    house.set_state(SENSOR, "1")
    late, house.recorded[SENSOR] = house.recorded[SENSOR], house.recorded[SENSOR][:1]
    house.backlog = 979

    process = home.process()
    async with running(process):
        await process.until(lambda: sum(process.time.slept) > 600)
        reason = process.backfill.status().reason
        states_meanwhile = {gap.state for gap in process.coverage.gaps()}
        house.backlog, house.recorded[SENSOR] = 0, late
        await process.until_filled()
        points = await process.points()

    assert "yet to write 979 events" in str(reason)
    assert states_meanwhile == {"open"}
    assert states(points) == ["0", "1"]
    assert process.backfill.status().reason is None


async def test_an_event_that_ends_a_gap_does_not_prove_that_the_gap_is_recorded(
    home: CapturedHome, house: StillHouse
) -> None:
    """It comes while the recorder is waited for: a row inside the gap is no row past its end."""
    await home.capture(0, 1)
    house.set_state(SENSOR, "1")
    house.set_state("light.late", "on")
    house.uncommitted_since = str(house.recorded["light.late"][-1]["last_updated"])
    house.backlog = 1

    async with running(home.process()) as process:
        await process.until(lambda: 1.0 in process.time.slept)
        house.set_state(SENSOR, "2")
        await process.until_journaled(1)
        polls = process.asked["recorder/info"]
        await process.until(lambda: process.asked["recorder/info"] > polls + 3)
        assert process.gap().state == "open"
        house.uncommitted_since = None
        await process.until_filled()
        points = await process.points()

    assert states(points) == numbers(0, 3)
    assert states(points, "light.late") == ["on"]


async def test_an_excluded_event_does_not_prove_that_the_gap_is_recorded(
    home: CapturedHome, house: StillHouse
) -> None:
    """It does not end the gap, so a row of its entity may be inside the gap."""
    await home.capture(0, 1)
    house.set_state("light.excluded", "on")
    house.set_state(SENSOR, "1")
    house.uncommitted_since = str(house.recorded[SENSOR][-1]["last_updated"])
    house.backlog = 1

    excluded = EntityFilter.of_text('{"patterns": [{"domain": "light"}]}')
    async with running(home.process(entity_filter=excluded)) as process:
        await process.until(lambda: 1.0 in process.time.slept)
        house.set_state("light.excluded", "off")
        await process.until(lambda: process.telemetry.filtered == 1)
        polls = process.asked["recorder/info"]
        await process.until(lambda: process.asked["recorder/info"] > polls + 3)
        house.uncommitted_since = None
        house.backlog = 0
        await process.until_filled()
        points = await process.points()

    assert states(points) == numbers(0, 2)
    assert states(points, "light.excluded") == []


async def test_a_gap_is_read_once_a_later_row_is_recorded(
    home: CapturedHome, house: StillHouse
) -> None:
    """A busy home always has a backlog."""
    await home.capture(0, 1)
    house.set_state(SENSOR, "1")
    house.backlog = 7

    async with running(home.process()) as process:
        await process.until(lambda: process.asked["recorder/info"] > 3)
        house.set_state(SENSOR, "2")
        await process.until_filled()
        points = await process.points()

    assert states(points) == ["0", "1", "2"]


async def test_without_a_recorder_a_gap_waits_for_one(
    home: CapturedHome, house: StillHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is unfillable with the reason, and filled once Home Assistant has a recorder again."""
    monkeypatch.setattr("app.backfill.backfill._RECORDER_CHECK_S", 0.05)
    house.components = ["history", "sun"]
    await home.capture(0, 1)
    house.set_state(SENSOR, "1")

    process = home.process()
    async with running(process):
        await process.until(lambda: process.coverage.count("unfillable") == 1)
        detail = process.gap().detail
        house.components.append("recorder")
        await process.until(lambda: process.coverage.count("filled") == 1)

    assert detail == "Home Assistant runs without the integration 'recorder'"


# What stood before


async def test_a_change_that_was_read_back_is_the_previous_state_in_the_next_gap(
    home: CapturedHome, house: StillHouse
) -> None:
    """A door that changed in one gap, and again in the next one, with nothing live between."""
    door = "binary_sensor.door"
    async with running(home.process()) as process:
        house.set_state(door, "off")
        await process.until_journaled(1)
    house.set_state(door, "on")
    async with running(home.process()) as process:
        await process.until_filled()
        await home.counted(process, 0, 1)
    house.set_state(door, "off")
    _, points = await home.fill(gaps=2)
    points = [point for point in points if point.tags["entity_id"] == door]

    assert previous(points, door) == [None, "off", "on"]
    durations = [point.fields.get("duration_in_state_seconds") for point in points]
    assert durations[1:] == [
        pytest.approx((after.time_ns - before.time_ns) / 1e9) for before, after in pairwise(points)
    ]


async def _with_an_unread_gap(home: CapturedHome, house: StillHouse) -> None:
    """Miss the change to 1; capture those to 0 and 2; end before the gap is read."""
    await home.capture(0, 1)
    house.set_state(SENSOR, "1")
    process = home.process()
    process.refuses = lambda _: True
    async with running(process):
        await home.counted(process, 2, 3)


async def test_each_gap_counts_its_own_changes(home: CapturedHome, house: StillHouse) -> None:
    """Also when the older one is read later, because its first attempt failed."""
    await _with_an_unread_gap(home, house)
    house.set_state(SENSOR, "3")

    process = home.process()
    process.failures = [SourceProtocolError("No answer within 30 s")]
    _, points = await home.fill(process, gaps=2)

    assert [gap.changes for gap in process.coverage.gaps()] == [1, 1]
    assert (states(points), previous(points)) == (numbers(0, 4), [None, *numbers(0, 3)])


async def test_what_changed_in_a_later_gap_is_left_to_that_gap(
    home: CapturedHome, house: StillHouse
) -> None:
    """An entity that the recorder has yet to write there is not one without recorded history."""
    await _with_an_unread_gap(home, house)
    house.set_state("light.new", "off")
    house.set_state("light.new", "on")
    house.uncommitted_since = str(house.recorded["light.new"][0]["last_updated"])
    house.backlog = 2

    async with running(home.process()) as process:
        await process.until(lambda: process.coverage.count("filled") == 1)
        house.uncommitted_since, house.backlog = None, 0
        await process.until_filled(gaps=2)
        points = await process.points()

    assert [gap.unrecorded for gap in process.coverage.gaps()] == [(), ()]
    assert states(points) == numbers(0, 3)
    assert (states(points, "light.new"), previous(points, "light.new")) == (
        ["off", "on"],
        [None, "off"],
    )


@pytest.mark.parametrize("is_recent", [True, False])
@pytest.mark.parametrize("returns", [True, False])
async def test_an_entity_that_became_unavailable_in_a_gap_stays_in_its_series(
    home: CapturedHome, house: StillHouse, *, returns: bool, is_recent: bool
) -> None:
    """With the class and unit it had before, whether it is still unavailable or has others now.

    The state before is within what is requested, or older.
    """
    house.change_every(60, since_s=300)
    async with running(home.process()) as process:
        house.set_state("sensor.power", "5", {"device_class": "power", "unit_of_measurement": "kW"})
        if not is_recent:
            house.set_state("light.other", "on")
        await process.until(lambda: process.telemetry.journaled == (1 if is_recent else 2))
    house.set_state("sensor.power", "unavailable", {})
    process = home.process()
    process.time.holding = lambda: not process.telemetry.journaled
    async with running(process):
        if returns:
            house.set_state("sensor.power", "9", {"unit_of_measurement": "W"})
        else:
            house.set_state(SENSOR, "1")
        await process.until_filled()
        points = [p for p in await process.points() if p.tags["entity_id"] == "sensor.power"]

    assert previous(points, "sensor.power")[1] == "5"
    assert [points[1].tags.get(name) for name in ("device_class", "unit_of_measurement")] == [
        "power",
        "kW",
    ]


@pytest.mark.parametrize("named_by", ["5", "unavailable"])
async def test_an_entity_that_was_unavailable_before_a_gap_stays_in_its_series(
    home: CapturedHome, house: StillHouse, *, named_by: str
) -> None:
    """The row before the gap names no class and unit; an older one does, available or not."""
    start = house.change_every(60, since_s=300)
    names = {"device_class": "power", "unit_of_measurement": "kW"}
    house.set_state("sensor.power", named_by, names)
    house.set_state("sensor.power", "unavailable", {} if named_by == "5" else names)
    house.set_state("sensor.power", "unknown", {})
    house.set_state("sensor.power", "9", {"unit_of_measurement": "W"})

    async with running(home.process(fills=False)) as process:
        await process.until(process.pipeline.streaming.is_set)
        since = nanoseconds(start + timedelta(seconds=90))
        process.coverage.request(Times(since, nanoseconds(datetime.now(UTC))), entity_ids=[])
        await process.until_filled()
        points = await process.points()

    assert states(points, "sensor.power") == ["unknown", "9"]
    assert previous(points, "sensor.power")[0] == "unavailable"
    assert (points[0].tags.get("device_class"), points[0].tags.get("unit_of_measurement")) == (
        "power",
        "kW",
    )


@pytest.mark.parametrize("is_clean", [True, False])
async def test_the_first_states_after_a_restart_have_no_previous_state(
    home: CapturedHome, house: StillHouse, *, is_clean: bool
) -> None:
    """As in the live events of a Home Assistant that has just started."""
    house.change_every(0.1, since_s=200)
    async with running(home.process()) as process:
        house.set_state("light.lamp", "on")
        await home.counted(process, 0, 1)
        await process.until_journaled(2)
    house.set_state(SENSOR, "1")
    house.restart(is_clean=is_clean)
    house.set_state(SENSOR, "2")

    process, points = await home.fill()

    assert states(points) == ["0", "1", "1", "2"]
    assert previous(points) == [None, "0", None, "1"]
    assert previous(points, "light.lamp") == [None, None]
