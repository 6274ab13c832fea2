"""The connection to Home Assistant, over real sockets."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from websockets.asyncio.server import ServerConnection, serve

from app.homeassistant.connection import HomeAssistantSource
from app.homeassistant.endpoint import Endpoint
from app.homeassistant.messages import Event
from app.homeassistant.reconnect import ReconnectPolicy
from app.runtime.errors import (
    CommandFailed,
    SourceAuthRejected,
    SourceError,
    SourceProtocolError,
    SourceUnavailable,
)
from app.runtime.metrics import Telemetry
from app.runtime.retry import Backoff, Breaker
from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.recordings import VERSIONS
from tests.fakes.still_house import StillHouse

TOKEN = "client-token-0123456789-0123456789-0123456789"
SUBSCRIBING = ["supported_features", *["subscribe_events"] * 6]


class RecordingListener:
    """Listener that records its calls."""

    def __init__(self) -> None:
        self.states: list[str | None] = []
        """The new state of each change, in order."""
        self.registry_events: list[str] = []
        self.connections: list[str] = []
        self.absences: list[bool] = []

    def changed(self, events: Sequence[Event]) -> None:
        """Record the states."""
        for event in events:
            self.states.append(event.data.new_state.state if event.data.new_state else None)

    def registry_updated(self, event: Event) -> None:
        """Record the type."""
        self.registry_events.append(event.event_type)

    def connected(self, *, was_absent: bool) -> None:
        """Record the call."""
        self.connections.append("connected")
        self.absences.append(was_absent)

    def lost(self) -> None:
        """Record the call."""
        self.connections.append("lost")


class Parts:
    """The parts of a source, with almost no delays."""

    def __init__(self, *, first_s: float = 0.001, reset_s: float = 0.0) -> None:
        self.backoff = Backoff(max_s=1.0, first_s=first_s, chance=lambda: 0.5)
        self.breaker = Breaker("Home Assistant", threshold=3, reset_s=reset_s)
        self.telemetry = Telemetry(CollectorRegistry())

    def source(
        self,
        url: str,
        *,
        token: str = TOKEN,
        max_retries: int = -1,
        auth_retry_s: float = 300.0,
        steady_s: float = 30.0,
        **options: Any,
    ) -> HomeAssistantSource:
        """Return a source for this address; `options` are those of its Endpoint."""
        return HomeAssistantSource(
            Endpoint(url, token=token, **{"ssl_verify": False, **options}),
            reconnect=ReconnectPolicy(
                backoff=self.backoff,
                breaker=self.breaker,
                max_retries=max_retries,
                auth_retry_s=auth_retry_s,
            ),
            telemetry=self.telemetry,
            steady_s=steady_s,
            readiness_poll_s=0.001,
        )

    @asynccontextmanager
    async def running(
        self, ear: RecordingListener, url: str, **options: Any
    ) -> AsyncIterator[HomeAssistantSource]:
        """Run a source within the block; `options` are those of `source`."""
        source = self.source(url, **options)
        async with running(source, ear):
            yield source

    @asynccontextmanager
    async def streaming(
        self, ear: RecordingListener, url: str, **options: Any
    ) -> AsyncIterator[HomeAssistantSource]:
        """Run a source, and begin the block when it knows whether Home Assistant has started."""
        async with self.running(ear, url, **options) as source:
            await until(lambda: source.status().ha_state)
            yield source


@asynccontextmanager
async def running(
    source: HomeAssistantSource, ear: RecordingListener
) -> AsyncIterator[asyncio.Task[None]]:
    """Run the source within the block."""
    task = asyncio.create_task(source.run(ear), name="source")
    try:
        async with asyncio.timeout(10):
            yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition; the test's timeout bounds it."""
    while not condition():
        await asyncio.sleep(0.001)


async def heard_from(ear: RecordingListener, changes: int) -> None:
    """Wait until this many changes were received."""
    await until(lambda: len(ear.states) >= changes)


