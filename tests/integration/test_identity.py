"""The identity of entities across renames, moves and split devices, as `/api/v1/identity` shows it.

Each process has the catalog, its file and the API; Home Assistant's answers change between them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from app.backfill.last_states import LastStates
from app.discovery.catalog import Catalog
from app.discovery.identity_table import MAX_CHANGES, store_identity_changes
from app.discovery.refresh import Discovery
from app.discovery.store import CatalogStore
from app.homeassistant.messages import Event, EventData
from app.model import NOWHERE, Change, IdentityChange, nanoseconds
from app.runtime.errors import CommandFailed
from app.runtime.retry import Backoff
from tests.fakes.discovery import Answers
from tests.fakes.service import api_client, components

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
OLD, NEW, NEWER = "sensor.thermometer", "sensor.kitchen", "sensor.kitchen_air"


def minute(number: int) -> datetime:
    """Return the time so many minutes after noon."""
    return NOON + timedelta(minutes=number)


def row(entity_id: str, unique_id: str = "u1", **more: object) -> dict[str, object]:
    """Return the registry row of an entity, which was changed at noon if it does not say when."""
    found = {"entity_id": entity_id, "platform": "mqtt", "unique_id": unique_id, "device_id": "d1"}
    return {**found, "area_id": None, "modified_at": NOON.timestamp(), **more}


def seconds(moment: datetime) -> float:
    """Return a time as the registry has it."""
    return moment.timestamp()


class Process:
    """A process with the catalog; `answers` are Home Assistant's."""

    def __init__(self, folder: Path, answers: Answers) -> None:
        self.answers = answers
        self.time = minute(0)
        self.last_states = LastStates()
        self.catalog = Catalog()
        self.metadata = CatalogStore(
            folder / "metadata.db", catalog=self.catalog, source="home_assistant"
        )
        self.discovery = Discovery(
            commands=answers.commands,
            catalog=self.catalog,
            listeners=(self.metadata,),
            backoff=Backoff(first_s=0.01, max_s=0.01),
            interval_s=1_000.0,
            first_seen_ns=self.last_states.first_seen_ns,
            now=lambda: self.time,
        )

    async def listed(self, *entities: dict[str, object], at: datetime) -> None:
        """List these entities at a time."""
        self.answers.answers["entity"] = list(entities)
        self.time = at
        self.discovery.connected()
        await self.discovery.trigger()

    def announce(self, former: str, entity_id: str, *, at: datetime) -> None:
        """Receive the events of a rename: of the registry, and of the state under the new id."""
        data = EventData(action="update", entity_id=entity_id, old_entity_id=former)
        self.discovery.registry_updated(Event("entity_registry_updated", data, time_fired=at))
        self.last_states.update([appearance(entity_id, at=at + timedelta(milliseconds=1))])

    async def get(self, entity_id: str) -> httpx.Response:
        """Request the identity of an entity."""
        async with api_client(components(metadata=self.metadata)) as client:
            return await client.get("/api/v1/identity", params={"entity_id": entity_id})

    async def names(self, entity_id: str) -> list[tuple[object, ...]]:
        """Return the ids of an entity, each with its span in minutes after noon and the source."""
        answer = (await self.get(entity_id)).json()
        return [
            (
                name["entity_id"],
                minutes(name["since"]),
                minutes(name["until"]),
                name["since_source"],
            )
            for name in answer["names"]
        ]

    async def changes(self, entity_id: str) -> list[tuple[object, ...]]:
        """Return the changes of an entity: what, old, new, minutes after noon, and the source."""
        answer = (await self.get(entity_id)).json()
        return [
            (each["what"], each["old"], each["new"], minutes(each["at"]), each["at_source"])
            for each in answer["changes"]
        ]


def minutes(text: str | None) -> float | None:
    """Return a time of the API in minutes after noon."""
    return None if text is None else (datetime.fromisoformat(text) - NOON) / timedelta(minutes=1)


def appearance(entity_id: str, *, at: datetime) -> Change:
    """Return the first change of an entity under an id."""
    return Change(
        entity_id=entity_id,
        domain="sensor",
        time_ns=nanoseconds(at),
        state="21.5",
        previous_state=None,
        duration_s=None,
        attributes=b"{}",
        device_class=None,
        unit_of_measurement=None,
        friendly_name=None,
        context=None,
        placement=NOWHERE,
    )


