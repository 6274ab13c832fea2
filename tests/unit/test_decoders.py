"""Every decoder of foreign input returns a value within bounds or raises its own error."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from datetime import UTC, datetime

import httpx
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.commands.command_line import moment
from app.discovery.columns import DEVICES, ENTITIES, row_to_send
from app.discovery.data_api import reason_of, verdict_on
from app.discovery.registries import KINDS, list_registries
from app.fanout.hub import encode_event
from app.homeassistant.messages import Event
from app.homeassistant.protocol import Session
from app.homeassistant.recorder import Recorder
from app.model import (
    Times,
    http_date,
    is_representable,
    iso_time,
    moment_at,
    moment_of,
    nanoseconds,
)
from app.normalize.attributes import MAX_BYTES, read_attributes
from app.normalize.changes import Normalizer
from app.runtime.errors import SourceError, SourceUnavailable
from app.runtime.tolerant_json import UNREADABLE, repaired
from app.schema.homeiq import HomeiqEncoder
from app.sinks.influxdb.response import retry_after_s

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

http_dates = st.builds(
    "{}, {} {} {} {}:{}:{} {}".format,
    st.sampled_from(["Mon", "Xxx", ""]),
    st.integers(-1, 10**20) | st.integers(0, 32),
    st.sampled_from(["Jan", "Dec", "Xxx", "²"]),
    st.integers(0, 10_000) | st.sampled_from([10**20, 10**5000]).map(lambda _: "9" * 5000),
    st.integers(0, 99),
    st.integers(0, 61),
    st.integers(0, 61),
    st.sampled_from(["GMT", "+2359", "-2359", "+9999", "-0000", "+" + "9" * 20, "EST", "²²²²"]),
)


@given(st.text(max_size=200) | http_dates)
@example("Mon, 01 Jan 99999999999999999999 00:00:00 GMT")
@example("Fri, 31 Dec 9999 23:59:59 -2359")
@example("Mon, 01 Jan 0001 00:00:00 +2359")
@example("Mon, 01 Jan 2020 00:00:00 +99999999999999999999")
@example("Sun, 06 Nov 1994 08:49:37 GMT")
def test_a_date_header_is_a_valid_point_time_or_none(text: str) -> None:
    """Arithmetic with it never overflows a datetime."""
    moment = http_date(text)

    assert moment is None or (is_representable(nanoseconds(moment)) and moment.tzinfo is UTC)


@given(st.text(max_size=200) | http_dates | st.integers().map(str) | st.floats().map(str))
@example("9" * 5000)
@example("1e400")
@example("-1")
@example("Mon, 01 Jan 99999999999999999999 00:00:00 GMT")
def test_a_retry_after_is_a_number_of_seconds_or_none(text: str) -> None:
    """However absurd, it neither raises nor becomes infinite."""
    asked_s = retry_after_s(text, now=NOW)

    assert asked_s is None or 0.0 <= asked_s < 1e16


@pytest.mark.parametrize("year", ["1600", "2300", "9999"])
def test_a_date_outside_the_range_of_a_point_is_ignored(year: str) -> None:
    """In a handshake's Date and in Retry-After."""
    assert http_date(f"Mon, 01 Jan {year} 00:00:00 GMT") is None


numbers = st.integers() | st.floats() | st.sampled_from([10**18, 10**30, 1e300, -1e300, 2**63])
times = st.one_of(
    st.sampled_from(
        [
            "0001-01-01T00:00:00+00:00",
            "0001-01-01T00:00:00+23:59",
            "0001-01-01T00:00:00-23:59",
            "1600-01-01T00:00:00Z",
            "2300-01-01T00:00:00.5+00:00",
            "9999-12-31T23:59:59.999999999-23:59",
            "9999-12-31T23:59:60Z",
            "2016-12-31T23:59:60Z",
            "2026-11-23T24:00:00Z",
            "2026-11-23T12:00:00+99:99",
            "2026-11-23T12:00:00",
            "2026-11-23T12:00:00.1234567890123Z",
        ]
    ),
    st.datetimes().map(lambda moment: f"{moment.isoformat()}Z"),
    st.text(),
    numbers,
)
scalars = st.none() | st.booleans() | numbers | st.text() | times
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
RAW = (
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
    "1" * 100_000,
    "1e400",
    "[1e400]",
    "-" + "9" * 400 + ".0",
    "NaN",
    '"\\ud800"',
    '{"\\ud800":1}',
    "",
)


def encoded(value: object) -> bytes:
    """Return JSON as another program may write it, NaN and lone surrogates included."""
    return json.dumps(value).encode()