async def failed(parts: Parts, attempts: int) -> None:
    """Wait until this many consecutive attempts have failed."""
    await until(lambda: parts.backoff.attempt == attempts)


def lines(caplog: pytest.LogCaptureFixture, pattern: str) -> list[str]:
    """Return the log lines that match."""
    return [line for line in caplog.messages if re.search(pattern, line)]


@pytest.fixture
def house() -> StillHouse:
    """Return a house that only the test changes."""
    return StillHouse()


@pytest.fixture
async def home_assistant(house: StillHouse) -> AsyncIterator[FakeHomeAssistant]:
    """Yield a Home Assistant for that house."""
    async with FakeHomeAssistant(house, token=TOKEN, auth_timeout_s=1.0) as fake:
        house.fire = fake.fire
        yield fake


@pytest.fixture
def ear() -> RecordingListener:
    """Return a listener."""
    return RecordingListener()


@pytest.fixture
def parts() -> Parts:
    """Return the parts of a source."""
    return Parts()


async def test_events_of_home_assistant_arrive_in_order(
    house: StillHouse, home_assistant: FakeHomeAssistant, ear: RecordingListener, parts: Parts
) -> None:
    """Each reaches the listener once, and the status is healthy."""
    async with parts.streaming(ear, home_assistant.url) as source:
        for number in range(100):
            house.set_state("sensor.a", str(number))
        house.put_row("area", {"area_id": "kitchen"}, id_name="area_id")
        await until(lambda: ear.registry_events)

        assert [str(number) for number in range(100)] == ear.states
        assert ear.registry_events == ["area_registry_updated"]
        status = source.status()
        assert (status.current_state, status.is_subscribed) == ("connected", True)
        assert (status.ha_version, status.ha_state) == ("2026.11.0", "RUNNING")
        assert (status.connection_attempts, status.successful_connections) == (1, 1)
        assert (status.failed_connections, status.reason) == (0, None)
        assert status.last_successful is not None
        assert (parts.telemetry.received, parts.telemetry.malformed) == (100, {})
    assert (ear.connections, source.status().current_state) == (
        ["connected", "lost"],
        "disconnected",
    )


async def test_the_live_connection_only_subscribes(
    home_assistant: FakeHomeAssistant, ear: RecordingListener, parts: Parts
) -> None:
    """Commands use a second connection, so no answer delays an event."""
    async with parts.streaming(ear, home_assistant.url):
        assert list(home_assistant.conversations) == [SUBSCRIBING, ["get_config"]]


async def test_events_stream_while_a_command_is_answered(
    house: StillHouse, home_assistant: FakeHomeAssistant, ear: RecordingListener, parts: Parts
) -> None:
    """An answer of 6 MB neither delays events nor ends the connection."""
    house.rows["entity"] = [
        {"entity_id": f"sensor.number_{number}", "options": {"padding": "x" * 380}}
        for number in range(14_000)
    ]
    source = parts.source(home_assistant.url)
    async with running(source, ear), source.commands() as commands:
        await until(lambda: ear.connections)
        asking = asyncio.create_task(commands.call("config/entity_registry/list"))
        states = 0
        while not asking.done():
            house.set_state("sensor.a", str(states))
            states += 1
            await asyncio.sleep(0)
        answer = await asking
        await until(lambda: len(ear.states) == states)

        assert len(bytes(answer)) > 6_000_000
        assert house.rows["entity"] == msgspec.json.decode(answer)
        assert ear.connections == ["connected"]


async def test_commands_may_be_sent_concurrently(
    house: StillHouse, home_assistant: FakeHomeAssistant, parts: Parts
) -> None:
    """Each gets its own answer, and a refused one its error."""
    house.set_state("sensor.a", "1")
    async with parts.source(home_assistant.url).commands() as commands:
        states, refused, history = await asyncio.gather(
            commands.call("get_states"),
            commands.call("dance"),
            commands.call(
                "history/history_during_period",
                start_time="2026-11-23T00:00:00+00:00",
                entity_ids=["sensor.a"],
                end_time="2026-11-24T00:00:00+00:00",
            ),
            return_exceptions=True,
        )

    assert isinstance(states, msgspec.Raw)
    assert isinstance(history, msgspec.Raw)
    assert house.states() == msgspec.json.decode(states)
    assert list(msgspec.json.decode(history)) == ["sensor.a"]
    assert isinstance(refused, CommandFailed)
    assert str(refused) == "dance: unknown_command: Unknown command."