@contextlib.asynccontextmanager
async def running(folder: Path, answers: Answers) -> AsyncIterator[Process]:
    """Run a process; leaving stops it."""
    process = Process(folder, answers)
    async with process.metadata:
        task = asyncio.create_task(process.discovery.run(lambda: None))
        try:
            yield process
        finally:
            task.cancel()
            await asyncio.wait({task})


@pytest.fixture
def answers() -> Answers:
    """Return a Home Assistant with one device, in the hall."""
    return Answers({"device": [{"id": "d1", "area_id": "hall"}]})


async def test_a_rename_while_connected_has_the_time_of_its_event(
    tmp_path: Path, answers: Answers
) -> None:
    """And the first point under the new id; both ids lead to the same chain."""
    async with running(tmp_path, answers) as process:
        await process.listed(row(OLD), at=minute(0))
        process.announce(OLD, NEW, at=minute(5))
        await process.listed(row(NEW, modified_at=seconds(minute(5))), at=minute(6))

        chain = await process.names(OLD)
        answer = (await process.get(NEW)).json()

        assert chain == [(OLD, None, 5.0, None), (NEW, 5.0, None, "event")]
        assert await process.names(NEW) == chain
        assert await process.changes(NEW) == [("entity_id", OLD, NEW, 5.0, "event")]
    assert answer["entity_id"] == NEW
    assert [name["first_point"] for name in answer["names"]] == [
        None,
        "2026-11-23T12:05:00.001000Z",
    ]


async def test_a_rename_while_the_service_was_down_has_the_time_of_its_row(
    tmp_path: Path, answers: Answers
) -> None:
    """No event announced it; where the row has no time, it is that of the discovery."""
    async with running(tmp_path, answers) as first:
        await first.listed(row(OLD), at=minute(0))
    async with running(tmp_path, answers) as second:
        await second.listed(row(NEW, modified_at=seconds(minute(7))), at=minute(9))
        assert await second.names(OLD) == [(OLD, None, 7.0, None), (NEW, 7.0, None, "registry")]
    async with running(tmp_path, answers) as third:
        await third.listed(row(NEWER, modified_at=None), at=minute(12))
        names = await third.names(OLD)
        firsts = (await third.get(OLD)).json()["names"]

    assert names[1:] == [(NEW, 7.0, 12.0, "registry"), (NEWER, 12.0, None, "discovered")]
    assert [name["first_point"] for name in firsts] == [None, None, None]


async def test_a_chain_of_renames_between_two_listings_keeps_every_step(
    tmp_path: Path, answers: Answers
) -> None:
    """The listings show only its two ends; a step back to the first id is one of them."""
    async with running(tmp_path, answers) as process:
        await process.listed(row(OLD), at=minute(0))
        for number, (former, entity_id) in enumerate(
            [(OLD, NEW), (NEW, NEWER), (NEWER, OLD), (OLD, NEWER)], start=1
        ):
            process.announce(former, entity_id, at=minute(number))
        await process.listed(row(NEWER), at=minute(6))

        chain = [
            (OLD, None, 1.0, None),
            (NEW, 1.0, 2.0, "event"),
            (NEWER, 2.0, 3.0, "event"),
            (OLD, 3.0, 4.0, "event"),
            (NEWER, 4.0, None, "event"),
        ]
        assert await process.names(NEW) == chain
    async with running(tmp_path, answers) as after:
        await after.listed(row(NEWER), at=minute(8))
        assert await after.names(OLD) == chain, "a restart adds nothing"


async def test_a_rename_after_a_captured_one_is_recorded_when_it_was_missed(
    tmp_path: Path, answers: Answers
) -> None:
    """The last steps of a chain may fall into a gap."""
    async with running(tmp_path, answers) as process:
        await process.listed(row(OLD), at=minute(0))
        process.announce(OLD, NEW, at=minute(1))
        await process.listed(row(NEWER, modified_at=seconds(minute(3))), at=minute(4))

        assert await process.names(NEWER) == [
            (OLD, None, 1.0, None),
            (NEW, 1.0, 3.0, "event"),
            (NEWER, 3.0, None, "registry"),
        ]


