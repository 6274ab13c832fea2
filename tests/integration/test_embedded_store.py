"""The embedded store: a sink that can be asked for what it was given."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from app.model import MAX_TIME_NS, Change, Context, Placement, Row, StoredPoint
from app.runtime.errors import StorageDamaged
from app.runtime.sqlite import Connection
from app.schema.homeiq import HomeiqEncoder
from app.schema.line_protocol import parse_line
from app.sinks.batches import Batch, whole_rows
from app.sinks.embedded import EmbeddedStore, StoredEvent
from app.sinks.outcomes import Accepted, Held, Outcome, Refused, Unavailable

NOON = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)
NOON_NS = 1_795_435_200_123_456_000
SECOND = 10**9
DAY = 86_400 * SECOND


def batch(lines: Sequence[bytes]) -> Batch:
    """Return the lines as delivery hands them out."""
    data = b"".join(line + b"\n" for line in lines)
    return whole_rows([Row(1, len(lines), gzip.compress(data, 1), 0.0)])


def store_at(folder: Path, *, retention_days: float = 30.0, now_ns: int = NOON_NS) -> EmbeddedStore:
    """Return a store that is not open yet; it is noon for it."""
    return EmbeddedStore(
        folder / "events.db",
        parse=parse_line,
        retention_days=retention_days,
        clock=lambda: now_ns / SECOND,
        prune_every_s=0.001,
        prune_step_s=0.0,
    )


def change(
    entity_id: str = "sensor.kitchen", state: str | None = "21.5", *, time_ns: int = NOON_NS
) -> Change:
    """Return a change of which everything is known."""
    return Change(
        entity_id=entity_id,
        domain=entity_id.partition(".")[0],
        time_ns=time_ns,
        state=state,
        previous_state="21.0",
        duration_s=60.5,
        attributes='{"note":"a \\\\ and a \\" and °C"}'.encode(),
        device_class="temperature",
        unit_of_measurement="°C",
        friendly_name="Kitchen, by the door",
        context=Context(id="c1", parent_id="p1", user_id="u1"),
        placement=Placement(
            device_id="d1",
            area_id="kitchen",
            integration="mqtt",
            manufacturer="Acme",
            model="T 1",
            sw_version="2",
        ),
    )


def batch_of(*changes: Change) -> Batch:
    """Return the changes as a batch of lines of the real schema."""
    encoder = HomeiqEncoder("events", instance="home", attribute_fields=())
    return batch(encoder.encode(changes).split())


def series(count: int, *, entity_id: str = "sensor.kitchen") -> list[Change]:
    """Return changes a second apart, the last one at noon."""
    first_ns = NOON_NS - (count - 1) * SECOND
    return [
        change(entity_id, str(number), time_ns=first_ns + number * SECOND)
        for number in range(count)
    ]


def states(events: Sequence[StoredEvent]) -> list[str | None]:
    """Return the states, in the order given."""
    return [event.state for event in events]


async def test_everything_that_was_written_can_be_read(tmp_path: Path) -> None:
    """Tags and fields come back as they were, with the time to the microsecond."""
    async with store_at(tmp_path) as store:
        assert await store.write(batch_of(change())) == Accepted()
        (event,) = (await store.events()).events

    assert event == StoredEvent(
        time="2026-11-23T12:00:00.123456Z",
        entity_id="sensor.kitchen",
        event_type="state_changed",
        domain="sensor",
        area_id="kitchen",
        device_id="d1",
        integration="mqtt",
        device_class="temperature",
        unit_of_measurement="°C",
        event_category="climate",
        instance="home",
        state="21.5",
        previous_state="21.0",
        value=21.5,
        available=True,
        duration_s=60.5,
        attributes=msgspec.Raw(change().attributes),
        context=Context("c1", "p1", "u1"),
        friendly_name="Kitchen, by the door",
        manufacturer="Acme",
        model="T 1",
        sw_version="2",
        backfilled=False,
        removed=False,
    )


async def test_an_event_is_json_with_its_attributes_as_an_object(tmp_path: Path) -> None:
    """The API hands events out as they are."""
    async with store_at(tmp_path) as store:
        await store.write(batch_of(change()))
        (event,) = (await store.events()).events
    encoded = json.loads(msgspec.json.encode(event))

    assert encoded["attributes"] == {"note": 'a \\ and a " and °C'}
    assert encoded["time"] == "2026-11-23T12:00:00.123456Z"


async def test_unknown_columns_of_a_stored_event_are_none(tmp_path: Path) -> None:
    """A removal has no state, an unplaced entity no area."""
    async with store_at(tmp_path) as store:
        await store.write(
            batch([b"events,entity_id=sun.sun,event_type=state_changed removed=true 1000"])
        )
        (event,) = (await store.events()).events

    assert event.removed
    assert (event.state, event.area_id, event.available, event.value) == (None, None, None, None)
    assert event.attributes == msgspec.Raw("{}")


async def test_writing_twice_changes_nothing(tmp_path: Path) -> None:
    """G3: any part of the journal may be sent again."""
    async with store_at(tmp_path) as store:
        batch = batch_of(*series(10))
        await store.write(batch)
        before = await store.events()
        await store.write(batch)

        assert await store.events() == before


async def test_a_second_write_of_a_point_adds_to_it(tmp_path: Path) -> None:
    """What the recorder gives back lacks the context; it must not take the live one's away."""
    live = b'events,entity_id=a.b,event_type=state_changed state_value="1",context_id="c" 1000'
    recovered = (
        b'events,entity_id=a.b,event_type=state_changed state_value="2",backfilled=true 1000'
    )
    async with store_at(tmp_path) as store:
        await store.write(batch([live, recovered]))
        (event,) = (await store.events()).events

    assert (event.state, event.context, event.backfilled) == ("2", Context("c"), True)


