"""The hub: every subscriber gets every selected message, and none delays another."""

from __future__ import annotations

import asyncio
import json
from dataclasses import fields

import msgspec
import pytest

from app.fanout import hub as hub_module
from app.fanout.hub import Hub, Selection, encode_event
from app.model import Placement
from tests.fakes.snapshots import change

EVERYTHING = Selection()


def _states(messages: list[str]) -> list[str]:
    return [json.loads(message)["event"]["state"] for message in messages]


def test_an_event_message_has_every_documented_member() -> None:
    """Every value a subscriber may need is in it, under the words of Home Assistant."""
    placed = msgspec.structs.replace(
        change(), placement=Placement("d1", "kitchen", "Kitchen", "mqtt")
    )

    message = json.loads(encode_event(placed))

    assert message == {
        "type": "event",
        "event": {
            "entity_id": "sensor.kitchen",
            "domain": "sensor",
            "event_type": "state_changed",
            "time": "2026-11-23T12:00:00.123456Z",
            "state": "21.5",
            "previous_state": "21.4",
            "duration": 60.0,
            "removed": False,
            "attributes": {"state_class": "measurement"},
            "device_class": "temperature",
            "unit_of_measurement": "°C",
            "friendly_name": "Kitchen",
            "area_id": "kitchen",
            "area_name": "Kitchen",
            "device_id": "d1",
            "integration": "mqtt",
            "context": {"id": "01JQ8T3X5E7W9V0R2M4N6B8C1D", "parent_id": None, "user_id": None},
        },
    }


@pytest.mark.parametrize(
    "name", ["Küche", "温度", "🌡 °C \\u00e9", 'C:\\x "quoted"', "\x7f\x00", "長" * 99]
)
def test_every_message_is_ascii(name: str) -> None:
    """Whatever people call their things, it is escaped, and means the same."""
    named = change(name, friendly_name=name, attributes=msgspec.json.encode({name: name}))

    message = encode_event(named)

    event = json.loads(message)["event"]
    assert message.isascii()
    assert [event["friendly_name"], event["attributes"]] == [name, {name: name}]


def test_the_event_message_of_a_removed_entity_has_no_state() -> None:
    """The message is marked as a removal, and unknown values are null."""
    removed = msgspec.structs.replace(change(state=None, friendly_name=None), context=None)

    event = json.loads(encode_event(removed))["event"]

    assert (
        event["removed"],
        event["state"],
        event["friendly_name"],
        event["context"],
    ) == (True, None, None, None)


def test_a_name_missing_from_the_state_comes_from_the_registry() -> None:
    """An entity without a friendly name has the one people gave it in the registry."""
    named = msgspec.structs.replace(
        change(friendly_name=None), placement=Placement(name="Pantry sensor")
    )

    assert json.loads(encode_event(named))["event"]["friendly_name"] == "Pantry sensor"


def test_times_in_event_messages_keep_their_microseconds() -> None:
    """The time always has six decimals, also when they are zeros."""
    whole = msgspec.structs.replace(change(), time_ns=1_795_435_200_000_000_000)

    assert json.loads(encode_event(whole))["event"]["time"] == "2026-11-23T12:00:00.000000Z"


def test_without_subscribers_the_hub_keeps_no_message() -> None:
    """A hub without subscribers costs nothing, and later subscribers get only new messages."""
    hub = Hub()

    hub.publish([change()])

    with hub.subscribed(EVERYTHING) as subscriber:
        assert subscriber.drain(10) == []


def test_every_subscriber_sees_every_change_in_order() -> None:
    """Two subscribers drain the same messages, each encoded once."""
    hub = Hub()
    with hub.subscribed(EVERYTHING) as one, hub.subscribed(EVERYTHING) as other:
        hub.publish([change(state="1"), change(state="2")])
        hub.publish([])
        hub.publish([change(state="3")])

        taken, same = one.drain(10), other.drain(10)

    assert _states(taken) == ["1", "2", "3"]
    assert all(left is right for left, right in zip(taken, same, strict=True))


def test_draining_a_subscriber_leaves_messages_beyond_the_limit() -> None:
    """No more than asked for is taken; the rest keeps the subscriber filled."""
    hub = Hub()
    with hub.subscribed(EVERYTHING) as subscriber:
        hub.publish([change(state=str(number)) for number in range(5)])

        turns = [_states(subscriber.drain(2)) for _ in range(4)]

    assert turns == [["0", "1"], ["2", "3"], ["4"], []]