async def test_a_rename_announced_while_the_entities_are_listed_is_recorded_once(
    tmp_path: Path, answers: Answers
) -> None:
    """The listing may be older or newer than the event."""
    async with running(tmp_path, answers) as process:
        await process.listed(row(OLD), at=minute(0))
        process.announce(OLD, NEW, at=minute(1))
        await process.listed(row(OLD), at=minute(2))
        assert await process.changes(OLD) == []
        await process.listed(row(NEW), at=minute(3))
        assert await process.changes(NEW) == [("entity_id", OLD, NEW, 1.0, "event")]

        await process.listed(row(NEWER, modified_at=seconds(minute(4))), at=minute(5))
        process.announce(NEW, NEWER, at=minute(4))
        await process.listed(row(NEWER, modified_at=seconds(minute(4))), at=minute(6))
        assert [each[2] for each in await process.changes(NEW)] == [NEW, NEWER]


async def test_a_rename_that_was_undone_unseen_does_not_disturb_the_next(
    tmp_path: Path, answers: Answers
) -> None:
    """Two listings without it: the event of the step back was missed."""
    async with running(tmp_path, answers) as process:
        await process.listed(row(OLD), at=minute(0))
        process.announce(OLD, NEW, at=minute(1))
        await process.listed(row(OLD), at=minute(2))
        await process.listed(row(OLD), at=minute(3))
        process.announce(OLD, NEWER, at=minute(4))
        await process.listed(row(NEWER), at=minute(5))

        assert await process.names(OLD) == [(OLD, None, 4.0, None), (NEWER, 4.0, None, "event")]


async def test_a_name_that_another_entity_takes_over_does_not_join_the_chains(
    tmp_path: Path, answers: Answers
) -> None:
    """The old name leads to the entity that has it now; the others have their own chains."""
    async with running(tmp_path, answers) as process:
        await process.listed(row(OLD, "u1"), row(NEWER, "u2"), at=minute(0))
        process.announce(OLD, NEW, at=minute(1))
        process.announce(NEWER, OLD, at=minute(2))
        await process.listed(row(NEW, "u1"), row(OLD, "u2"), at=minute(3))

        assert await process.names(NEW) == [(OLD, None, 1.0, None), (NEW, 1.0, None, "event")]
        taken = [(NEWER, None, 2.0, None), (OLD, 2.0, None, "event")]
        assert await process.names(OLD) == taken
        assert await process.names(NEWER) == taken

    async with running(tmp_path, answers) as after:  # two swapped in a gap, and a new third
        swapped = [row(OLD, "u1"), row(NEW, "u2"), row(NEWER, "u3")]
        later = [{**each, "modified_at": seconds(minute(5))} for each in swapped]
        await after.listed(*later, at=minute(6))

        assert [name[0] for name in await after.names(OLD)] == [OLD, NEW, OLD]
        assert [name[0] for name in await after.names(NEW)] == [NEWER, OLD, NEW]
        assert [name[0] for name in await after.names(NEWER)] == [NEWER]


async def test_a_removed_entity_keeps_its_chain_and_its_end(
    tmp_path: Path, answers: Answers
) -> None:
    """Until its newest id is another entity's."""
    async with running(tmp_path, answers) as process:
        await process.listed(row(OLD), at=minute(0))
        process.announce(OLD, NEW, at=minute(1))
        await process.listed(row(NEW), at=minute(2))
        await process.listed(at=minute(5))

        assert await process.names(OLD) == [(OLD, None, 1.0, None), (NEW, 1.0, 5.0, "event")]


async def test_moves_of_an_entity_and_of_its_device_are_changes_of_the_entity(
    tmp_path: Path, answers: Answers
) -> None:
    """Its own area and device, and the area of the device."""
    async with running(tmp_path, answers) as process:
        await process.listed(row(OLD), at=minute(0))
        moved = row(OLD, area_id="attic", device_id="d2", modified_at=seconds(minute(1)))
        await process.listed(moved, at=minute(2))
        answers.answers["device"] = [{"id": "d1", "area_id": "shed"}, {"id": "d2"}]
        await process.listed(moved, at=minute(3))
        at = seconds(minute(4))
        answers.answers["device"] = [{"id": "d2", "area_id": "attic", "modified_at": at}]
        await process.listed(moved, at=minute(5))

        assert await process.changes(OLD) == [
            ("device_id", "d1", "d2", 1.0, "registry"),
            ("area_id", None, "attic", 1.0, "registry"),
            ("area_id", "hall", "shed", 3.0, "discovered"),
            ("area_id", None, "attic", 4.0, "registry"),
        ]
        assert await process.names(OLD) == [(OLD, None, None, None)]