async def test_points_of_the_device_history_are_passed_over(tmp_path: Path) -> None:
    """They are no events, and `metadata.db` has them; a refusal would make dead letters of them."""
    good = batch_of(change()).lines()[0]
    history = [b"devices,device_id=d1 entity_count=1i 1000", b"entities,entity_id=a.b x=1 1000"]
    history += [b'identity_changes,entity_id=a.b,what=entity_id old="a.c" 1000']
    async with store_at(tmp_path) as store:
        answer = await store.write(batch([*history, good]))
        page = await store.events()

    assert isinstance(answer, Accepted)
    assert len(page.events) == 1


@pytest.mark.parametrize(
    "line",
    [
        b"not line protocol",
        b"rooms,device_id=d1 name=1 1000",
        b"events,entity_id=a.b state_value=1 1000",
        b"events,entity_id=a.b,event_type=state_changed value=99999999999999999999i 1000",
        b"\xff",
    ],
)
async def test_a_line_that_is_no_event_is_refused(tmp_path: Path, line: bytes) -> None:
    """Nothing of its batch is stored, so that delivery can halve it down to the one line."""
    good = batch_of(change()).lines()[0]
    async with store_at(tmp_path) as store:
        answer = await store.write(batch([good, line, good]))

        assert isinstance(answer, Refused)
        assert answer.reason.startswith("not an event: ")
        assert (await store.events()).events == []
        assert await store.write(batch([good])) == Accepted()


async def test_a_damaged_batch_is_refused(tmp_path: Path) -> None:
    """The journal's bytes are wrong, not this file: delivery finds the row and counts it."""
    async with store_at(tmp_path) as store:
        answer = await store.write(whole_rows([Row(1, 5, b"garbage", 0.0)]))

    assert answer == Refused(reason="points 1 to 5 cannot be unpacked")


async def answer_after(store: EmbeddedStore, statement: str) -> Outcome:
    """Return the answer of the store after a statement on its connection."""

    def execute(connection: Connection) -> None:
        connection.execute(statement)

    writer = store._database._writer
    assert writer is not None
    await writer.run(execute)
    return await store.write(batch_of(*series(200)))


async def test_a_full_disk_holds_everything(tmp_path: Path) -> None:
    """A person must make room; until then nothing is lost and nothing is stored by half."""
    async with store_at(tmp_path) as store:
        answer = await answer_after(store, "PRAGMA max_page_count = 20")

        assert isinstance(answer, Held)
        assert "Free space" in answer.advice
        assert (await store.events()).events == []


async def test_any_other_storage_error_is_retried(tmp_path: Path) -> None:
    """For example a file system that went read-only for a while."""
    async with store_at(tmp_path) as store:
        assert isinstance(await answer_after(store, "PRAGMA query_only = 1"), Unavailable)
        assert await answer_after(store, "PRAGMA query_only = 0") == Accepted()


async def test_damage_while_running_holds_everything(tmp_path: Path) -> None:
    """The points stay in the journal until somebody has looked at the disk."""
    async with store_at(tmp_path) as store:
        await store.write(batch_of(*series(200)))
    async with store_at(tmp_path) as store:
        overwrite_pages(tmp_path / "events.db")
        answer = await store.write(batch_of(*series(200)))

    assert isinstance(answer, Held)
    assert "Check the disk" in answer.advice


