"""Contract of the InfluxDB sink, for every dialect and every database that speaks it.

The lines hold numbers and whole milliseconds, because VictoriaMetrics stores nothing else.
"""

from __future__ import annotations

import asyncio
import gzip
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TypeAlias
from uuid import uuid4

import pytest

from app.model import Row
from app.sinks.batches import Batch, cut, whole_rows
from app.sinks.influxdb.dialects import Version
from app.sinks.influxdb.sink import Api, InfluxSink
from app.sinks.outcomes import (
    Accepted,
    Busy,
    Held,
    Outcome,
    Refused,
    ServerFailed,
    TimedOut,
    TooLarge,
    Unavailable,
)
from tests.fakes import replies as fake
from tests.fakes.faults import FaultServer

Stored: TypeAlias = tuple[str, float, int]
"""A point as read back: its tag `room`, its field `v`, its time in ns."""

_START_NS = 1_700_000_000_000_000_000
_MILLISECOND_NS = 1_000_000
_IN_15_MINUTES = "a date"


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """One server as the suite sees it: URL, credentials, capabilities, and a way to read back."""

    version: Version
    url: str
    stored: Callable[[str, str], Awaitable[list[Stored]]]
    """Returns the points of a measurement in a database or bucket, in any order."""
    token: str = ""
    org: str = "homeiq"
    username: str = ""
    password: str = ""
    bucket: str = ""
    """Empty for a new one in each test, which the sink must create."""
    judges_lines: bool = True
    """Whether a line that does not parse is rejected rather than silently skipped."""
    judges_types: bool = True
    """Whether the first write fixes the type of a field."""
    forgets: bool = False
    """Whether a kill loses points accepted in the last seconds."""
    wants_credentials: bool = True
    """Whether wrong credentials are refused."""
    measurement: str = field(default_factory=lambda: f"m{uuid4().hex}")
    new_bucket: str = field(default_factory=lambda: f"b{uuid4().hex}")

    def sink(
        self,
        *,
        url: str = "",
        api: Api | None = None,
        token: str | None = None,
        password: str | None = None,
        timeout_s: float = 10.0,
    ) -> InfluxSink:
        """Return an unopened sink, by default with the right settings."""
        return InfluxSink(
            url or self.url,
            token=self.token if token is None else token,
            org=self.org,
            bucket=self.bucket or self.new_bucket,
            timeout_s=timeout_s,
            api=api or self.version,
            username=self.username,
            password=self.password if password is None else password,
        )

    def line(self, number: int, *, room: str = "kitchen", value: str = "") -> bytes:
        """Return a line of this test's own measurement, by default with its number as value."""
        time_ns = _START_NS + number * _MILLISECOND_NS
        return f"{self.measurement},room={room} v={value or number} {time_ns}".encode()

    def unreadable_line(self, number: int) -> bytes:
        """Return a line that no database can parse; its tag must not appear in a reason.

        VictoriaMetrics reads any invalid value as 0, but not an invalid time.
        """
        return self.line(number, room="secret_room", value="nonsense none")

    async def holds(self, *numbers: int) -> bool:
        """Assert that exactly the lines with these numbers are stored, each once."""
        expected = [
            ("kitchen", float(number), _START_NS + number * _MILLISECOND_NS) for number in numbers
        ]
        found = await self.stored(self.bucket or self.new_bucket, self.measurement)
        assert sorted(found) == expected
        return True


def batch_of(lines: Sequence[bytes], *, lines_per_row: int = 1) -> Batch:
    """Return a batch of journal rows with these lines."""
    rows = [
        Row(
            start + 1,
            len(part := lines[start : start + lines_per_row]),
            gzip.compress(b"".join(line + b"\n" for line in part)),
            0.0,
        )
        for start in range(0, len(lines), lines_per_row)
    ]
    return whole_rows(rows)


async def one_by_one(sink: InfluxSink, batch: Batch) -> list[Outcome]:
    """Write each line of a refused batch alone, as at the end of halving."""
    return [await sink.write(cut(batch, [index])) for index in range(batch.points)]