bytes_of_documents = (
    documents.map(encoded) | st.binary(max_size=50) | st.sampled_from(RAW).map(str.encode)
)
states = st.fixed_dictionaries(
    {"state": st.just("on") | scalars},
    optional={
        "entity_id": st.just("sensor.a") | scalars,
        "attributes": documents,
        "last_changed": times,
        "last_updated": times,
        "context": documents,
    },
)
events = st.fixed_dictionaries(
    {
        "id": st.integers(),
        "type": st.just("event"),
        "event": st.fixed_dictionaries(
            {
                "event_type": st.just("state_changed"),
                "data": st.fixed_dictionaries(
                    {"entity_id": st.just("sensor.a") | scalars},
                    optional={"old_state": states | scalars, "new_state": states | scalars},
                ),
            },
            optional={"time_fired": times, "context": documents},
        ),
    }
)


def ready() -> Session:
    """Return a session that is ready for commands."""
    session = Session("t" * 40, subscribe=False)
    session.feed(b'{"type":"auth_required"}')
    session.feed(b'{"type":"auth_ok"}')
    return session


@given(st.lists(events, max_size=3).map(encoded) | bytes_of_documents)
def test_every_frame_becomes_lines_and_messages_or_is_counted(frame: bytes) -> None:
    """From the socket to line protocol and to subscribers only our own errors are raised."""
    found: list[Event] = []
    try:
        step = ready().feed(frame)
        found = step.events
    except SourceError:
        pass
    changes, malformed = Normalizer(dict).changes(found)
    lines = HomeiqEncoder("m", instance=None, attribute_fields=["*"]).encode(changes)

    assert len(changes) + len(malformed) == len(found)
    assert lines.points == len(changes)
    for change in changes:
        assert is_representable(change.time_ns)
        assert is_representable(change.changed_ns or 0)
        json.loads(encode_event(change))


@given(bytes_of_documents)
@example(b'{"a":' + b"1" * 100_000 + b"}")
def test_attributes_are_portable_json_or_refused(raw: bytes) -> None:
    """For any size, depth and number of digits."""
    try:
        attributes = read_attributes(raw)
    except ValueError:
        return
    assert len(attributes.json) <= MAX_BYTES
    assert isinstance(json.loads(attributes.json), dict)


@given(bytes_of_documents)
def test_repaired_json_is_strict_json_or_unreadable(raw: bytes) -> None:
    """A caller has to catch two exceptions."""
    try:
        strict = repaired(raw)
    except UNREADABLE:
        return
    msgspec.json.decode(strict)


rows = st.fixed_dictionaries(
    {"s": st.none() | st.just("on") | scalars, "lu": numbers | scalars},
    optional={"lc": numbers | scalars, "a": documents},
)


@given(
    st.lists(states, max_size=3).map(encoded) | bytes_of_documents,
    st.dictionaries(st.just("sensor.a"), st.lists(rows, max_size=3)).map(encoded)
    | bytes_of_documents,
    st.fixed_dictionaries({"backlog": scalars}).map(encoded) | bytes_of_documents,
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "when": numbers | scalars,
                "entity_id": scalars,
                "statistic_id": scalars,
                "domain": st.just("homeassistant") | scalars,
                "message": st.just("started") | scalars,
            },
        ),
        max_size=3,
    ).map(encoded)
    | bytes_of_documents,
)
async def test_every_answer_of_the_recorder_is_read_or_our_own_error(
    newest: bytes, history: bytes, info: bytes, listed: bytes
) -> None:
    """States, rows, lists and the backlog, whatever their numbers and times."""
    answers = {
        "get_states": newest,
        "recorder/info": info,
        "get_config": info,
        "history/history_during_period": history,
    }

    async def call(command: str, **_: object) -> msgspec.Raw:
        return msgspec.Raw(answers.get(command, listed))

    async def sleep(_: float) -> None:
        slept.append(None)
        if len(slept) > 15:
            raise SourceUnavailable("the connection was lost meanwhile")

    slept: list[None] = []
    recorder = Recorder(call, sleep=sleep)
    for read in (recorder.registered, recorder.with_statistics, recorder.missing_component):
        with contextlib.suppress(SourceError):
            await read()
    with contextlib.suppress(SourceError):
        await recorder.logbook(Times(0, 10))
    with contextlib.suppress(SourceError):
        await recorder.rows_before(10**18, ["sensor.a"])
    with contextlib.suppress(SourceError):
        await recorder.until_written(later_changes=lambda: (0, ()), obstructed=lambda _: None)
    try:
        for state in (await recorder.newest_states()).values():
            nanoseconds(state.last_updated)
        times = Times(-(2**63) + 2, -(2**63) + 10)
        async for part in recorder.history(times, ["sensor.a"]):
            for row in part.history.get("sensor.a", ()):
                assert is_representable(int(row.lu * 1e9))
                moment_at(row.lu)
    except SourceError:
        pass