async def test_after_damage_the_next_start_reads_the_whole_store(tmp_path: Path) -> None:
    """Also a page that opening does not touch; reading all of it at every start takes too long."""
    async with store_at(tmp_path) as store:
        await store.write(batch_of(*series(2_000)))
    with (tmp_path / "events.db").open("r+b") as file:
        file.seek(20 * 4096)
        file.write(b"\xa5" * 4096)
    async with store_at(tmp_path) as store:
        assert store.damage is None
        await answer_after(store, "PRAGMA query_only = 0")
        store._suspect.touch()

    async with store_at(tmp_path) as store:
        assert "events.db was damaged" in str(store.damage)
        assert await store.write(batch_of(change())) == Accepted()
    async with store_at(tmp_path) as store:
        assert store.damage is None


@pytest.mark.parametrize(
    "damage", ["time_ns = 'x'", "time_ns = 1.5", "state = x'ff'", "duration_s = 'x'"]
)
async def test_a_stored_value_of_another_type_is_reported_as_damage(
    tmp_path: Path, damage: str
) -> None:
    """The table does not enforce types; the answer is an error of the store, not of the client."""
    async with store_at(tmp_path) as store:
        await store.write(batch_of(change()))
        await store._database.write(
            lambda connection: connection.execute(f"UPDATE events SET {damage}")
        )

        with pytest.raises(StorageDamaged):
            await store.events()
        if damage.startswith("time_ns"):
            with pytest.raises(StorageDamaged):
                await store.prune()


@pytest.mark.parametrize("time_ns", [-MAX_TIME_NS, MAX_TIME_NS])
async def test_events_of_the_first_and_the_last_moment_can_be_pruned(
    tmp_path: Path, time_ns: int
) -> None:
    """What is older than they are by the retention is outside of what SQLite can compare."""
    async with store_at(tmp_path) as store:
        await store.write(batch_of(msgspec.structs.replace(change(), time_ns=time_ns)))
        assert await store.prune() is False
        assert len((await store.events()).events) == 1


def overwrite_pages(path: Path) -> None:
    """Spoil every page but the first."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))


async def test_a_file_that_is_no_database_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The service starts nevertheless, reports it, and keeps the old file."""
    (tmp_path / "events.db").write_bytes(b"\xa5" * 10_000)
    async with store_at(tmp_path) as store:
        assert await store.write(batch_of(change())) == Accepted()

    assert "damaged" in caplog.text
    (aside,) = tmp_path.glob("events.db.damaged-*")
    assert aside.read_bytes() == b"\xa5" * 10_000


async def test_events_survive_a_restart(tmp_path: Path) -> None:
    """Accepted means stored for good."""
    async with store_at(tmp_path) as store:
        assert await store.ping()
        await store.write(batch_of(*series(3)))

    async with store_at(tmp_path) as store:
        assert states((await store.events()).events) == ["2", "1", "0"]


# Questions


async def test_the_newest_events_come_first(tmp_path: Path) -> None:
    """A query without a start returns the newest events."""
    async with store_at(tmp_path) as store:
        await store.write(batch_of(*series(5)))
        page = await store.events(limit=2)

    assert states(page.events) == ["4", "3"]
    assert page.next_cursor is not None


async def test_pages_together_hold_every_event_once(tmp_path: Path) -> None:
    """Also when many events have one time, and when new ones arrive between two pages."""
    at_once = [change(f"light.n{number}", str(number)) for number in range(25)]
    async with store_at(tmp_path) as store:
        await store.write(batch_of(*at_once, *series(10)))
        expected = states((await store.events(limit=1000)).events)
        seen: list[str | None] = []
        cursor: str | None = None
        while True:
            page = await store.events(limit=7, cursor=cursor)
            seen += states(page.events)
            cursor = page.next_cursor
            if cursor is None:
                break
            await store.write(batch_of(change("light.new", "new", time_ns=NOON_NS + SECOND)))

    assert len(seen) == 35
    assert seen == expected