async def with_first_line(database: Database) -> Database:
    """Write line 0, so that the bucket or database exists before a fault server is used."""
    async with opened(database.sink()) as sink:
        assert await sink.write(batch_of([database.line(0)])) == Accepted()
    return database


@asynccontextmanager
async def opened(sink: InfluxSink) -> AsyncIterator[InfluxSink]:
    """Open a sink for a test."""
    async with asyncio.timeout(30), sink:
        yield sink


def retry_after(text: str) -> fake.Reply:
    """Return a 429 with a Retry-After header."""
    return fake.error(429, "slow down", code="too many requests", Retry_After=text)


FAULTS = {
    "401": (fake.UNAUTHORIZED, Held),
    "403": (fake.error(403, "forbidden", code="forbidden"), Held),
    "404 of a proxy": (fake.Reply(status=404, body="404 page not found"), Held),
    "405": (fake.Reply(status=405), Held),
    "413": (fake.Reply(status=413, body="<h1>Request Entity Too Large</h1>"), TooLarge),
    "413 before the body is read": (fake.Reply(status=413, act="early"), TooLarge),
    "429": (retry_after("7"), Busy),
    "503": (fake.error(503, "starting", code="unavailable"), Busy),
    "503 after storing": (fake.Reply(status=503, keeps=True), Busy),
    "200": (fake.Reply(status=200, body="OK"), Unavailable),
    "200 of a login page": (fake.Reply(status=200, body="<html>Log in</html>"), Unavailable),
    "302": (fake.Reply(status=302, headers={"Location": "/login"}), Unavailable),
    "307": (fake.Reply(status=307, headers={"Location": "/write"}), Unavailable),
    "HTML 500": (fake.HTML_500, ServerFailed),
    "502": (fake.Reply(status=502, body="Bad Gateway"), ServerFailed),
    "reset": (fake.RESET, Unavailable),
    "reset after storing": (fake.Reply(act="reset", keeps=True), Unavailable),
    "half an answer": (fake.HALF_AN_ANSWER, Unavailable),
    "half an answer after storing": (fake.Reply(act="half", keeps=True), Unavailable),
    "a body cut short": (fake.BODY_CUT_SHORT, Unavailable),
}


