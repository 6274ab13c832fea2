"""The fake Home Assistant answers like the recordings of the real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from simulator.fake_home_assistant import FakeHomeAssistant, new_context
from tests.fakes.recordings import VERSIONS, recording
from tests.fakes.still_house import NOON, StillHouse

TOKEN = "fake-token-0123456789-0123456789-0123456789"
STATES = {"type": "subscribe_events", "event_type": "state_changed"}


@pytest.fixture
def house() -> StillHouse:
    """Return a house that emits only what the test makes it emit."""
    return StillHouse()


@asynccontextmanager
async def connected_to(fake: FakeHomeAssistant) -> AsyncIterator[ClientConnection]:
    """Connect and authenticate."""
    async with asyncio.timeout(10), connect(fake.url, compression=None) as socket:
        await socket.recv()
        await socket.send(msgspec.json.encode({"type": "auth", "access_token": TOKEN}), text=True)
        assert (await received(socket))["type"] == "auth_ok"
        yield socket


async def received(socket: ClientConnection) -> Any:
    """Return the next message of the fake."""
    return msgspec.json.decode(await socket.recv())


async def ask(socket: ClientConnection, *commands: object) -> Any:
    """Send each command in its own frame and return the last answer."""
    answer = None
    for command in commands:
        await socket.send(msgspec.json.encode(command), text=True)
        answer = await received(socket)
    return answer


def shape(message: dict[str, Any]) -> dict[str, Any]:
    """Return an answer without its error message, which differs between versions."""
    error = message.get("error")
    return {**message, "error": error and error["code"]}


async def close_code(socket: ClientConnection) -> int | None:
    """Wait until the fake closes the connection and return the code."""
    async for _ in socket:
        pass
    return socket.close_code


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_handshake_matches_the_recorded_one(house: StillHouse, version: str) -> None:
    """Greeting, acceptance, and a Date header in the response."""
    recorded = recording(version, "auth_handshake")["ok"]
    async with (
        FakeHomeAssistant(house, token=TOKEN, version=version) as fake,
        connect(fake.url) as socket,
    ):
        greeting = await received(socket)
        welcome = await ask(socket, {**recorded["client"], "access_token": TOKEN})

    assert socket.response is not None
    age = datetime.now(UTC) - parsedate_to_datetime(socket.response.headers["Date"])
    assert [recorded["server1"], recorded["server2"]] == [greeting, welcome]
    assert age < timedelta(minutes=1)


@pytest.mark.parametrize("case", ["invalid_token", "malformed_auth", "not_json"])
async def test_a_failed_authentication_closes_the_connection(house: StillHouse, case: str) -> None:
    """A wrong token gets an answer, nonsense does not; both connections are closed with 1000."""
    recorded = recording("2026.11.0", "auth_handshake")[case]
    async with FakeHomeAssistant(house, token=TOKEN) as fake, connect(fake.url) as socket:
        await socket.recv()

        await socket.send(recorded["sent"])

        heard = [await received(socket) for _ in recorded["received"]]
        assert recorded["received"] == heard
        assert recorded["close_code"] == await close_code(socket)


async def test_a_command_before_authentication_is_refused(house: StillHouse) -> None:
    """Only `auth` is accepted."""
    async with FakeHomeAssistant(house, token=TOKEN) as fake, connect(fake.url) as socket:
        await socket.recv()

        answer = await ask(socket, {"id": 1, "type": "get_states"})

    assert answer == {"type": "auth_invalid", "message": "Auth message incorrectly formatted"}


async def test_a_client_that_does_not_authenticate_is_disconnected(house: StillHouse) -> None:
    """Authentication has a timeout."""
    async with (
        FakeHomeAssistant(house, token=TOKEN, auth_timeout_s=0.01) as fake,
        connect(fake.url) as socket,
    ):
        assert await close_code(socket) == 1000


async def test_only_the_path_of_the_api_is_served(house: StillHouse) -> None:
    """And nothing at all while connections are refused."""
    async with FakeHomeAssistant(house, token=TOKEN) as fake:
        with pytest.raises(InvalidStatus, match="404"):
            await connect(f"{fake.url}/elsewhere")
        fake.refusing = True
        with pytest.raises(InvalidStatus, match="503"):
            await connect(fake.url)


@pytest.mark.parametrize(
    ("command", "case"),
    [
        ({"id": 1, "type": "dance"}, "unknown_command"),
        ({"id": 2, "type": "get_states", "foo": 1}, "extra_key"),
        ({"id": 11, "type": "ping"}, "ping"),
        (
            {"id": 201, "type": "unsubscribe_events", "subscription": 7},
            "unsubscribe_unknown",
        ),
    ],
)
async def test_errors_of_the_fake_match_the_recorded_ones(
    house: StillHouse, command: dict[str, object], case: str
) -> None:
    """Each mistake has its code."""
    recorded = recording("2026.11.0", "errors_ping")[case]
    async with FakeHomeAssistant(house, token=TOKEN) as fake, connected_to(fake) as socket:
        answer = await ask(socket, command)

    assert shape(recorded) == shape(answer)


async def test_command_ids_must_increase(house: StillHouse) -> None:
    """None may be repeated or missing."""
    recorded = recording("2026.11.0", "errors_ping")
    async with FakeHomeAssistant(house, token=TOKEN) as fake, connected_to(fake) as socket:
        ping = {"id": 1, "type": "ping"}

        reused = await ask(socket, ping, ping)
        left_out = await ask(socket, {"type": "ping"})

    assert (recorded["id_reuse"], recorded["no_id"]) == ([reused], [left_out])


async def test_a_frame_may_contain_several_commands(house: StillHouse) -> None:
    """Each gets its own answer."""
    async with FakeHomeAssistant(house, token=TOKEN) as fake, connected_to(fake) as socket:
        first = await ask(socket, [{"id": 100, "type": "ping"}, {"id": 101, "type": "ping"}])

        answers = [first, await received(socket)]

    assert recording("2026.11.0", "errors_ping")["batched_commands_as_list"] == answers


async def test_a_frame_that_is_not_json_closes_the_connection(house: StillHouse) -> None:
    """As recorded: with 1000 and without an answer."""
    async with FakeHomeAssistant(house, token=TOKEN) as fake, connected_to(fake) as socket:
        await socket.send("hello")

        assert await close_code(socket) == 1000


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_read_only_user_has_the_recorded_rights(house: StillHouse, version: str) -> None:
    """The same commands succeed and the same are refused."""
    commands = [
        {**recorded, "command": {"id": number, **recorded["command"]}}
        for number, recorded in enumerate(
            recording(version, "non_admin")["token_readonly"]["commands"], start=1
        )
        if recorded["command"]["type"] in {"subscribe_events", "get_states", "get_config"}
    ]
    async with (
        FakeHomeAssistant(house, token=TOKEN, version=version, read_only=True) as fake,
        connected_to(fake) as socket,
    ):
        answers = [await ask(socket, recorded["command"]) for recorded in commands]

    assert [(recorded["command"], recorded["error"]) for recorded in commands] == [
        (recorded["command"], answer.get("error"))
        for recorded, answer in zip(commands, answers, strict=True)
    ]


async def test_subscribers_receive_what_they_subscribed_to(house: StillHouse) -> None:
    """One type, all types, or nothing after unsubscribing; messages carry the subscription id."""
    async with FakeHomeAssistant(house, token=TOKEN) as fake, connected_to(fake) as socket:
        house.fire = fake.fire
        await ask(socket, {"id": 1, **STATES}, {"id": 2, "type": "subscribe_events"})
        assert fake.subscribers == 1

        event = house.set_state("sensor.a", "1")
        both = [await received(socket), await received(socket)]
        await ask(socket, {"id": 3, "type": "unsubscribe_events", "subscription": 2})
        house.put_row("area", {"area_id": "kitchen"}, id_name="area_id")
        house.set_state("sensor.a", "2")
        last = await received(socket)

    assert [{"type": "event", "event": event, "id": number} for number in (1, 2)] == both
    assert last["event"]["data"]["new_state"]["state"] == "2"


async def test_state_changes_match_the_recorded_ones(house: StillHouse) -> None:
    """The same keys, and the same timestamps move when only attributes change."""
    recorded = recording("2026.11.0", "state_changed_events")
    (new,) = recorded["new_entity_old_state_null"]
    (attribute_only,) = recorded["attribute_only_change"]
    house.set_state("sensor.a", "1", {"unit_of_measurement": "W"})

    event: Any = house.set_state("sensor.a", "1", {"unit_of_measurement": "kW"})
    removed: Any = house.remove("sensor.a")

    assert new["event"].keys() == event.keys()
    updated, made = attribute_only["event"]["data"], event["data"]
    assert updated["new_state"].keys() == made["new_state"].keys()
    for data in (updated, made):
        assert data["old_state"]["last_changed"] == data["new_state"]["last_changed"]
        assert data["old_state"]["last_updated"] < data["new_state"]["last_updated"]
    assert event["time_fired"] == made["new_state"]["last_updated"]
    assert (removed["data"]["new_state"], removed["data"]["old_state"]) == (None, made["new_state"])


def test_context_ids_sort_by_time() -> None:
    """A context id is a ULID: 26 characters, the time first."""
    first, second = (str(new_context(at=NOON + timedelta(seconds=n))["id"]) for n in (0, 1))

    assert (len(first), first < second) == (26, True)


async def test_pending_messages_are_coalesced_once_a_client_enables_it(house: StillHouse) -> None:
    """From then on a frame is one message, or a list of all pending ones."""
    async with FakeHomeAssistant(house, token=TOKEN) as fake, connected_to(fake) as socket:
        house.fire = fake.fire
        features = {"id": 1, "type": "supported_features", "features": {"coalesce_messages": 1}}
        recorded = recording("2025.4.4", "coalesce")["supported_features"]
        assert recorded == await ask(socket, features)
        await ask(socket, {"id": 2, **STATES})

        for number in range(3):
            house.set_state("sensor.a", str(number))
        together = await received(socket)
        house.set_state("sensor.a", "3")
        alone = await received(socket)

    states = [message["event"]["data"]["new_state"]["state"] for message in (*together, alone)]
    assert states == ["0", "1", "2", "3"]


async def test_the_fake_answers_commands_from_its_house(house: StillHouse) -> None:
    """States, registries, configuration and recorder come from the house, not the protocol."""
    house.set_state("sensor.a", "1")
    house.put_row("area", {"area_id": "kitchen"}, id_name="area_id")
    house.entries.append({"entry_id": "1", "domain": "demo", "title": "Demo"})
    house.ha_state = "NOT_RUNNING"
    house.backlog = 7
    names = [
        "get_states",
        "config/area_registry/list",
        "config/floor_registry/list",
        "config_entries/get",
        "get_config",
        "recorder/info",
    ]
    async with FakeHomeAssistant(house, token=TOKEN) as fake, connected_to(fake) as socket:
        answers = [
            (await ask(socket, {"id": number, "type": name}))["result"]
            for number, name in enumerate(names, start=1)
        ]

    assert [house.states(), house.rows["area"], [], house.entries] == answers[:4]
    assert answers[4]["state"] == "NOT_RUNNING"
    assert answers[4]["version"] == "2026.11.0"
    assert {**recording("2026.11.0", "recorder_info")["result"], "backlog": 7} == answers[5]


HISTORY = {
    "type": "history/history_during_period",
    "start_time": (NOON + timedelta(microseconds=1)).isoformat(),
    "entity_ids": ["sensor.a", "climate.b", "sensor.never"],
}
FULL = {
    "end_time": (NOON + timedelta(minutes=1)).isoformat(),
    "significant_changes_only": False,
    "include_start_time_state": False,
}


@pytest.mark.parametrize(
    ("options", "sensor", "climate"),
    [
        (FULL, ["1x", "2x", None], ["heat", "heat"]),
        ({**FULL, "minimal_response": True}, ["2x", None], ["heat", "heat"]),
        ({}, ["1*", "2x", None], ["heat", "heat"]),
        ({**FULL, "end_time": (NOON + timedelta(milliseconds=2)).isoformat()}, ["1x"], None),
    ],
)
async def test_history_has_every_recorded_row(
    house: StillHouse, options: dict[str, object], sensor: list[str | None], climate: object
) -> None:
    """With the right options; attribute-only changes are missing with the defaults."""
    house.set_state("sensor.a", "1", {"mark": "*"})
    house.set_state("sensor.a", "1", {"mark": "x"})
    house.set_state("sensor.a", "2")
    house.remove("sensor.a")
    house.set_state("climate.b", "heat", {"temperature": 20})
    house.set_state("climate.b", "heat", {"temperature": 21})
    async with FakeHomeAssistant(house, token=TOKEN) as fake, connected_to(fake) as socket:
        answer = await ask(socket, {"id": 1, **HISTORY, **options})

    rows = answer["result"]
    assert sensor == [
        row["s"] and row["s"] + row.get("a", {"mark": "x"})["mark"] for row in rows["sensor.a"]
    ]
    assert climate == (rows.get("climate.b") and [row["s"] for row in rows["climate.b"]])


async def test_history_rows_match_the_recorded_ones(house: StillHouse) -> None:
    """Float seconds; `lc` only where it differs; a synthetic `lu` for the state at the start."""
    house.set_state("sensor.a", "1", {"n": 1})
    house.set_state("sensor.a", "1", {"n": 2})
    async with FakeHomeAssistant(house, token=TOKEN) as fake, connected_to(fake) as socket:
        full = await ask(socket, {"id": 1, **HISTORY, **FULL})
        bare = await ask(socket, {"id": 2, **HISTORY, "no_attributes": True})

    start = datetime.fromisoformat(str(HISTORY["start_time"])).timestamp()
    changed_at, updated_at = NOON.timestamp(), (NOON + timedelta(milliseconds=1)).timestamp()
    row = {"s": "1", "a": {"n": 2}, "lu": updated_at, "lc": changed_at}
    assert full["result"] == {"sensor.a": [row]}
    assert bare["result"] == {"sensor.a": [{"s": "1", "a": {}, "lu": start}]}


async def test_history_requires_entity_ids(house: StillHouse) -> None:
    """As recorded."""
    recorded = recording("2025.4.4", "history_backfill")["ws_missing_entity_ids"]
    async with FakeHomeAssistant(house, token=TOKEN) as fake, connected_to(fake) as socket:
        command = {"id": 7, "type": HISTORY["type"], "start_time": HISTORY["start_time"]}

        assert recorded == await ask(socket, command)


@pytest.mark.parametrize(
    ("messages", "cut_off"), [(1024, 0), (4096, 1), (4097, 1)], ids=["calm", "peak", "flood"]
)
async def test_slow_clients_are_disconnected(
    house: StillHouse, messages: int, cut_off: int
) -> None:
    """At once above 4,096 pending messages, after a while above 1,024; those are lost."""
    async with (
        FakeHomeAssistant(house, token=TOKEN, peak_s=0.1) as fake,
        connected_to(fake) as socket,
    ):
        await ask(socket, {"id": 1, **STATES})
        socket.transport.pause_reading()
        event = msgspec.json.encode({"event_type": "state_changed", "data": {"x": "x" * 10_000}})

        while fake.pending < 1024:  # what the kernel buffers is not pending
            fake.fire_many([event] * min(100, 1024 - fake.pending))
            await asyncio.sleep(0)
        fake.fire_many([event] * (messages - fake.pending))
        await asyncio.sleep(0.2)  # longer than the peak is allowed to last

        socket.transport.resume_reading()
        if cut_off:
            assert await close_code(socket) == 1000
        else:
            fake.fire_many([b'{"event_type":"state_changed","data":"last"}'])
            while (await received(socket))["event"]["data"] != "last":
                pass
        assert fake.cut_off == cut_off


async def test_the_limits_on_pending_messages_can_be_disabled(house: StillHouse) -> None:
    """For benchmarks of a reader's speed, and nothing else."""
    async with (
        FakeHomeAssistant(house, token=TOKEN, enforce_limits=False) as fake,
        connected_to(fake) as socket,
    ):
        await ask(socket, {"id": 1, **STATES})

        fake.fire_many([b'{"event_type":"state_changed"}'] * 5000)
        for _ in range(5000):
            await socket.recv()

    assert fake.cut_off == 0