async def test_the_last_page_has_no_cursor(tmp_path: Path) -> None:
    """Also when it is exactly full."""
    async with store_at(tmp_path) as store:
        await store.write(batch_of(*series(4)))
        page = await store.events(limit=4)

    assert len(page.events) == 4
    assert page.next_cursor is None


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ({"entity_id": "light.hall"}, ["on"]),
        ({"domain": "light"}, ["on"]),
        ({"domain": "switch"}, []),
        ({"area_id": "kitchen", "domain": "sensor"}, ["2", "1", "0"]),
        ({"area_id": "cellar"}, []),
        ({"entity_id": "sensor.kitchen", "start_ns": NOON_NS - SECOND}, ["2", "1"]),
        ({"entity_id": "sensor.kitchen", "end_ns": NOON_NS}, ["1", "0"]),
        ({"start_ns": NOON_NS - SECOND, "end_ns": NOON_NS}, ["1"]),
    ],
)
async def test_stored_events_are_filtered(
    tmp_path: Path, question: dict[str, object], expected: list[str]
) -> None:
    """Each condition alone and together; a start is part of the span, an end is not."""
    async with store_at(tmp_path) as store:
        await store.write(
            batch_of(*series(3), change("light.hall", "on", time_ns=NOON_NS + SECOND))
        )
        page = await store.events(**question)  # type: ignore[arg-type]  # a table of cases

    assert states(page.events) == expected


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "1",
        "1_",
        "_1",
        "1_2_3",
        "1_-2",
        "9" * 30 + "_1",
        "9" * 19 + "_1",
        "1_2; DROP TABLE events",
    ],
)
async def test_a_cursor_that_is_not_ours_is_refused(tmp_path: Path, cursor: str) -> None:
    """The API answers with a problem, not with a page from somewhere."""
    async with store_at(tmp_path) as store:
        with pytest.raises(ValueError, match="not a cursor"):
            await store.events(cursor=cursor)


# Retention


async def test_expired_events_are_deleted(tmp_path: Path) -> None:
    """Days are counted from the event's own time, whenever it was written."""
    async with store_at(tmp_path, retention_days=1) as store:
        await store.write(
            batch_of(
                change(state="old", time_ns=NOON_NS - DAY - SECOND),
                change(state="young", time_ns=NOON_NS - DAY + SECOND),
            )
        )
        more = await store.prune()

        assert not more
        assert states((await store.events()).events) == ["young"]


HOUR_S = 3_600.0


class WrongDates:
    """Two clocks: one that a test sets, and one that only moves forward."""

    def __init__(self) -> None:
        self.now_ns = NOON_NS
        self.monotonic_s = 0.0

    def store(self, folder: Path) -> EmbeddedStore:
        """Return a store of thirty days that is not open yet."""
        return EmbeddedStore(
            folder / "events.db",
            parse=parse_line,
            retention_days=30,
            clock=lambda: self.now_ns / SECOND,
            monotonic=lambda: self.monotonic_s,
        )


def thirty_days() -> list[Change]:
    """Return an event for every day of the retention."""
    return [change(state=str(day), time_ns=NOON_NS - day * DAY) for day in range(30)]


async def left(store: EmbeddedStore) -> int:
    """Delete what may be deleted now, and return how many events are left."""
    while await store.prune():
        pass
    return len((await store.events(limit=1000)).events)


@pytest.mark.parametrize("ahead_ns", [-56 * 365 * DAY, 14 * 365 * DAY])
async def test_a_machine_that_starts_with_a_wrong_date_deletes_nothing(
    tmp_path: Path, ahead_ns: int
) -> None:
    """The events show another date, also after weeks."""
    dates = WrongDates()
    async with dates.store(tmp_path) as store:
        await store.write(batch_of(*thirty_days()))
        dates.now_ns += ahead_ns
        assert await left(store) == 30
        dates.monotonic_s += 1_000 * HOUR_S
        assert await left(store) == 30