class SinkContract:
    """The suite; a test module defines a fixture `database` and derives a class from this one."""

    async def test_what_was_accepted_is_stored(self, database: Database) -> None:
        """In a bucket or database that the sink creates, with times in nanoseconds."""
        async with opened(database.sink()) as sink:
            assert await sink.write(batch_of([database.line(1), database.line(2)])) == Accepted()

        assert await database.holds(1, 2)

    async def test_every_row_of_a_large_batch_is_stored(self, database: Database) -> None:
        """Some databases would read only the first of several concatenated gzip streams."""
        lines = [database.line(number) for number in range(3_000)]

        async with opened(database.sink()) as sink:
            assert await sink.write(batch_of(lines, lines_per_row=10)) == Accepted()

        assert await database.holds(*range(3_000))

    async def test_writing_twice_stores_once(self, database: Database) -> None:
        """G3: so an uncertain write can simply be repeated."""
        batch = batch_of([database.line(1), database.line(2)])

        async with opened(database.sink()) as sink:
            assert [await sink.write(batch) for _ in range(3)] == [Accepted()] * 3

        assert await database.holds(1, 2)

    async def test_a_line_that_does_not_parse_costs_no_other_line(self, database: Database) -> None:
        """G6: alone it is refused again, and the other lines are stored."""
        batch = batch_of([database.line(1), database.unreadable_line(2), database.line(3)])

        async with opened(database.sink()) as sink:
            whole = await sink.write(batch)
            alone = await one_by_one(sink, batch)

        expected = Refused if database.judges_lines else Accepted
        assert type(whole) is expected
        assert [type(answer) for answer in alone] == [Accepted, expected, Accepted]
        assert await database.holds(1, 3)

    async def test_a_reason_does_not_quote_the_point(self, database: Database) -> None:
        """`/health` is public, and a line names things in a home."""
        bad = database.unreadable_line(2)

        async with opened(database.sink()) as sink:
            answers = [await sink.write(batch_of([bad])), await sink.write(batch_of([bad] * 200))]

        refused = [answer for answer in answers if isinstance(answer, Refused)]
        assert len(refused) == (2 if database.judges_lines else 0)
        assert [answer for answer in refused if "secret" in answer.reason] == []

    async def test_a_field_with_a_conflicting_type_is_named(self, database: Database) -> None:
        """With advice; the other lines are stored."""
        batch = batch_of([database.line(2), database.line(3, value='"three"')])

        async with opened(database.sink()) as sink:
            assert await sink.write(batch_of([database.line(1)])) == Accepted()
            whole = await sink.write(batch) if database.judges_types else None
            alone = await one_by_one(sink, batch) if database.judges_types else []

        if not database.judges_types:
            assert await database.holds(1)
            return
        assert isinstance(whole, Refused)
        assert "INFLUXDB_MEASUREMENT" in (whole.advice or "")
        assert any(f"{quote}v{quote}" in whole.reason for quote in "\"'")
        assert [type(answer) for answer in alone] == [Accepted, Refused]
        assert await database.holds(1, 2)

    @pytest.mark.parametrize("fault", FAULTS)
    async def test_a_fault_is_classified_and_loses_nothing(
        self, database: Database, fault: str
    ) -> None:
        """Only a 204 is success; a repeated write stores each point once."""
        reply, expected = FAULTS[fault]
        batch = batch_of([database.line(1), database.line(2)])
        await with_first_line(database)

        async with (
            FaultServer(database.url, reply).serving() as server,
            opened(database.sink(url=server.url)) as sink,
        ):
            failed, repeated = await sink.write(batch), await sink.write(batch)

        assert type(failed) is expected
        assert repeated == Accepted()
        assert await database.holds(0, 1, 2)

    @pytest.mark.parametrize("keeps", [False, True])
    async def test_a_missing_response_is_a_timeout(
        self, database: Database, *, keeps: bool
    ) -> None:
        """After INFLUXDB_TIMEOUT, whether the points were stored or not."""
        batch = batch_of([database.line(1), database.line(2)])
        script = [fake.Reply(act="hang", keeps=keeps), fake.Reply(act="slow", keeps=keeps)]
        await with_first_line(database)

        async with FaultServer(database.url, *script).serving() as server:
            async with opened(database.sink(url=server.url, timeout_s=0.2)) as sink:
                failed = [await sink.write(batch), await sink.write(batch)]
            async with opened(database.sink()) as sink:
                assert await sink.write(batch) == Accepted()

        assert failed == [TimedOut(reason="no answer in time")] * 2
        assert await database.holds(0, 1, 2)

    async def test_a_slow_response_within_the_timeout_is_accepted(self, database: Database) -> None:
        """The timeout is INFLUXDB_TIMEOUT and nothing shorter."""
        batch = batch_of([database.line(1)])
        await with_first_line(database)

        async with (
            FaultServer(database.url, fake.Reply(act="slow", keeps=True)).serving() as server,
            opened(database.sink(url=server.url)) as sink,
        ):
            assert await sink.write(batch) == Accepted()

        assert await database.holds(0, 1)

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("17", 17.0),
            (_IN_15_MINUTES, pytest.approx(900, abs=60)),
            ("99999999999", 99999999999.0),
            ("Mon, 01 Jan 2001 00:00:00 GMT", 0.0),
            ("soon", None),
            ("-1", None),
            ("", None),
        ],
        ids=["seconds", "date", "absurd", "past", "word", "negative", "empty"],
    )
    async def test_retry_after_is_read_from_a_busy_database(
        self, database: Database, text: str, seconds: float | None
    ) -> None:
        """In seconds or as a date; delivery caps absurd values."""
        if text == _IN_15_MINUTES:  # relative to now, not to the collection of the tests
            text = format_datetime(datetime.now(UTC) + timedelta(seconds=900), usegmt=True)
        async with (
            FaultServer(database.url, retry_after(text)).serving() as server,
            opened(database.sink(url=server.url)) as sink,
        ):
            busy = await sink.write(batch_of([database.line(1)]))

        assert busy == Busy(reason="slow down", status=429, retry_after_s=seconds)

    @pytest.mark.parametrize("status", [400, 415])
    async def test_a_plain_body_is_stored_where_gzip_is_refused(
        self, database: Database, status: int
    ) -> None:
        """The line is accepted uncompressed, so the refusal was not due to the line."""
        refusal = fake.Reply(status=status, body="no gzip here")
        await with_first_line(database)

        async with (
            FaultServer(database.url, refusal).serving() as server,
            opened(database.sink(url=server.url)) as sink,
        ):
            assert await sink.write(batch_of([database.line(1)])) == Accepted()
            assert await sink.write(batch_of([database.line(2), database.line(3)])) == Accepted()

        assert await database.holds(0, 1, 2, 3)

    async def test_only_victoria_metrics_acknowledges_before_it_stores(
        self, database: Database
    ) -> None:
        """A database identifies itself at `/metrics`."""
        async with opened(database.sink()) as sink:
            process = await sink.process()

        assert process is not None
        assert (process.flush_s > 0) == database.forgets
        assert process.started is not None or not database.forgets

    async def test_wrong_credentials_pause_delivery_and_are_named(self, database: Database) -> None:
        """By their variable, never by their value."""
        batch = batch_of([database.line(1)])

        async with opened(database.sink(token="wrong-token", password="wrong-password")) as sink:
            held = await sink.write(batch)

        if not database.wants_credentials:
            assert held == Accepted()
            return
        assert isinstance(held, Held)
        assert ("INFLUXDB_PASSWORD" if database.username else "INFLUXDB_TOKEN") in held.advice
        assert "wrong" not in f"{held.reason} {held.advice}"

    async def test_credentials_never_appear_in_an_outcome(self, database: Database) -> None:
        """Even when a server or a proxy repeats them."""
        secret = "s3cret/pass word+"
        echo = f"denied: {secret} s3cret%2Fpass%20word%2B s3cret/pass%20word%2B"
        script = [
            fake.error(401, echo),
            fake.error(400, echo),
            fake.error(400, echo),  # to the same line without gzip
            fake.Reply(status=500, body=echo),
            fake.Reply(status=302, headers={"Location": f"/login?as={secret}"}),
        ]

        async with (
            FaultServer(database.url, *script).serving() as server,
            opened(database.sink(url=server.url, token=secret, password=secret)) as sink,
        ):
            answers = [await sink.write(batch_of([database.line(1)])) for _ in range(4)]

        assert server.script == deque()
        assert [type(answer) for answer in answers] == [Held, Refused, ServerFailed, Unavailable]
        assert [answer for answer in answers if "s3cret" in str(answer)] == []

    async def test_a_wrong_url_pauses_delivery_and_is_named(self, database: Database) -> None:
        """Whether the server there answers 400 or 404."""
        async with opened(database.sink(url=f"{database.url}/nowhere")) as sink:
            held = await sink.write(batch_of([database.line(1)]))

        assert isinstance(held, Held | Unavailable)
        assert "INFLUXDB_URL" in str(held)

    async def test_the_dialect_is_detected(self, database: Database) -> None:
        """With INFLUXDB_API=auto, from the settings or from the server."""
        async with opened(database.sink(api="auto")) as sink:
            assert await sink.write(batch_of([database.line(1)])) == Accepted()

        assert await database.holds(1)

    async def test_a_ping_is_answered(self, database: Database) -> None:
        """Only while a server listens."""
        async with opened(database.sink()) as sink:
            assert await sink.ping()
        async with opened(database.sink(url="http://127.0.0.1:9")) as sink:
            assert not await sink.ping()
            assert isinstance(await sink.write(batch_of([database.line(1)])), Unavailable)
