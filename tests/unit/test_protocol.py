"""The protocol without I/O, fed with recorded messages of real Home Assistants."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.homeassistant.protocol import REGISTRY_EVENTS, MalformedFrame, Phase, Received, Session
from app.model import Context
from app.normalize.attributes import read_attributes
from app.runtime.errors import CommandFailed, SourceAuthRejected, SourceProtocolError
from tests.fakes.recordings import VERSIONS, event_messages, frame, recording

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJpc3MiOiIwMTIzNDU2Nzg5In0.c2lnbmF0dXJl"

every_version = pytest.mark.parametrize("version", VERSIONS)


def authenticated(*, subscribe: bool = True) -> Session:
    """Return a session that Home Assistant has accepted."""
    session = Session(TOKEN, subscribe=subscribe)
    session.feed(frame({"type": "auth_required", "ha_version": "2026.11.0"}))
    session.feed(frame({"type": "auth_ok", "ha_version": "2026.11.0"}))
    return session


def streaming() -> Session:
    """Return a session whose subscription to `state_changed` was accepted."""
    session = authenticated()
    for command_id in range(1, 8):
        session.feed(frame(success(command_id)))
    return session


def success(command_id: int, result: object = None) -> dict[str, object]:
    """Return a result as Home Assistant sends it."""
    return {"id": command_id, "type": "result", "success": True, "result": result}


def refusal(command_id: int | None, code: str) -> dict[str, object]:
    """Return a refusal as Home Assistant sends it."""
    error = {"code": code, "message": "No."}
    return {"id": command_id, "type": "result", "success": False, "error": error}


def changed(entity_id: str = "sensor.kitchen", **new_state: object) -> dict[str, Any]:
    """Return a small state change."""
    moment = "2026-11-23T12:00:00.000001+00:00"
    state = {
        "entity_id": entity_id,
        "state": "21.5",
        "attributes": {},
        "last_changed": moment,
        "last_updated": moment,
        **new_state,
    }
    data = {"entity_id": entity_id, "old_state": None, "new_state": state}
    return {
        "type": "event",
        "event": {"event_type": "state_changed", "data": data, "time_fired": moment},
        "id": 2,
    }


def entity_ids(step: Received) -> list[str | None]:
    """Return which entities changed, in order."""
    return [event.data.entity_id for event in step.events]


def kinds(step: Received) -> list[str]:
    """Return what was wrong with each malformed message."""
    return [problem.kind for problem in step.malformed]


@every_version
def test_the_token_is_sent_when_home_assistant_requests_it(version: str) -> None:
    """`auth_required` is answered with `auth`, and with nothing else."""
    recorded = recording(version, "auth_handshake")["ok"]
    session = Session(TOKEN)

    step = session.feed(frame(recorded["server1"]))

    assert [{**recorded["client"], "access_token": TOKEN}] == [json.loads(s) for s in step.send]
    assert Phase.AUTHENTICATING is step.phase


@every_version
def test_features_come_first_and_then_the_subscriptions(version: str) -> None:
    """Coalescing is asked for as id 1; ids increase; state changes come before the rest."""
    recorded = recording(version, "auth_handshake")["ok"]
    session = Session(TOKEN)
    session.feed(frame(recorded["server1"]))

    step = session.feed(frame(recorded["server2"]))

    subscriptions = [
        {"id": number, "type": "subscribe_events", "event_type": event_type}
        for number, event_type in enumerate(("state_changed", *REGISTRY_EVENTS), start=2)
    ]
    features = {"id": 1, "type": "supported_features", "features": {"coalesce_messages": 1}}
    assert [features, *subscriptions] == [json.loads(sent) for sent in step.send]
    assert Phase.SUBSCRIBING is step.phase
    assert version == session.ha_version


@every_version
@pytest.mark.parametrize("case", ["invalid_token", "malformed_auth", "command_before_auth"])
def test_a_refused_token_is_an_error_of_its_own(version: str, case: str) -> None:
    """Retrying soon will not help, so the caller must be able to distinguish it."""
    (message,) = recording(version, "auth_handshake")[case]["received"]
    session = Session(TOKEN)
    session.feed(frame({"type": "auth_required", "ha_version": version}))

    with pytest.raises(SourceAuthRejected, match=r"Invalid access token|incorrectly formatted"):
        session.feed(frame(message))


def test_a_session_for_commands_subscribes_to_nothing() -> None:
    """It is ready as soon as it is authenticated."""
    session = Session(TOKEN, subscribe=False)
    session.feed(frame({"type": "auth_required"}))

    step = session.feed(frame({"type": "auth_ok"}))

    assert (step.phase, step.send) == (Phase.READY, [])


@every_version
def test_every_recorded_state_change_is_read(version: str) -> None:
    """All kinds of change are read as Home Assistant sent them, attributes byte for byte."""
    messages = list(event_messages(recording(version, "state_changed_events")))
    session = streaming()

    events = [event for message in messages for event in session.feed(frame(message)).events]

    assert len(messages) == len(events) > 5
    for message, event in zip(messages, events, strict=True):
        assert message["event"]["data"]["entity_id"] == event.data.entity_id
        for name in ("old_state", "new_state"):
            told, read = message["event"]["data"][name], getattr(event.data, name)
            assert (told is None) == (read is None)
            if read is not None:
                assert told["state"] == read.state
                assert told["last_updated"] == read.last_updated.isoformat(timespec="microseconds")
                assert frame(told["attributes"]) == bytes(read.attributes)
        context, new_state = message["event"]["context"], message["event"]["data"]["new_state"]
        assert event.context == Context(**context)
        assert new_state is None or new_state["context"] == context, "so it is read only once"


@every_version
def test_a_live_day_of_history_is_read(version: str) -> None:
    """The longer recording of live events holds no surprise either."""
    events = recording(version, "history_backfill")["live_events"]
    messages = [{"id": 2, "type": "event", "event": event} for event in events]

    step = streaming().feed(frame(messages))

    assert (len(events), []) == (len(step.events), step.malformed)


def test_a_frame_may_be_a_list_of_messages() -> None:
    """With coalescing a frame is an object or a list of them, in order."""
    (coalesced,) = recording("2025.4.4", "coalesce")["frames"]

    step = streaming().feed(frame(coalesced))

    told = [message["event"]["data"]["entity_id"] for message in coalesced]
    assert told == entity_ids(step)
    assert len(told) == 6


def test_the_first_events_may_share_a_frame_with_the_answers() -> None:
    """Nothing that comes with the subscription's own answer is lost."""
    session = authenticated()

    step = session.feed(frame([success(1), success(2), changed("sensor.first")]))

    assert (step.phase, entity_ids(step)) == (Phase.READY, ["sensor.first"])