@pytest.mark.parametrize(
    "end",
    [
        lambda fake: fake.drop(1000),
        lambda fake: fake.drop(1001),
        lambda fake: fake.drop(1009),
        lambda fake: fake.drop(1011),
        lambda fake: asyncio.sleep(0, fake.abort()),
    ],
    ids=["1000", "1001", "1009", "1011", "reset"],
)
async def test_the_source_reconnects_after_every_close(
    house: StillHouse,
    home_assistant: FakeHomeAssistant,
    ear: RecordingListener,
    parts: Parts,
    end: Callable[[FakeHomeAssistant], object],
) -> None:
    """Home Assistant closes with 1000 for everything, so the code means nothing."""
    async with parts.streaming(ear, home_assistant.url) as source:
        house.set_state("sensor.a", "before")
        await until(lambda: ear.states)

        ending = end(home_assistant)
        assert asyncio.iscoroutine(ending)
        await ending
        await until(lambda: source.status().successful_connections == 2)
        await until(lambda: home_assistant.subscribers == 1)
        house.set_state("sensor.a", "after")
        await until(lambda: len(ear.states) == 2)

        assert ear.connections == ["connected", "lost", "connected"]
        assert (ear.states, source.status().failed_connections) == (["before", "after"], 0)


async def test_every_event_arrives_once_after_a_reconnect(
    house: StillHouse, home_assistant: FakeHomeAssistant, ear: RecordingListener, parts: Parts
) -> None:
    """The old subscription ended with its connection."""
    async with parts.running(ear, home_assistant.url):
        for connections in (1, 2, 3):
            await until(lambda: home_assistant.subscribers)
            heard = len(ear.states)
            for number in range(50):
                house.set_state("sensor.a", f"{connections}.{number}")
            await heard_from(ear, heard + 50)
            await home_assistant.drop()

    assert [f"{n}.{number}" for n in (1, 2, 3) for number in range(50)] == ear.states