registry_rows = st.fixed_dictionaries(
    {"id": st.just("a"), "entity_id": st.just("sensor.a"), "area_id": st.just("b")},
    optional=dict.fromkeys(
        (
            "created_at",
            "manufacturer",
            "sw_version",
            "labels",
            "unique_id",
            "name",
            "supported_features",
            "capabilities",
            "disabled_by",
            "config_entries",
        ),
        documents,
    ),
)


@given(st.lists(registry_rows, max_size=3).map(encoded) | bytes_of_documents)
@example(b'[{"id":"a","entity_id":"sensor.a","area_id":"b","x":1e400,"created_at":1e300}]')
@example(b'[{"id":"a","entity_id":"sensor.a","area_id":"b","name":"\\ud800"}]')
async def test_every_registry_is_stored_and_sent_or_our_own_error(answer: bytes) -> None:
    """Every stored row can be written to columns and sent to a data API."""

    async def call(command: str) -> msgspec.Raw:
        is_mapping = command.endswith("list_composite_splits")
        return msgspec.Raw(b'{"a":%b}' % _first_row(answer) if is_mapping else answer)

    try:
        registries = await list_registries(call)
    except SourceError:
        return
    for kind in KINDS:
        for raw in registries.raw[kind].values():
            row = row_to_send(kind, raw, domains={}, source="home")
            msgspec.json.encode(row)
            for table in (DEVICES, ENTITIES):
                for value in (table.values(row, moment="now") or {}).values():
                    assert value is None or isinstance(value, str) or -(2**63) <= value < 2**63


def _first_row(answer: bytes) -> bytes:
    try:
        return bytes(msgspec.json.decode(answer, type=list[msgspec.Raw])[0])
    except (msgspec.DecodeError, IndexError):
        return b"{}"


@given(st.integers(100, 999), bytes_of_documents)
def test_every_answer_of_a_data_api_has_an_outcome_and_a_short_reason(
    status: int, body: bytes
) -> None:
    """Whatever its body contains."""
    assert verdict_on(status) in {"accepted", "halve", "retry"}
    assert len(reason_of(status, body)) <= 200
    assert httpx.codes.get_reason_phrase(status) is not None


@given(st.integers(-(2**63), 2**63 - 1))
def test_every_integer_of_a_file_converts_to_a_time(time_ns: int) -> None:
    """A SQLite integer has 64 bits, and another program may have written it."""
    assert is_representable(nanoseconds(moment_of(time_ns)))
    assert iso_time(time_ns).endswith("Z")


@given(st.floats())
def test_every_float_of_a_file_converts_to_a_time(seconds: float) -> None:
    """NaN and infinities, too."""
    assert moment_at(seconds).tzinfo is UTC


@given(times.map(str) | st.text())
@example("0001-01-01")
@example("9999-12-31T23:59:59-23:59")
@example("0001-01-01T00:00:00+23:59")
@example("2300-01-01")
@example("999999 weeks ago")
def test_a_time_on_the_command_line_is_a_valid_point_time_or_refused(text: str) -> None:
    """A wrong --since is one line and status 2, never a traceback."""
    try:
        found = moment(text)
    except argparse.ArgumentTypeError:
        return
    assert is_representable(nanoseconds(found))


@pytest.mark.parametrize("text", ["last week", "0001-01-01", "2300-01-01"])
def test_the_error_of_a_wrong_time_on_the_command_line_names_the_cause(text: str) -> None:
    """By default argparse names only the function that parses it."""
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a time"):
        moment(text)


TODAY = datetime(2026, 11, 24, 15, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("today", datetime(2026, 11, 24, tzinfo=UTC)),
        ("Yesterday", datetime(2026, 11, 23, tzinfo=UTC)),
        ("3 days ago", datetime(2026, 11, 21, 15, 30, tzinfo=UTC)),
        ("1 hour ago", datetime(2026, 11, 24, 14, 30, tzinfo=UTC)),
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T06:00+01:00", datetime(2026, 11, 1, 5, tzinfo=UTC)),
    ],
)
def test_a_time_on_the_command_line_may_be_a_word_a_date_or_a_time(
    text: str, expected: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Days begin at local midnight; here the machine's zone is UTC."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()

    assert moment(text, now=TODAY) == expected