@every_version
def test_registry_events_are_split_into_renames_and_refreshes(version: str) -> None:
    """Renames come with state changes; everything else is for the registries."""
    messages = list(event_messages(recording(version, "registry_changes")))
    session = streaming()

    steps = [session.feed(frame(message)) for message in messages]

    told = [message["event"]["event_type"] for message in messages]
    assert told.count("state_changed") == sum(len(step.events) for step in steps)
    assert [event_type for event_type in told if event_type != "state_changed"] == [
        event.event_type for step in steps for event in step.registry_events
    ]
    assert not any(step.malformed for step in steps)


@every_version
@pytest.mark.parametrize("user", ["token_user", "token_readonly"])
def test_the_session_of_a_read_only_user_streams_events(version: str, user: str) -> None:
    """What such a user may not subscribe to is gone without."""
    commands = recording(version, "non_admin")[user]["commands"]
    allowed = {
        command["command"].get("event_type"): command["error"]
        for command in commands
        if command["command"]["type"] == "subscribe_events"
    }
    session = authenticated()

    steps = [session.feed(frame(success(1)))]
    for number, event_type in enumerate(("state_changed", *REGISTRY_EVENTS), start=2):
        error = allowed[event_type]
        answer = success(number) if error is None else {**refusal(number, ""), "error": error}
        steps.append(session.feed(frame(answer)))

    failures = [str(answer.failure) for step in steps for answer in step.answers if answer.failure]
    assert [
        f"subscribe_events {event_type}: unauthorized: Unauthorized"
        for event_type in REGISTRY_EVENTS
        if allowed[event_type]
    ] == failures
    assert Phase.READY is session.phase