async def test_a_home_assistant_that_starts_later_is_connected_to(
    house: StillHouse, ear: RecordingListener, parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing has to be restarted."""
    caplog.set_level(logging.INFO)
    fake = FakeHomeAssistant(house, token=TOKEN)
    async with fake:
        url = fake.url
    async with parts.running(ear, url) as source:
        await until(lambda: source.status().failed_connections >= 3)
        reason = source.status().reason
        assert reason is not None
        assert re.match(
            r"Home Assistant cannot be reached for 0 s: nothing listens there\. Check", reason
        )
        assert "HOME_ASSISTANT_URL" in reason
        async with fake:
            house.fire = fake.fire
            await until(lambda: source.status().is_subscribed)
            assert source.status().reason is None
            house.set_state("sensor.a", "1")
            await until(lambda: ear.states == ["1"])

    assert lines(caplog, r"^Reconnection attempt 1/∞ in 0\.0s$")
    assert lines(caplog, r"^Home Assistant streams events again \(failed \d+ times in \d+ s\)$")
    assert lines(caplog, r"^Circuit breaker open: Home Assistant failed 3 times in a row")


async def test_reconnect_delays_grow_until_events_stream(
    ear: RecordingListener, home_assistant: FakeHomeAssistant, house: StillHouse
) -> None:
    """A subscription does not reset them; the first event does."""
    parts = Parts(first_s=0.01)
    async with parts.running(ear, home_assistant.url) as source:
        for attempt in (1, 2, 3):
            await until(lambda: home_assistant.subscribers)
            await home_assistant.drop()
            await failed(parts, attempt)
            await until(lambda: source.status().is_subscribed)
        assert parts.breaker.failure_count == 3

        await until(lambda: home_assistant.subscribers)
        house.set_state("sensor.a", "1")
        await until(lambda: ear.states)

        assert (parts.backoff.attempt, parts.breaker.failure_count) == (0, 0)


async def test_a_lasting_connection_without_events_counts_as_success(
    ear: RecordingListener, home_assistant: FakeHomeAssistant, parts: Parts
) -> None:
    """A home may be silent at night."""
    home_assistant.refusing = True
    async with parts.running(ear, home_assistant.url, steady_s=0.01) as source:
        await until(lambda: parts.backoff.attempt == 2)
        home_assistant.refusing = False

        await until(lambda: source.status().is_subscribed)
        await until(lambda: parts.backoff.attempt == 0)

        assert source.status().breaker.state == "closed"


async def test_the_next_connection_attempt_waits_for_the_breaker(
    ear: RecordingListener, home_assistant: FakeHomeAssistant
) -> None:
    """Of the breaker's and the backoff's time the later counts: here the breaker's."""
    parts = Parts(reset_s=60.0)
    home_assistant.refusing = True
    async with parts.running(ear, home_assistant.url) as source:
        await until(lambda: source.status().breaker.state == "open")
        await until(lambda: source.status().current_state == "waiting")

        status = source.status()

    assert status.next_attempt_in_seconds is not None
    assert 55 < status.next_attempt_in_seconds <= 60
    assert (status.connection_attempts, status.breaker.failure_count) == (3, 3)


async def test_the_next_connection_attempt_waits_for_the_backoff(
    ear: RecordingListener, home_assistant: FakeHomeAssistant, caplog: pytest.LogCaptureFixture
) -> None:
    """Delays double; a breaker that already allows a trial does not shorten them."""
    caplog.set_level(logging.DEBUG)
    parts = Parts(first_s=0.1)
    home_assistant.refusing = True
    async with running(parts.source(home_assistant.url), ear):
        await until(lambda: parts.backoff.attempt == 4)

    assert [
        f"Reconnection attempt {n}/∞ in {s}s" for n, s in enumerate((0.1, 0.2, 0.4, 0.8), 1)
    ] == (lines(caplog, "^Reconnection attempt"))


async def test_the_number_of_reconnection_attempts_may_be_limited(
    ear: RecordingListener,
    home_assistant: FakeHomeAssistant,
    parts: Parts,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After this many consecutive failures the source raises."""
    caplog.set_level(logging.DEBUG)
    home_assistant.refusing = True

    with pytest.raises(SourceUnavailable, match=r"cannot be reached: .*503"):
        await parts.source(home_assistant.url, max_retries=2).run(ear)

    assert lines(caplog, "^Reconnection attempt") == [
        "Reconnection attempt 1/2 in 0.0s",
        "Reconnection attempt 2/2 in 0.0s",
    ]
    assert lines(caplog, "^Gave up on Home Assistant after 2 reconnection attempts$")


async def test_a_refused_token_is_tried_again_slowly(
    ear: RecordingListener,
    home_assistant: FakeHomeAssistant,
    parts: Parts,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log explains what to do, and the process keeps running."""
    wrong = "wrong-token-0123456789-0123456789-0123456789"
    source = parts.source(home_assistant.url, token=wrong, max_retries=0)
    async with running(source, ear) as task:
        await until(lambda: source.status().current_state == "waiting")

        status = source.status()
        assert not task.done()

    assert status.next_attempt_in_seconds is not None
    assert 295 < status.next_attempt_in_seconds <= 300
    assert status.reason is not None
    assert status.reason.startswith(
        "Home Assistant refused the token: Invalid access token or password."
    )
    assert "create a long-lived access token, set HOME_ASSISTANT_TOKEN" in status.reason
    assert (status.failed_connections, status.breaker.failure_count) == (1, 0)
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_a_token_that_is_valid_again_is_accepted(
    ear: RecordingListener, home_assistant: FakeHomeAssistant, parts: Parts
) -> None:
    """The slow attempts continue, so no restart is needed."""
    stranger = FakeHomeAssistant(StillHouse(), token=TOKEN[::-1])
    async with stranger, parts.running(ear, stranger.url, auth_retry_s=0.001) as source:
        await until(lambda: source.status().failed_connections == 3)
        stranger.token = TOKEN
        await until(lambda: source.status().is_subscribed)

        assert source.status().reason is None


async def test_a_half_open_connection_is_detected(
    house: StillHouse, home_assistant: FakeHomeAssistant, ear: RecordingListener, parts: Parts
) -> None:
    """A peer that answers no ping is gone, even without a close."""
    async with parts.streaming(
        ear, home_assistant.url, ping_interval_s=0.05, ping_timeout_s=0.05
    ) as source:
        started = asyncio.get_running_loop().time()

        home_assistant.fall_silent()
        await until(lambda: "lost" in ear.connections)

        assert asyncio.get_running_loop().time() - started < 1
        reason = source.status().reason
        assert reason is not None
        assert "keepalive ping timeout" in reason
        home_assistant.speak_again()
        await until(lambda: source.status().is_subscribed)


async def test_stopping_does_not_wait_for_a_silent_home_assistant(
    home_assistant: FakeHomeAssistant, ear: RecordingListener, parts: Parts
) -> None:
    """A cancelled source ends within a second."""
    source = parts.source(home_assistant.url)
    async with running(source, ear) as task:
        await until(lambda: source.status().is_subscribed)
        home_assistant.fall_silent()
        started = asyncio.get_running_loop().time()

        task.cancel()
        await asyncio.wait({task})

        assert asyncio.get_running_loop().time() - started < 1
        assert task.cancelled()


async def test_authentication_with_home_assistant_has_a_timeout(
    home_assistant: FakeHomeAssistant, ear: RecordingListener, parts: Parts
) -> None:
    """A server that accepts and stays silent is abandoned for another attempt."""
    home_assistant.fall_silent()
    async with parts.running(ear, home_assistant.url, auth_timeout_s=0.01) as source:
        await until(lambda: source.status().failed_connections == 2)

        reason = source.status().reason
        assert reason is not None
        assert "No end of authentication within 0.01 s" in reason
        home_assistant.speak_again()


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_read_only_token_receives_events(
    house: StillHouse,
    ear: RecordingListener,
    parts: Parts,
    version: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Subscriptions that such a user may not make are skipped."""
    caplog.set_level(logging.INFO)
    async with FakeHomeAssistant(house, token=TOKEN, version=version, read_only=True) as fake:
        house.fire = fake.fire
        async with parts.running(ear, fake.url) as source:
            await until(lambda: source.status().ha_state == "RUNNING")
            house.set_state("sensor.a", "1")
            await until(lambda: ear.states == ["1"])

    refused = ["floor", "label"] if version == "2024.3.3" else []
    assert [
        f"Home Assistant refused subscribe_events {kind}_registry_updated:"
        " unauthorized: Unauthorized; going on without"
        for kind in refused
    ] == lines(caplog, "refused")


async def test_an_old_home_assistant_without_newer_commands_still_delivers_events(
    house: StillHouse, ear: RecordingListener, parts: Parts
) -> None:
    """It knows neither features nor registries nor `get_config`."""
    unknown = ["supported_features", "get_config"]
    denied = [f"{kind}_registry_updated" for kind in ("area", "device", "entity")]
    fake = FakeHomeAssistant(house, token=TOKEN, unknown_commands=unknown, denied_events=denied)
    async with fake:
        house.fire = fake.fire
        async with parts.running(ear, fake.url) as source:
            await until(lambda: len(fake.conversations) > 2)  # the command is repeated
            house.set_state("sensor.a", "1")
            house.set_state("sensor.a", "2")
            await until(lambda: ear.states == ["1", "2"])

            assert (source.status().ha_state, source.status().reason) == (None, None)


async def test_a_refused_state_changed_subscription_fails_the_connection(
    house: StillHouse, ear: RecordingListener, parts: Parts
) -> None:
    """It is the one required subscription, and the reason names it."""
    fake = FakeHomeAssistant(house, token=TOKEN, denied_events=["state_changed"])
    async with fake, parts.running(ear, fake.url) as source:
        await until(lambda: source.status().failed_connections == 2)

        reason = source.status().reason
        assert reason is not None
        assert "refused subscribe_events state_changed: unauthorized" in reason
        assert ear.connections == []


async def test_the_status_shows_a_starting_home_assistant(
    house: StillHouse, home_assistant: FakeHomeAssistant, ear: RecordingListener, parts: Parts
) -> None:
    """`get_config` is repeated until the state is RUNNING, and no longer."""
    house.ha_state = "NOT_RUNNING"
    async with parts.streaming(ear, home_assistant.url) as source:
        starting = source.status()
        house.ha_state = "RUNNING"
        await until(lambda: source.status().ha_state == "RUNNING")

        assert starting.is_subscribed
        assert starting.reason is not None
        assert starting.reason.startswith("Home Assistant says it is NOT_RUNNING")
        assert source.status().reason is None
        await until(lambda: "home_assistant.readiness" not in names_of_tasks())


def names_of_tasks() -> list[str]:
    """Return the names of all running tasks."""
    return [task.get_name() for task in asyncio.all_tasks()]


async def test_a_malformed_get_config_answer_is_requested_again(
    house: StillHouse, home_assistant: FakeHomeAssistant, ear: RecordingListener, parts: Parts
) -> None:
    """It does not become the state of Home Assistant."""
    house.ha_state = 7  # type: ignore[assignment]
    async with parts.running(ear, home_assistant.url) as source:
        await until(lambda: list(home_assistant.conversations).count(["get_config"]) == 2)

        assert source.status().ha_state is None
        house.ha_state = "RUNNING"
        await until(lambda: source.status().ha_state == "RUNNING")


async def test_a_malformed_message_costs_only_itself(
    house: StillHouse,
    home_assistant: FakeHomeAssistant,
    ear: RecordingListener,
    parts: Parts,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is counted, logged once a minute per kind, and affects no other message."""
    async with parts.streaming(ear, home_assistant.url):
        house.set_state("sensor.a", "1")
        home_assistant.send_raw(b'{"type":"event","event":{"secret":"hush"}}')
        house.set_state("sensor.a", "2")
        await until(lambda: len(ear.states) == 2)
        for garbage in (b"\xff\xfe", b"garbage", b'{"type":"event","event":7}', b"null"):
            home_assistant.send_raw(garbage)
            await asyncio.sleep(0)
        house.set_state("sensor.a", "3")
        await until(lambda: len(ear.states) == 3)

        assert (ear.states, ear.connections) == (["1", "2", "3"], ["connected"])
        assert parts.telemetry.malformed == {"unexpected_shape": 3, "not_json": 2}
        assert parts.telemetry.received == 8
    warnings = lines(caplog, "^Unreadable message from Home Assistant")
    assert len(warnings) == 2
    assert "hush" not in caplog.text


async def test_frames_that_arrive_together_keep_their_order(
    house: StillHouse, home_assistant: FakeHomeAssistant, ear: RecordingListener, parts: Parts
) -> None:
    """All frames read in one turn of the loop are delivered and counted once, in order."""
    async with parts.streaming(ear, home_assistant.url):
        for number in range(300):
            house.set_state("sensor.a", str(number))
            if number % 100 == 50:
                home_assistant.send_raw(b"garbage")
            if number % 7 == 0:
                await asyncio.sleep(0)
        await heard_from(ear, 300)

        assert [str(number) for number in range(300)] == ear.states
        assert parts.telemetry.received == 303
        assert parts.telemetry.malformed == {"not_json": 3}


async def test_events_before_a_frame_that_ends_the_connection_are_delivered(
    house: StillHouse, ear: RecordingListener, parts: Parts
) -> None:
    """They were received: a later frame of the same turn must not discard them."""
    unknown = ("supported_features",)  # so that each message is a frame
    async with (
        FakeHomeAssistant(house, token=TOKEN, unknown_commands=unknown) as home_assistant,
        running(source := parts.source(home_assistant.url), ear),
    ):
        house.fire = home_assistant.fire
        await until(lambda: source.status().ha_state)
        house.set_state("sensor.a", "1")
        house.set_state("sensor.a", "2")
        home_assistant.send_raw(b'{"type":"auth_ok","ha_version":"1"}')
        await until(lambda: len(ear.connections) == 3)

        assert ear.states == ["1", "2"]
        assert parts.telemetry.received == 2


async def test_the_error_of_an_oversized_frame_names_the_limit(
    house: StillHouse, home_assistant: FakeHomeAssistant, parts: Parts
) -> None:
    """The reader learns which limit to raise."""
    house.set_state("sensor.a", "1", {"padding": "x" * 10_000})
    source = parts.source(home_assistant.url, max_message_bytes=5_000)

    async with source.commands() as commands:
        with pytest.raises(SourceProtocolError, match=r"too large a message: .*5000 bytes"):
            await commands.call("get_states")


async def test_an_event_over_the_limit_ends_the_connection(
    house: StillHouse, home_assistant: FakeHomeAssistant, ear: RecordingListener, parts: Parts
) -> None:
    """It cannot be skipped on this connection; the next one does not receive it."""
    async with parts.streaming(ear, home_assistant.url, max_message_bytes=5_000):
        house.set_state("sensor.a", "1", {"padding": "x" * 10_000})
        await until(lambda: len(ear.connections) == 3)
        await until(lambda: home_assistant.subscribers)
        house.set_state("sensor.b", "2")
        await until(lambda: ear.states)

        assert ear.states == ["2"]


@asynccontextmanager
async def serving(converse: Callable[[ServerConnection], object]) -> AsyncIterator[str]:
    """Serve the test's own conversation and yield its address."""

    async def handle(socket: ServerConnection) -> None:
        conversation = converse(socket)
        assert asyncio.iscoroutine(conversation)
        await conversation

    async with serve(handle, "127.0.0.1", 0, close_timeout=0.1) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield f"ws://127.0.0.1:{port}/api/websocket"


async def accept(socket: ServerConnection) -> None:
    """Authenticate any client, then answer nothing."""
    await socket.send('{"type":"auth_required","ha_version":"1"}')
    await socket.recv()
    await socket.send('{"type":"auth_ok","ha_version":"1"}')


async def test_the_connection_is_direct_and_not_compressed(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compression doubles the receiver's cost, and a proxy setting is meant for downloads."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    offered: list[str | None] = []

    async def converse(socket: ServerConnection) -> None:
        assert socket.request is not None
        offered.append(socket.request.headers.get("Sec-WebSocket-Extensions"))
        await accept(socket)
        await socket.wait_closed()

    async with serving(converse) as url, parts.source(url).commands():
        pass

    assert offered == [None]


async def test_a_subscription_without_an_answer_ends_the_attempt(
    ear: RecordingListener, parts: Parts
) -> None:
    """Every wait has a timeout."""

    async def converse(socket: ServerConnection) -> None:
        await accept(socket)
        await socket.wait_closed()

    async with (
        serving(converse) as url,
        parts.running(ear, url, command_timeout_s=0.05) as source,
    ):
        await until(lambda: source.status().failed_connections == 2)

        reason = source.status().reason
        assert reason is not None
        assert "No answer to the subscription within 0.05 s" in reason


async def test_a_command_without_an_answer_times_out(parts: Parts) -> None:
    """The caller gets an error in time, and a late answer is not mistaken for the next one."""

    async def converse(socket: ServerConnection) -> None:
        await accept(socket)
        await socket.recv()
        await socket.recv()
        await socket.send('[{"id":1,"type":"result","success":true,"result":"late"}, 7]')
        await socket.send('{"id":2,"type":"result","success":true,"result":"mine"}')
        await socket.wait_closed()

    async with (
        serving(converse) as url,
        parts.source(url, command_timeout_s=0.05).commands() as commands,
    ):
        with pytest.raises(SourceProtocolError, match=r"No answer to get_states within 0.05 s"):
            await commands.call("get_states")
        answer = await commands.call("get_config")

    assert msgspec.json.decode(answer) == "mine"


async def test_every_use_of_a_closed_command_connection_raises_our_own_error(parts: Parts) -> None:
    """The caller handles one error type."""
    async with serving(accept) as url, parts.source(url).commands() as commands:
        with pytest.raises(SourceUnavailable, match=r"Connection closed: .*1000"):
            await commands.call("get_states")


async def test_a_command_with_a_wrong_token_raises_the_reason(
    home_assistant: FakeHomeAssistant, parts: Parts
) -> None:
    """The caller can show it."""
    with pytest.raises(SourceAuthRejected):
        async with parts.source(home_assistant.url, token=TOKEN[::-1]).commands():
            pass


@pytest.mark.parametrize(
    "url",
    [
        "ws://127.0.0.1:1/api/websocket",
        "http://127.0.0.1/api/websocket",
        "ws://home.invalid/api/websocket",
        f"ws://{'x' * 64}.invalid/api/websocket",
    ],
)
async def test_every_failure_to_connect_is_our_own_error(url: str, parts: Parts) -> None:
    """Refused, not a WebSocket address, unknown host, no host at all."""
    with pytest.raises(SourceError):
        async with parts.source(url).commands():
            pass


async def test_neither_log_nor_status_nor_repr_contains_the_token(
    house: StillHouse,
    home_assistant: FakeHomeAssistant,
    ear: RecordingListener,
    parts: Parts,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also at log level DEBUG."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("websockets.server").setLevel(logging.INFO)  # the fake's own
    url = home_assistant.url.replace("//", "//user:hush@")
    source = parts.source(url)
    async with running(source, ear), source.commands() as commands:
        await until(lambda: source.status().ha_state)
        with pytest.raises(CommandFailed) as refused:
            await commands.call(TOKEN)
        home_assistant.send_raw(TOKEN.encode())
        home_assistant.send_raw(msgspec.json.encode({"type": TOKEN}))
        await until(lambda: parts.telemetry.malformed.total() == 2)

    shown = f"{source!r} {source.status()!r} {commands!r} {caplog.text}"
    assert lines(caplog, "^Connected to Home Assistant 2026.11.0 at ws://127.0.0.1:")
    assert (TOKEN in shown, "hush" in shown, str(refused.value).count(TOKEN)) == (False, False, 1)


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    """Return the TLS context of a server with a self-signed certificate."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate")
    command = (
        "req -x509 -nodes -days 1 -subj /CN=home -newkey ec -pkeyopt ec_paramgen_curve:prime256v1"
        " -keyout key.pem -out cert.pem"
    )
    subprocess.run([openssl, *command.split()], check=True, capture_output=True, cwd=tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    return context


@pytest.mark.parametrize("ssl_verify", [True, False])
async def test_certificates_are_verified_unless_verification_is_disabled(
    house: StillHouse, parts: Parts, tls: ssl.SSLContext, *, ssl_verify: bool
) -> None:
    """A self-signed certificate needs HA_SSL_VERIFY=false."""
    async with FakeHomeAssistant(house, token=TOKEN, tls=tls) as fake:
        source = parts.source(fake.url, ssl_verify=ssl_verify)
        if ssl_verify:
            with pytest.raises(SourceUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
                async with source.commands():
                    pass
        else:
            for _ in range(2):
                async with source.commands() as commands:
                    assert msgspec.json.decode(await commands.call("get_states")) == []