def test_a_slow_subscriber_loses_its_oldest_messages_and_gets_their_number() -> None:
    """At the bound the newest stay; the number of the lost ones comes before them, once."""
    hub = Hub(max_events=3)
    with hub.subscribed(EVERYTHING) as subscriber:
        hub.publish([change(state=str(number)) for number in range(2)])
        hub.publish([change(state=str(number)) for number in range(2, 7)])
        dropped, *events = subscriber.drain(10)
        hub.publish([change(state="7")])
        later = subscriber.drain(10)

    assert json.loads(dropped) == {"type": "dropped", "count": 4}
    assert _states(events) == ["4", "5", "6"]
    assert _states(later) == ["7"]


def test_a_slow_subscriber_does_not_affect_the_others() -> None:
    """What one loses the other still sees."""
    hub = Hub(max_events=2)
    with hub.subscribed(EVERYTHING), hub.subscribed(EVERYTHING) as quick:
        seen = []
        for number in range(6):
            hub.publish([change(state=str(number))])
            seen += _states(quick.drain(10))

    assert [str(number) for number in range(6)] == seen


async def test_a_subscriber_wakes_when_a_message_arrives() -> None:
    """Waiting ends with an event or an answer, and begins again after all was taken."""
    hub = Hub()
    async with asyncio.timeout(5):
        with hub.subscribed(EVERYTHING) as subscriber:
            waiting = asyncio.create_task(subscriber.filled())
            await asyncio.sleep(0)
            hub.publish([change()])
            await waiting
            subscriber.drain(10)
            again = asyncio.create_task(subscriber.filled())
            await asyncio.sleep(0)

            assert not again.done()
            subscriber.answer('{"type":"pong"}')
            await again
            assert subscriber.drain(10) == ['{"type":"pong"}']


def test_unsent_answers_are_bounded() -> None:
    """A client that pings without reading cannot fill the memory."""
    with Hub().subscribed(EVERYTHING) as subscriber:
        for number in range(1_000):
            subscriber.answer(str(number))

        assert [str(number) for number in range(984, 1_000)] == subscriber.drain(10)


@pytest.mark.parametrize(
    ("selection", "wanted"),
    [
        (Selection(), ["light.hall", "sensor.hall", "sensor.attic"]),
        (Selection(entity_id=("*.hall",)), ["light.hall", "sensor.hall"]),
        (Selection(entity_id=("light.*", "*.attic")), ["light.hall", "sensor.attic"]),
        (Selection(domain=("sens?r",)), ["sensor.hall", "sensor.attic"]),
        (Selection(area_id=("hall",)), ["light.hall", "sensor.hall"]),
        (Selection(device_class=("temp*",)), ["sensor.hall", "sensor.attic"]),
        (Selection(domain=("sensor",), area_id=("hall",)), ["sensor.hall"]),
        (Selection(area_id=("",)), ["sensor.attic"]),
        (Selection(entity_id=("hall",)), []),
    ],
)
def test_a_selection_needs_one_match_of_each_kind(selection: Selection, wanted: list[str]) -> None:
    """Globs of one kind are alternatives, kinds are conditions, and a glob fits the whole."""
    hub = Hub()
    changes = [
        change("light.hall", area_id="hall", device_class=None),
        change("sensor.hall", area_id="hall"),
        change("sensor.attic"),
    ]
    with hub.subscribed(selection) as subscriber:
        hub.publish(changes)
        hub.publish(changes)

        taken = [json.loads(message)["event"]["entity_id"] for message in subscriber.drain(10)]

    assert taken == wanted + wanted


def test_a_selection_is_checked_again_when_an_entity_moves() -> None:
    """Verdicts are of an entity in its area and class."""
    hub = Hub()
    with hub.subscribed(Selection(area_id=("hall",))) as subscriber:
        for area in ("hall", "attic", "hall"):
            hub.publish([change(area_id=area)])

        assert len(subscriber.drain(10)) == 2


def test_the_cache_of_selection_results_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """More entities than the bound are judged just as rightly."""
    monkeypatch.setattr(hub_module, "_MAX_VERDICTS", 2)
    wanted = Selection(entity_id=("sensor.1*",)).compiled()
    assert wanted is not None

    verdicts = [wanted(change(f"sensor.{number}")) for number in (*range(13), *range(13))]

    assert [number in {1, 10, 11, 12} for number in (*range(13), *range(13))] == verdicts


def test_the_hub_is_full_at_its_limit_of_subscribers() -> None:
    """Who leaves makes room."""
    hub = Hub(max_subscribers=1)
    with hub.subscribed(EVERYTHING):
        inside = (hub.subscribers, hub.full)

    assert [inside, (hub.subscribers, hub.full)] == [(1, True), (0, False)]


def test_a_selection_has_the_query_parameters_of_the_websocket() -> None:
    """The names of its fields are the names a client uses."""
    names = [field.name for field in fields(Selection)]

    assert names == ["entity_id", "domain", "area_id", "device_class"]