@every_version
def test_a_home_assistant_without_supported_features_is_accepted(version: str) -> None:
    """Without coalescing each event has a frame of its own, and all is well."""
    session = authenticated()

    step = session.feed(frame(recording(version, "errors_ping")["unknown_command"]))
    session.feed(frame(success(2)))

    (answer,) = step.answers
    assert str(answer.failure) == "supported_features: unknown_command: Unknown command."
    assert Phase.READY is session.phase


def test_a_session_that_may_not_subscribe_to_state_changes_ends() -> None:
    """The one required subscription was refused, so the connection is unusable."""
    session = authenticated()

    with pytest.raises(SourceProtocolError, match="refused subscribe_events state_changed: unauth"):
        session.feed(frame(refusal(2, "unauthorized")))


@every_version
@pytest.mark.parametrize(
    "name",
    [
        *(
            f"config_{kind}_registry_list"
            for kind in ("area", "device", "entity", "floor", "label")
        ),
        "get_config",
        "get_states",
        "recorder_info",
    ],
)
def test_a_result_is_matched_to_its_command(version: str, name: str) -> None:
    """An answer carries the id of its command, and its result unread."""
    recorded = recording(version, name)
    session = authenticated(subscribe=False)
    for _ in range(recorded["id"]):
        command_id, _ = session.command("get_states")

    (answer,) = session.feed(frame(recorded)).answers

    assert (recorded["id"], None) == (command_id, answer.failure)
    assert recorded["result"] == json.loads(bytes(answer.result))


@every_version
def test_a_refused_command_has_the_reason(version: str) -> None:
    """The code can be acted on; the message is for people."""
    recorded = recording(version, "errors_ping")["extra_key"]
    session = authenticated(subscribe=False)
    session.command("get_config")
    session.command("get_states", foo=1)

    (answer,) = session.feed(frame(recorded)).answers

    assert isinstance(answer.failure, CommandFailed)
    assert (answer.failure.command, answer.failure.code) == ("get_states", "invalid_format")


def test_a_pong_is_the_answer_to_a_ping() -> None:
    """It has no result, only an id."""
    session = authenticated(subscribe=False)
    command_id, ping = session.command("ping")

    (answer,) = session.feed(frame({"id": command_id, "type": "pong"})).answers

    assert {"id": command_id, "type": "ping"} == json.loads(ping)
    assert (command_id, None, b"null") == (answer.command_id, answer.failure, bytes(answer.result))


@every_version
@pytest.mark.parametrize("case", ["id_reuse", "no_id"])
def test_a_result_without_a_command_is_only_logged(version: str, case: str) -> None:
    """It belongs to none of our commands and has no effect."""
    step = streaming().feed(frame(recording(version, "errors_ping")[case]))

    assert kinds(step) == ["unexpected_id"]


def test_a_refusal_without_a_reason_is_still_a_refusal() -> None:
    """`success` alone decides."""
    session = authenticated(subscribe=False)
    session.command("get_states")

    (answer,) = session.feed(frame({"id": 1, "type": "result", "success": False})).answers

    assert str(answer.failure) == "get_states: unknown: no reason given"