async def test_a_client_that_catches_up_in_time_stays_connected(house: StillHouse) -> None:
    """A short peak of pending messages has no effect."""
    async with (
        FakeHomeAssistant(house, token=TOKEN, peak_s=0.3) as fake,
        connected_to(fake) as socket,
    ):
        await ask(socket, {"id": 1, **STATES})
        fake.fire_many([b'{"event_type":"state_changed"}'] * 4000)
        for _ in range(4000):
            await socket.recv()
        await asyncio.sleep(0.4)  # until the peak would have disconnected it

        assert (await ask(socket, {"id": 2, "type": "ping"}))["type"] == "pong"


async def test_a_restarted_fake_keeps_its_address(house: StillHouse) -> None:
    """A client sees leaving and entering its context again as a restart."""
    async with FakeHomeAssistant(house, token=TOKEN) as fake:
        url = fake.url
        async with connected_to(fake):
            pass
    async with fake, connected_to(fake):
        assert url == fake.url


async def test_stopping_the_fake_does_not_wait_for_an_unresponsive_client(
    house: StillHouse,
) -> None:
    """A client that does not answer the close is dropped after a second."""
    async with FakeHomeAssistant(house, token=TOKEN) as fake:
        async with connect(fake.url, close_timeout=0.1) as socket:
            await socket.recv()
            socket.transport.pause_reading()
            started = asyncio.get_running_loop().time()
            await fake.__aexit__()
            assert asyncio.get_running_loop().time() - started < 2
        await fake.__aenter__()