async def test_a_wrong_date_that_home_assistant_shares_deletes_nothing_for_a_day(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Both may run on one machine: then the newest events show the wrong date as well."""
    dates = WrongDates()
    async with dates.store(tmp_path) as store:
        await store.write(batch_of(*thirty_days()))
        dates.now_ns += 14 * 365 * DAY
        await store.write(batch_of(change(time_ns=dates.now_ns)))
        assert await left(store) == 31
        dates.monotonic_s += 23.9 * HOUR_S
        assert await left(store) == 31
        dates.now_ns = NOON_NS  # the network has set it right
        assert await left(store) == 31
        dates.monotonic_s += 100 * HOUR_S
        assert await left(store) == 31
    assert "the date may be wrong" in caplog.text


async def test_after_a_long_pause_old_events_go_one_day_an_hour(tmp_path: Path) -> None:
    """The date is right, and stays: a day after the start they begin to go."""
    dates = WrongDates()
    async with dates.store(tmp_path) as store:
        await store.write(batch_of(*thirty_days()))
        dates.now_ns += 20 * DAY
        await store.write(batch_of(change(time_ns=dates.now_ns)))
        assert await left(store) == 31
        dates.monotonic_s += 24 * HOUR_S
        assert await left(store) == 30
        assert await left(store) == 30
        dates.monotonic_s += HOUR_S
        assert await left(store) == 29
        for _ in range(30):
            dates.monotonic_s += HOUR_S
            count = await left(store)

    assert count == 12  # ten of the old ones, the one of the very border, and the new one


async def test_events_with_an_absurd_date_hinder_no_retention_for_long(tmp_path: Path) -> None:
    """A device that reports 1970 must not make the store grow without end."""
    dates = WrongDates()
    async with dates.store(tmp_path) as store:
        await store.write(batch_of(*thirty_days(), change(state="1970", time_ns=5)))
        dates.now_ns += DAY
        await store.write(batch_of(change(time_ns=dates.now_ns)))
        assert await left(store) == 32
        for _ in range(3):
            dates.monotonic_s += 24 * HOUR_S
            count = await left(store)

    assert count == 31


async def test_pruning_goes_in_small_steps_beside_writing(tmp_path: Path) -> None:
    """A month of old events is no reason to make a batch wait."""
    async with store_at(tmp_path, retention_days=0.0) as store:
        await store.write(batch_of(*series(1200)))
        running = asyncio.create_task(store.run(), name="retention")
        counts: list[int] = []
        async with asyncio.timeout(10):
            while not counts or counts[-1]:
                counts.append(len((await store.events(limit=5000, end_ns=NOON_NS)).events))
                await store.write(batch_of(change(time_ns=NOON_NS + DAY)))
        running.cancel()
        await asyncio.wait({running})

        assert states((await store.events()).events) == ["21.5", "1199"]


async def test_a_step_of_pruning_is_small(tmp_path: Path) -> None:
    """A write waits for one step at most, however much is too old."""
    async with store_at(tmp_path, retention_days=0.0) as store:
        await store.write(batch_of(*series(1201)))
        left = []
        for _ in range(3):
            more = await store.prune()
            left.append((more, len((await store.events(limit=5000, end_ns=NOON_NS)).events)))

    assert left == [(True, 700), (True, 200), (False, 0)]


async def steps_of(store: EmbeddedStore, *, entity_id: str, start_ns: int) -> int:
    """Ask for an entity's events and return how many steps SQLite's machine took, in tens."""
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    await store._database.read(lambda it: it.set_progress_handler(count, 10))
    page = await store.events(entity_id=entity_id, start_ns=start_ns, limit=1000)
    assert len(page.events) == 300
    return steps


_CROWD = """
WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?1 - 1)
INSERT INTO events (time_ns, entity_id, event_type, domain, area_id)
SELECT ?2 - n * 1000000, 'sensor.other_' || n % 500, 'state_changed', 'sensor', 'hall' FROM numbers
"""


async def test_a_page_of_events_costs_only_what_it_holds(tmp_path: Path) -> None:
    """One entity's last day is found by an index, in milliseconds among a million events.

    SQLite's own steps are counted: they say the same on every machine.
    """
    async with store_at(tmp_path) as store:
        await store.write(batch_of(*series(300)))
        alone = await steps_of(store, entity_id="sensor.kitchen", start_ns=NOON_NS - DAY)
        await store._database.write(lambda it: it.execute(_CROWD, (50_000, NOON_NS - SECOND)))
        crowded = await steps_of(store, entity_id="sensor.kitchen", start_ns=NOON_NS - DAY)

    assert crowded <= alone + 100


async def test_retention_survives_a_failing_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Old events may stay for another minute; the loop goes on."""
    async with store_at(tmp_path, retention_days=0.0) as store:
        await store.write(batch_of(*series(5)))
        await answer_after(store, "PRAGMA query_only = 1")
        running = asyncio.create_task(store.run(), name="retention")
        async with asyncio.timeout(10):
            while "Old events were not deleted" not in caplog.text:
                await asyncio.sleep(0.001)
            await answer_after(store, "PRAGMA query_only = 0")
            while (await store.events(end_ns=NOON_NS)).events:
                await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.wait({running})

        assert running.cancelled()


async def test_parsing_does_not_happen_on_the_event_loop(tmp_path: Path) -> None:
    """Reading five thousand lines takes a tenth of a second; the reader must not wait for it."""
    here = asyncio.get_running_loop()
    found: list[bool] = []

    def parse(line: bytes) -> StoredPoint:
        try:
            found.append(asyncio.get_running_loop() is here)
        except RuntimeError:
            found.append(False)
        return parse_line(line)

    async with EmbeddedStore(tmp_path / "events.db", parse=parse, retention_days=1) as store:
        await store.write(batch_of(change()))

    assert found == [False]