@pytest.mark.parametrize(
    ("session", "message"),
    [
        (Session(TOKEN), {"type": "auth_ok"}),
        (Session(TOKEN), changed()),
        (Session(TOKEN), {"type": "hello"}),
        (authenticated(), {"type": "auth_required"}),
        (streaming(), {"type": "auth_ok"}),
        (streaming(), {"type": "auth_invalid"}),
    ],
)
def test_a_message_that_the_phase_does_not_allow_ends_the_session(
    session: Session, message: dict[str, object]
) -> None:
    """Who speaks so is not Home Assistant, or is confused: a new connection is the cure."""
    with pytest.raises(SourceProtocolError, match=f"Unexpected message '{message['type']}' while"):
        session.feed(frame(message))


def test_an_unknown_type_of_message_is_only_logged() -> None:
    """A later Home Assistant may say more than we know."""
    step = streaming().feed(frame([changed("a.b"), {"type": "weather"}]))

    assert (["a.b"], [MalformedFrame("unexpected_type", "A message of type 'weather'")]) == (
        entity_ids(step),
        step.malformed,
    )


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ({"type": "event"}, "unexpected_shape"),
        ({"type": "event", "event": None}, "unexpected_shape"),
        ({"type": "event", "event": {"data": {}}}, "unexpected_shape"),
        ({"type": "event", "event": {"event_type": "state_changed"}}, "unexpected_shape"),
        (changed(state=21.5), "unexpected_shape"),
        (changed(last_updated="yesterday"), "unexpected_shape"),
        (changed(last_updated="2026-11-23T12:00:00"), "unexpected_shape"),
        ({"id": "two", "type": "result"}, "unexpected_shape"),
        ({"no": "type"}, "unexpected_shape"),
        (["a list in a list"], "unexpected_shape"),
        (None, "unexpected_shape"),
        (7, "unexpected_shape"),
    ],
)
def test_a_bad_message_does_not_affect_the_others_in_its_frame(message: object, kind: str) -> None:
    """Each message stands for itself, before and after the bad one, alone or in a list."""
    session = streaming()

    coalesced = session.feed(frame([changed("sensor.before"), message, changed("sensor.after")]))

    assert entity_ids(coalesced) == ["sensor.before", "sensor.after"]
    assert [kind] == kinds(coalesced)
    if not isinstance(message, list):
        assert [kind] == kinds(session.feed(frame(message)))
    assert entity_ids(session.feed(frame(changed("sensor.later")))) == ["sensor.later"]


@pytest.mark.parametrize(
    "torn",
    [
        b'{"id":2,"type":"event","event":{"event_type":"state_ch',
        b'{"type":"event","event":oops}',
        b"not json at all",
        b"{" * 5000,
        b"[" * 5000,
    ],
)
@pytest.mark.parametrize("last", [True, False])
def test_a_message_that_is_not_json_does_not_affect_the_others_in_its_frame(
    torn: bytes, *, last: bool
) -> None:
    """In a list that does not parse, reading goes on where the next message begins."""
    before, after = frame(changed("sensor.before")), frame(changed("sensor.after"))
    parts = [before, after, torn] if last else [before, torn, after]

    step = streaming().feed(b"[" + b" , ".join(parts) + b"]")

    assert (entity_ids(step), kinds(step)) == (["sensor.before", "sensor.after"], ["not_json"])


@pytest.mark.parametrize("nothing", [b"", b"  ", b"\xff", b"<html>", b'{"type":', b"\x00"])
def test_a_frame_that_is_not_json_is_logged_and_dropped(nothing: bytes) -> None:
    """It never ends the session, in whatever phase."""
    for session in (Session(TOKEN), authenticated(), streaming()):
        assert kinds(session.feed(nothing)) == ["not_json"]


def test_a_frame_with_an_empty_list_changes_nothing() -> None:
    """It is a frame like any other."""
    assert (streaming().feed(b"[]").events, streaming().feed(b" [ ] ").malformed) == ([], [])