async def test_a_split_device_is_recorded_once_with_its_old_id(
    tmp_path: Path, answers: Answers
) -> None:
    """Home Assistant lists it at every connection; the entity's own device is a change as well."""
    async with running(tmp_path, answers) as process:
        await process.listed(row(OLD), at=minute(0))
    answers.answers["device"] = [{"id": "s1"}, {"id": "s2"}]
    answers.answers["split"] = {"d1": {"split_ids": ["s1", "s2"], "primary_id": None}}
    for number in (10, 20, 30):
        async with running(tmp_path, answers) as process:
            await process.listed(row(OLD, device_id="s2"), at=minute(number))
            changes = await process.changes(OLD)
        # A listing that failed once does not make them new.
        failed = CommandFailed("list", code="unknown_error", message="Unknown error")
        splits, answers.answers["split"] = answers.answers["split"], failed
        async with running(tmp_path, answers) as process:
            await process.listed(row(OLD, device_id="s2"), at=minute(number + 5))
        answers.answers["split"] = splits

    assert changes == [
        ("device_id", "d1", "s2", 10.0, "discovered"),
        ("split", "d1", "s2", 10.0, "discovered"),
    ]


async def test_home_assistant_without_split_devices_is_no_error(
    tmp_path: Path, answers: Answers, caplog: pytest.LogCaptureFixture
) -> None:
    """Versions before 2026.8 do not know the command."""
    answers.answers["split"] = CommandFailed(
        "config/device_registry/list_composite_splits",
        code="unknown_command",
        message="Unknown command.",
    )
    with caplog.at_level(logging.DEBUG, logger="app.discovery"):
        async with running(tmp_path, answers) as process:
            await process.listed(row(OLD), at=minute(0))
            assert await process.names(OLD) == [(OLD, None, None, None)]

    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "composite_splits" not in caplog.text


async def test_changes_of_a_failed_write_are_stored_by_the_next(
    tmp_path: Path, answers: Answers
) -> None:
    """With the time of their event."""
    async with running(tmp_path, answers) as process:
        await process.listed(row(OLD), at=minute(0))
        execute(tmp_path, "ALTER TABLE refreshes RENAME TO elsewhere")
        process.announce(OLD, NEW, at=minute(1))
        await process.listed(row(NEW), at=minute(2))
        assert (await process.get(NEW)).status_code == 404, "nothing was stored"
        execute(tmp_path, "ALTER TABLE elsewhere RENAME TO refreshes")
        await process.listed(row(NEW), at=minute(3))

        assert await process.changes(NEW) == [("entity_id", OLD, NEW, 1.0, "event")]


async def test_only_the_newest_changes_of_identity_are_kept(
    tmp_path: Path, answers: Answers
) -> None:
    """An entity that is renamed every minute cannot fill the disk."""
    async with running(tmp_path, answers):
        pass
    one = IdentityChange(
        what="area_id", device_id="d1", old="a", new="b", at=NOON, at_source="event"
    )
    with contextlib.closing(sqlite3.connect(tmp_path / "metadata.db")) as connection, connection:
        store_identity_changes(connection, [one] * (MAX_CHANGES - 1))
        store_identity_changes(connection, [msgspec.structs.replace(one, new="c")] * 2)

    assert ids(tmp_path) == (2, MAX_CHANGES + 1, MAX_CHANGES)


async def test_an_unknown_entity_has_no_identity(tmp_path: Path, answers: Answers) -> None:
    """The code distinguishes it from a wrong address; a wrong parameter is refused."""
    async with running(tmp_path, answers) as process:
        await process.listed(row(OLD), at=minute(0))
        unknown = await process.get("sensor.none")
        async with api_client(components(metadata=process.metadata)) as client:
            wrong = await client.get("/api/v1/identity?entity=sensor.none")
            extra = await client.get(f"/api/v1/identity?entity_id={OLD}&limit=1")

    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_entity")
    assert [wrong.status_code, extra.status_code] == [422, 422]


def execute(folder: Path, sql: str) -> None:
    """Change the file behind the back of the process."""
    with contextlib.closing(sqlite3.connect(folder / "metadata.db")) as connection, connection:
        connection.execute(sql)


def ids(folder: Path) -> Sequence[Any]:
    """Return the first and last number, and how many changes the file has."""
    with contextlib.closing(sqlite3.connect(folder / "metadata.db")) as connection:
        found: Sequence[Any] = connection.execute(
            "SELECT min(id), max(id), count(*) FROM identity_changes"
        ).fetchone()
    return found
