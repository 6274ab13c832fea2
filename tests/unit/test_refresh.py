"""Discovery: when the registries are listed, and what comes of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from app.discovery.catalog import Catalog
from app.discovery.refresh import Discovery, RegistryUpdate
from app.discovery.registries import KINDS, EntityRow, Registries
from app.homeassistant.messages import Event, EventData
from app.runtime.errors import CommandFailed, SourceUnavailable
from app.runtime.logging import repeats
from app.runtime.retry import Backoff
from tests.fakes.discovery import Answers, discovery_of
from tests.fakes.recordings import VERSIONS, event_messages, recording

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@contextlib.asynccontextmanager
async def running(discovery: Discovery) -> AsyncIterator[list[int]]:
    """Let it run; the list grows with every refresh."""
    refreshes: list[int] = []
    task = asyncio.create_task(discovery.run(lambda: refreshes.append(1)))
    try:
        yield refreshes
    finally:
        task.cancel()
        await asyncio.wait({task})


async def until(met: Callable[[], object]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(5):
        while not met():
            await asyncio.sleep(0.001)


def updated(kind: str, *, entity_id: str | None = None, old_entity_id: str | None = None) -> Event:
    """Return a registry event."""
    data = EventData(action="update", entity_id=entity_id, old_entity_id=old_entity_id)
    return Event(f"{kind}_registry_updated", data)


class Notebook:
    """A listener that writes down the updates."""

    def __init__(self) -> None:
        self.news: list[RegistryUpdate] = []

    async def refreshed(self, update: RegistryUpdate) -> None:
        """Write them down."""
        self.news.append(update)


async def test_every_connection_lists_all_registries() -> None:
    """Whatever changed while we were away is known soon after."""
    answers = Answers({})
    discovery = discovery_of(answers)

    async with running(discovery) as refreshes:
        assert not answers.asked
        discovery.connected()
        await until(lambda: len(refreshes) == 1)
        discovery.lost()
        discovery.connected()
        await until(lambda: len(refreshes) == 2)

    assert answers.asked == [*KINDS, *KINDS]


async def test_every_interval_lists_all_registries(caplog: pytest.LogCaptureFixture) -> None:
    """Events may be refused to a read-only user, or be missed; people search for these lines."""
    discovery = discovery_of(Answers({}), interval_s=0.02)

    with caplog.at_level(logging.INFO):
        async with running(discovery) as refreshes:
            discovery.connected()
            await until(lambda: len(refreshes) == 2)
            await until(lambda: "refresh completed" in caplog.text)

    lines = [record.message for record in caplog.records]
    assert lines.index("PERIODIC DISCOVERY REFRESH") < lines.index(
        "Periodic discovery refresh completed successfully"
    )


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("device", {"device", "config_entry"}),
        ("entity", {"entity"}),
        ("area", {"area"}),
        ("floor", {"floor"}),
        ("label", {"label"}),
    ],
)
async def test_a_registry_event_lists_the_registry_it_names(kind: str, asked: set[str]) -> None:
    """And no other: a new label is no reason to ask for megabytes."""
    answers = Answers({})
    discovery = discovery_of(answers)

    async with running(discovery) as refreshes:
        discovery.connected()
        await until(lambda: refreshes)
        answers.asked.clear()
        discovery.registry_updated(updated(kind))
        await until(lambda: len(refreshes) == 2)

    assert set(answers.asked) == asked


async def test_many_registry_events_are_one_refresh() -> None:
    """Deleting an area sends an event for each of its devices."""
    answers = Answers({})
    discovery = discovery_of(answers, settle_s=0.02)

    async with running(discovery) as refreshes:
        discovery.connected()
        await until(lambda: refreshes)
        for _ in range(5):
            discovery.registry_updated(updated("device"))
            discovery.registry_updated(updated("area"))
            await asyncio.sleep(0)
        await until(lambda: len(refreshes) == 2)

    assert answers.asked.count("device") == 2
    assert answers.asked.count("area") == 2


async def test_endless_registry_events_do_not_postpone_a_refresh() -> None:
    """The time to settle is counted from the first event."""
    discovery = discovery_of(Answers({}), settle_s=0.05)

    async with running(discovery) as refreshes:
        discovery.connected()
        await until(lambda: refreshes)
        async with asyncio.timeout(5):
            while len(refreshes) < 2:
                discovery.registry_updated(updated("area"))
                await asyncio.sleep(0.001)


async def test_an_event_during_a_refresh_is_not_forgotten() -> None:
    """The listing under way may be of before."""
    gate = asyncio.Event()
    answers = Answers({"label": gate})
    discovery = discovery_of(answers)

    async with running(discovery) as refreshes:
        discovery.connected()
        await until(lambda: "label" in answers.asked)
        discovery.registry_updated(updated("entity"))
        gate.set()
        await until(lambda: len(refreshes) == 2)

    assert answers.asked.count("entity") == 2


async def test_a_rename_is_followed_at_once() -> None:
    """Its two state changes come right after the registry event."""
    catalog = Catalog()
    catalog.replace(Registries(entities=(EntityRow("light.a", area_id="hall"),)))
    discovery = discovery_of(Answers({}), catalog=catalog)

    discovery.registry_updated(updated("entity", entity_id="light.b", old_entity_id="light.a"))

    assert catalog.placement("light.b").area_id == "hall"


async def test_a_failed_refresh_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """A lost second connection is no reason to give up areas."""
    answers = Answers({"area": SourceUnavailable("hung up")})
    discovery = discovery_of(answers)

    async with running(discovery) as refreshes:
        discovery.connected()
        await until(lambda: "hung up" in caplog.text)
        assert not refreshes
        answers.answers["area"] = [{"area_id": "hall"}]
        await until(lambda: refreshes)

    assert discovery.status().areas == 1
    assert "Discovery failed, next attempt in 0.0s: hung up" in caplog.text


async def test_an_unforeseen_exception_costs_one_refresh() -> None:
    """A row that breaks our own code must not end the loop, and the service with it."""

    class Broken(Notebook):
        async def refreshed(self, update: RegistryUpdate) -> None:
            await super().refreshed(update)
            if len(self.news) == 1:
                raise OverflowError("year 9999")

    listener = Broken()
    discovery = discovery_of(Answers({}), listeners=(listener,))

    async with running(discovery):
        discovery.connected()
        await until(lambda: len(listener.news) == 2)


async def test_listeners_get_the_registries_before_and_after_a_refresh() -> None:
    """Whether everything was listed, too."""
    notebook = Notebook()
    answers = Answers({"entity": [{"entity_id": "light.a"}]})
    discovery = discovery_of(answers, listeners=(notebook,))

    async with running(discovery):
        discovery.connected()
        await until(lambda: notebook.news)
        answers.answers["entity"] = [{"entity_id": "light.b"}]
        discovery.registry_updated(updated("entity"))
        await until(lambda: len(notebook.news) == 2)

    first, second = notebook.news
    assert (first.is_full, second.is_full) == (True, False)
    assert first.former == Registries()
    assert first.now is second.former
    assert [row.entity_id for row in second.now.entities] == ["light.b"]


async def test_a_refresh_can_be_requested() -> None:
    """The result has the counts."""
    discovery = discovery_of(Answers({"device": [{"id": "d1"}], "area": [{"area_id": "hall"}]}))

    async with running(discovery):
        discovery.connected()
        found = await discovery.trigger()

    assert (found.devices, found.entities, found.areas) == (1, 0, 1)
    assert found.took_s >= 0


async def test_a_requested_refresh_that_fails_raises_the_reason() -> None:
    """Not connected, refused, or lost on the way."""
    answers = Answers({"device": CommandFailed("list", code="unauthorized", message="No")})
    discovery = discovery_of(answers)

    with pytest.raises(SourceUnavailable, match="not connected"):
        await discovery.trigger()
    async with running(discovery):
        discovery.connected()
        with pytest.raises(CommandFailed):
            await discovery.trigger()
        answers.answers["device"] = asyncio.Event()
        asked = asyncio.create_task(discovery.trigger())
        await asyncio.sleep(0)
        discovery.lost()
        with pytest.raises(SourceUnavailable, match="was lost"):
            await asked


async def test_a_stop_fails_a_requested_refresh_that_is_waiting() -> None:
    """A request must not hang while the service ends."""
    answers = Answers({"device": asyncio.Event()})
    discovery = discovery_of(answers)

    async with running(discovery):
        discovery.connected()
        asked = asyncio.create_task(discovery.trigger())
        await until(lambda: "device" in answers.asked)

    with pytest.raises(SourceUnavailable, match="stopping"):
        await asked


class Clocked:
    """A discovery whose day can be moved on."""

    def __init__(self) -> None:
        self.moment = NOON
        self.catalog = Catalog(now=lambda: self.moment)
        self.discovery = Discovery(
            commands=Answers({}).commands,
            catalog=self.catalog,
            backoff=Backoff(max_s=1),
            interval_s=60,
            now=lambda: self.moment,
        )


def test_a_catalog_is_stale_after_two_intervals() -> None:
    """One may be late; after two a person should look."""
    clocked = Clocked()
    clocked.catalog.replace(Registries())

    clocked.moment += timedelta(seconds=120)
    assert not clocked.discovery.status().is_stale
    clocked.moment += timedelta(seconds=1)
    status = clocked.discovery.status()

    assert status.is_stale
    assert status.last_refresh == NOON
    assert status.reason is not None
    assert "not refreshed for 2 min" in status.reason


def test_a_wall_clock_that_is_set_forward_does_not_make_a_catalog_stale() -> None:
    """Once this process has listed everything, only passed time counts."""
    clocked = Clocked()
    clocked.catalog.replace(Registries())
    clocked.discovery._schedule.all_listed(time.monotonic())

    clocked.moment += timedelta(days=1)

    assert not clocked.discovery.status().is_stale


def test_a_catalog_that_was_never_listed_becomes_stale() -> None:
    """But not at once after the start."""
    clocked = Clocked()
    assert not clocked.discovery.status().is_stale

    clocked.moment += timedelta(seconds=121)

    assert clocked.discovery.status().is_stale


def test_warnings_about_a_stale_catalog_become_rarer(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/health shows it meanwhile."""
    now = 0.0
    monkeypatch.setattr(repeats, "clock", lambda: now)
    clocked = Clocked()
    discovery = Discovery(
        commands=Answers({}).commands,
        catalog=clocked.catalog,
        backoff=Backoff(max_s=1),
        interval_s=60,
        now=lambda: clocked.moment,
        clock=lambda: now,
    )
    clocked.moment += timedelta(hours=1)

    warned = []
    for second in range(0, 1_300, 30):
        now = float(second)
        caplog.clear()
        discovery._warn_if_stale()
        warned += [second] if caplog.records else []

    assert warned == [0, 60, 180, 420, 900]


@pytest.mark.parametrize("version", VERSIONS)
async def test_recorded_registry_events_are_understood(version: str) -> None:
    """Of every version: each leads to a listing, and the renaming is followed at once."""
    events = [
        msgspec.convert(message["event"], Event)
        for message in event_messages(recording(version, "registry_changes"))
        if message["event"]["event_type"].endswith("_registry_updated")
    ]
    (renaming,) = (event for event in events if event.data.old_entity_id)
    former, given = str(renaming.data.old_entity_id), str(renaming.data.entity_id)
    catalog = Catalog()
    answers = Answers({"entity": [{"entity_id": former, "area_id": "lab"}]})
    discovery = discovery_of(answers, catalog=catalog)

    async with running(discovery) as refreshes:
        discovery.connected()
        await until(lambda: refreshes)
        for event in events:
            answers.asked.clear()
            discovery.registry_updated(event)
            if event is renaming:
                assert catalog.placement(given).area_id == "lab"
            refreshes.clear()
            await until(lambda: refreshes)
            assert event.event_type.removesuffix("_registry_updated") in answers.asked