@pytest.mark.parametrize(
    ("odd", "read"),
    [
        (b"NaN", None),
        (b"-Infinity", None),
        (b"[Infinity, 1]", [None, 1]),
        (b"[NaN, 1e999, -1.5e3]", [None, None, -1500.0]),
        (rb'"\ud800"', "�"),
        (rb'"\udc00 x"', "� x"),
        (rb'["\ud83d\ude00", NaN]', ["😀", None]),
        (b'"two\nlines"', "two\nlines"),
        ('["°C", NaN]'.encode(), ["°C", None]),
    ],
)
def test_messages_that_strict_json_forbids_are_repaired(odd: bytes, read: object) -> None:
    """NaN becomes null and what is no text becomes U+FFFD; the event counts as fine."""
    message = frame(changed("sensor.odd", attributes={"a": "ODD"})).replace(b'"ODD"', odd)

    step = streaming().feed(b"[" + frame(changed("sensor.even")) + b"," + message + b"]")

    assert (entity_ids(step), step.malformed) == (["sensor.even", "sensor.odd"], [])
    new_state = step.events[1].data.new_state
    assert new_state is not None
    assert {"a": read} == msgspec.json.decode(new_state.attributes)


@pytest.mark.parametrize(("odd", "read"), [(b'"\xff\xfe"', "��"), (b'"\xed\xa0\x80"', "���")])
def test_attributes_that_are_not_utf_8_are_left_to_the_attribute_reader(
    odd: bytes, read: object
) -> None:
    """Most are only compared with those before, so the reader replaces what is not text."""
    message = frame(changed("sensor.odd", attributes={"a": "ODD"})).replace(b'"ODD"', odd)

    step = streaming().feed(b"[" + frame(changed("sensor.even")) + b"," + message + b"]")

    assert (entity_ids(step), step.malformed) == (["sensor.even", "sensor.odd"], [])
    new_state = step.events[1].data.new_state
    assert new_state is not None
    assert {"a": read} == msgspec.json.decode(read_attributes(bytes(new_state.attributes)).json)


def test_a_result_that_is_not_utf_8_is_repaired() -> None:
    """A result is not checked again, so it must be UTF-8 when it is passed on."""
    session = streaming()
    command_id, _ = session.command("config/area_registry/list")
    answer = frame({"id": command_id, "type": "result", "success": True, "result": "ODD"})

    step = session.feed(answer.replace(b"ODD", b"\xff"))

    assert msgspec.json.decode(step.answers[0].result) == "�"


def test_a_state_that_is_not_utf_8_is_repaired() -> None:
    """Half a character in a state is replaced, and the others stay."""
    message = frame(changed(state="HALF!")).replace(b"HALF", rb"\ud800")

    (event,) = streaming().feed(message).events

    assert event.data.new_state is not None
    assert event.data.new_state.state == "�!"


def test_an_excerpt_of_a_message_shows_the_entity_and_no_other_value() -> None:
    """It shows the words of the protocol and the entity, and no other value."""
    message = changed(
        "person.anna",
        state=1,
        attributes={"latitude": 52.37, "access_token": "s3cret", "note": f"is {TOKEN}"},
        context={"id": "01M84RV0EN92NQ8968Z0FMC459"},
    )
    door = {"id": 7, "type": "event", "event": {"id": "front", "code": "4711", "action": "open"}}

    (problem,) = streaming().feed(frame(message)).malformed

    assert problem.excerpt.startswith("Expected `str`, got `int` - at `$.event.data.new_state.st")
    assert '"entity_id":"person.anna"' in problem.excerpt
    assert len(problem.excerpt) <= 200
    for private in ("52.37", "s3cret", TOKEN, "anna is"):
        assert private not in problem.excerpt
    (problem,) = streaming().feed(frame(door)).malformed
    assert problem.excerpt.endswith('{"id":7,"type":"event","event":{"id":…,"code":…,"action":…}}')


@pytest.mark.parametrize(
    "message",
    [
        TOKEN,
        {"type": TOKEN},
        {"type": "result", "id": None, "error": {"code": TOKEN, "message": TOKEN}},
        {"type": {TOKEN: TOKEN}},
        {"type": 7, "entity_id": TOKEN},
        {"type": 7, "entity_id": "sensor.0123456789abcdef0123456789abcdef"},
    ],
)
def test_no_excerpt_shows_a_token(message: object) -> None:
    """Not even when the peer sends our own token back."""
    (problem,) = streaming().feed(frame(message)).malformed

    assert TOKEN not in problem.excerpt
    assert "0123456789abcdef" not in problem.excerpt


def test_no_error_shows_the_token() -> None:
    """The peer's message is repeated without the token."""
    session = Session(TOKEN)
    session.feed(frame({"type": "auth_required"}))

    with pytest.raises(SourceAuthRejected, match=r"^\*\*\* is wrong$"):
        session.feed(frame({"type": "auth_invalid", "message": f"{TOKEN} is wrong"}))


def test_no_repr_shows_the_token() -> None:
    """A step holds frames to send, and one of these contains the token."""
    session = Session(TOKEN)

    step = session.feed(frame({"type": "auth_required"}))

    assert TOKEN in step.send[0].decode()
    assert TOKEN not in f"{step!r} {session!r}"


@given(st.binary().filter(lambda noise: b"auth_" not in noise))
def test_no_bytes_end_a_streaming_session(noise: bytes) -> None:
    """Whatever comes is noted, and the next event is read; only talk of authentication ends it."""
    session = streaming()

    session.feed(noise)

    assert entity_ids(session.feed(frame(changed("a.b")))) == ["a.b"]


_NO_TYPE = st.text().filter(lambda key: key != "type")
"""A value with a type would be a message."""

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(_NO_TYPE, inner),
)


@settings(max_examples=30)
@given(_JSON, _JSON)
def test_no_broken_json_costs_another_message_of_its_frame(first: object, last: object) -> None:
    """An event between any two values is read, and each of those is accounted for."""
    messages = [first, changed("a.b"), last]

    step = streaming().feed(json.dumps(messages).encode())

    assert (entity_ids(step), len(step.malformed)) == (["a.b"], 2)


def _ready() -> Session:
    session = Session("t" * 40, subscribe=False)
    session.feed(b'{"type":"auth_required"}')
    session.feed(b'{"type":"auth_ok"}')
    return session


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(b"[" + b"1," * 20_000_000 + b"1]", id="numbers"),
        pytest.param(b"[" + b"{}," * 2_000_000 + b"{}]", id="objects"),
        pytest.param(b"[" + b'{"type":"x"},' * 2_000_000 + b'{"type":"x"}]', id="messages"),
        pytest.param(b"[" + b'{"type":"x"},' * 20_000 + b'{"type":"x"}]', id="some too many"),
        pytest.param(b'[1,{"id":[' + b',{"id":[' * 500_000, id="nested"),
        pytest.param(b'[1,{"id":[' + b',{"id":x' * 500_000, id="broken"),
        pytest.param(b"[" * 30_000_000, id="deep"),
    ],
)
def test_a_frame_costs_no_more_than_its_size(frame: bytes) -> None:
    """What would take seconds ends the connection: what was in it is read back as a gap."""
    began = time.thread_time()

    with pytest.raises(SourceProtocolError):
        _ready().feed(frame)

    assert time.thread_time() - began < 5.0


def test_a_single_message_too_long_to_be_repaired_is_malformed() -> None:
    """It is an answer, so the caller times out."""
    frame = b'{"id":1,"type":"result","result":[NaN' + b",1" * 10_000_000 + b"]}"

    (problem,) = _ready().feed(frame).malformed

    assert problem.kind == "not_json"


def test_the_masked_reason_of_a_failed_command_is_cut_first() -> None:
    """An error message of megabytes holds neither the event loop nor the token."""
    session = _ready()
    number, _ = session.command("get_states")
    message = b"a" * 190 + b"t" * 40 + b"a" * 10_000_000
    frame = b'{"id":%d,"type":"result","error":{"code":1,"message":"%b"}}' % (number, message)

    (answer,) = session.feed(frame).answers

    assert answer.failure is not None
    assert len(str(answer.failure)) < 300
    assert "t" * 8 not in str(answer.failure)
