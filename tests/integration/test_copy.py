"""`python -m app copy` between fake databases: results, faults, and kills at any moment."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path

import msgpack
import pytest

from app.commands.copy import influxql_reader
from app.commands.copy.embedded_store import FILE_NAME
from app.model import Change, Context, Placement, StoredPoint
from app.runtime.errors import DatabaseRefused, QueryFailed, SettingsError
from app.schema.homeiq import HomeiqEncoder
from app.schema.line_protocol import parse_line
from app.sinks.embedded import EmbeddedStore
from app.sinks.outcomes import Accepted
from tests.fakes.copying import Copying, required
from tests.fakes.documents import ROOT
from tests.fakes.influx import RESET, UNAUTHORIZED, FakeInflux, Reply
from tests.fakes.points import batch_of

BUCKET = "home_assistant"
DAY_NS = 86_400_000_000_000
WEEK_NS = 7 * DAY_NS
START_NS = 20_000 * DAY_NS - 30_000_000_000
LINES = [
    *(
        b'm%d,e=e%d value=%d.5,n=%di,text="a \\\\ b \\" c\nd",ok=true %d'
        % (n % 3, n % 5, n, n, START_NS + n * 900_000_000_000)
        for n in range(300)
    ),
    b"odd\\ \\,name,k\\ \\=\\,=v\\ \\=\\,\xc3\xbc"
    b' empty="",f\\ \\=\\,=9223372036854775807i %d' % START_NS,
]  # fmt: skip


@pytest.fixture
def copying(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Copying:
    """Return the command with a folder of its own."""
    return Copying(monkeypatch, tmp_path)


ENCODER = HomeiqEncoder("home_assistant_events", instance="here", attribute_fields=[])


def changed(number: int) -> Change:
    """Return a change; some are removals, some have no context or class."""
    return Change(
        entity_id=f"sensor.s{number % 7}",
        domain="sensor",
        time_ns=START_NS + number * 3_600_000_000_000,
        state=None if number % 9 == 0 else f'{number} "\\\n',
        previous_state="21.5" if number % 2 else None,
        duration_s=number / 7 if number % 3 else None,
        attributes=b'{"a":[1,"\xc3\xbc"]}',
        device_class="temperature" if number % 2 else None,
        unit_of_measurement="°C",
        friendly_name="A, b = c",
        context=Context(f"c{number}", None, "u") if number % 4 else None,
        placement=Placement(device_id="d", area_id="küche", model="m 1"),
        backfilled=number % 5 == 0,
    )


@asynccontextmanager
async def databases(
    source: str = "v1", target: str = "v1", *, lines: Sequence[bytes] = LINES
) -> AsyncIterator[tuple[FakeInflux, FakeInflux]]:
    """Serve a database with lines, and an empty one."""
    ends = [
        FakeInflux(version=version, bucket=BUCKET, token="" if version == "v1" else "secret")  # type: ignore[arg-type]
        for version in (source, target)
    ]
    ends[0].lines = list(lines)
    async with ends[0].serving(), ends[1].serving():
        yield ends[0], ends[1]


def settings(source: FakeInflux, target: FakeInflux) -> dict[str, str]:
    """Return the settings of a copy from one to the other."""
    return {
        "COPY_FROM_URL": source.url,
        "COPY_FROM_TOKEN": source.token,
        "INFLUXDB_URL": target.url,
        "INFLUXDB_BUCKET": BUCKET,
        "INFLUXDB_TOKEN": target.token,
        "INFLUXDB_MAX_BATCH_POINTS": "20",
    }


def values(database: FakeInflux) -> list[str]:
    """Return every field of every point of a database, with its type."""
    return sorted(
        repr((point.measurement, sorted(point.tags.items()), point.time_ns, name, value))
        for point in database.points()
        for name, value in point.fields.items()
    )


@pytest.mark.parametrize("source", ["v1", "v2"])
@pytest.mark.parametrize("target", ["v1", "v2"])
async def test_the_target_has_every_value_with_its_type(
    copying: Copying, source: str, target: str
) -> None:
    """And says so after comparing; the second run finds nothing left to do."""
    async with databases(source, target) as (ours, theirs):
        result = await copying(**settings(ours, theirs))
        requests = len(theirs.requests)
        again = await copying(**settings(ours, theirs))

    assert result.status == 0, result.printed
    assert "the target has every value of the source" in result.printed
    assert values(theirs) == values(ours)
    assert again.status == 0
    assert "copied and compared before" in again.printed
    assert len(theirs.requests) == requests


@pytest.mark.parametrize("source", ["v1", "v2"])
@pytest.mark.parametrize("target", ["v1", "v2"])
async def test_a_field_with_other_types_in_other_shards_is_copied_whole(
    copying: Copying, source: str, target: str
) -> None:
    """A query without casts over several shards returns one of the types alone."""
    kinds = (b"1i", b"1.5", b'"text"', b"true", b"2i")
    lines = [
        b"m,e=e v=%b,w=1i %d" % (kind, START_NS + number * WEEK_NS + at_ns)
        for number, kind in enumerate(kinds, start=-3_000)
        for at_ns in (0, 3_600_000_000_000)
    ]
    async with databases(source, target, lines=[*LINES, *lines]) as (ours, theirs):
        theirs.shard_ns = WEEK_NS
        result = await copying(**settings(ours, theirs))

    assert result.status == 0, result.printed
    assert "the target has every value of the source" in result.printed
    assert values(theirs) == values(ours)


async def test_values_of_any_type_that_the_target_lacks_are_found(copying: Copying) -> None:
    """Also where a query over several shards would hide them on both sides."""
    lines = [
        b"m v=1i %d" % START_NS,
        b'm v="text" %d' % (START_NS + 2 * WEEK_NS),
        b'm v="lost" %d' % (START_NS + 2 * WEEK_NS + 1),
    ]
    async with databases("v2", "v2", lines=lines) as (ours, theirs):
        theirs.shard_ns = WEEK_NS
        keep = theirs._keep
        theirs._keep = lambda lines: keep([each for each in lines if b"lost" not in each])  # type: ignore[method-assign]
        result = await copying(**settings(ours, theirs))

    assert result.status == 1, result.printed
    assert 'missing: m v="lost"' in result.printed


async def test_a_sparse_bucket_is_read_with_few_queries(copying: Copying) -> None:
    """Ten years with a value a month, and types that change: not a query for each shard."""
    lines = [
        b"m v=%b %d" % (b"1i" if number % 2 else b'"text"', START_NS - number * 30 * DAY_NS)
        for number in range(120)
    ]
    async with databases("v2", "v1", lines=lines) as (ours, theirs):
        theirs.shard_ns = WEEK_NS
        sent = 0

        def answers(chunks: list[bytes]) -> list[bytes]:
            nonlocal sent
            sent += 1
            return chunks

        ours.answers = answers
        result = await copying(**settings(ours, theirs))

    assert result.status == 0, result.printed
    assert len(theirs.points()) == 120
    assert sent < 5 * len(lines)


@pytest.mark.parametrize(
    ("bucket", "mappings"),
    [
        ("home/raw", []),
        (BUCKET, [{"database": "ha", "retention_policy": "long", "bucketID": "0"}]),
        (
            BUCKET,
            [
                {"database": BUCKET, "retention_policy": "autogen", "bucketID": "another"},
                {"database": "ha", "retention_policy": "long", "bucketID": "0"},
            ],
        ),
    ],
)
async def test_a_bucket_of_influxdb_2_is_read_by_any_name_that_only_it_has(
    copying: Copying, bucket: str, mappings: list[dict[str, str]]
) -> None:
    """The database and retention policy that it has in InfluxQL, whoever made them."""
    async with databases("v2", "v1") as (ours, theirs):
        ours.buckets, ours.mappings = {bucket}, mappings
        given = settings(ours, theirs) | {"COPY_FROM_BUCKET": bucket}
        result = await copying(**given)

    assert result.status == 0, result.printed
    assert values(theirs) == values(ours)


async def test_a_bucket_that_influxql_has_no_name_of_its_own_for_is_refused(
    copying: Copying,
) -> None:
    """As before 2.4, and where the names belong to another bucket: that one is not read."""
    async with databases("v2", "v1") as (ours, theirs):
        ours.mappings = [{"database": BUCKET, "retention_policy": "autogen", "bucketID": "another"}]
        with pytest.raises(DatabaseRefused, match=r"influx v1 dbrp create --bucket-id 0 "):
            await copying(**settings(ours, theirs))
        ours.mappings, ours.makes_mappings = [], False
        with pytest.raises(DatabaseRefused, match=r"influx v1 dbrp create --bucket-id 0 "):
            await copying(**settings(ours, theirs))

    assert theirs.requests == []


async def test_a_token_for_buckets_of_the_same_name_in_two_organizations_is_refused(
    copying: Copying,
) -> None:
    """InfluxQL reads the organization of the token, which may be the other one."""
    async with databases("v2", "v1") as (ours, theirs):
        ours.other_orgs = 1
        with pytest.raises(DatabaseRefused, match="of several organizations"):
            await copying(**settings(ours, theirs))

    assert theirs.requests == []


async def test_users_of_influxdb_1_are_sent_to_their_own_database(copying: Copying) -> None:
    """Each side has a user and a password; a wrong one is refused without showing it."""
    ours = FakeInflux(version="v1", bucket=BUCKET, username="reader", password="one-one")
    theirs = FakeInflux(version="v1", bucket=BUCKET, username="writer", password="two-two")
    ours.lines = list(LINES)
    async with ours.serving(), theirs.serving():
        given = settings(ours, theirs) | {
            "COPY_FROM_TOKEN": "",
            "COPY_FROM_USERNAME": "reader",
            "COPY_FROM_PASSWORD": "one-one",
            "INFLUXDB_TOKEN": "",
            "INFLUXDB_USERNAME": "writer",
            "INFLUXDB_PASSWORD": "two-two",
        }
        result = await copying(**given)
        with pytest.raises(DatabaseRefused, match="answers 401") as refused:
            await copying("--again", **given | {"COPY_FROM_PASSWORD": "three-three"})

    assert result.status == 0, result.printed
    assert values(theirs) == values(ours)
    assert "three-three" not in str(refused.value)


async def test_a_target_that_does_not_say_what_it_is_is_written_and_not_compared(
    copying: Copying,
) -> None:
    """Databases with InfluxDB's write API and no other."""
    async with databases() as (ours, theirs):
        theirs.ping_reply = Reply(status=204)
        result = await copying(**settings(ours, theirs))

    assert "nothing was compared" in result.printed
    assert values(theirs) == values(ours)


async def test_influxdb_3_is_written_and_not_compared(copying: Copying) -> None:
    """It has no query interface that the command reads; it says so."""
    async with databases("v1", "v3") as (ours, theirs):
        result = await copying(**settings(ours, theirs))

    assert "nothing was compared" in result.printed
    assert values(theirs) == values(ours)


async def test_the_embedded_store_is_copied_while_it_is_open(copying: Copying) -> None:
    """Every line that the service wrote into it comes out again."""
    lines = ENCODER.encode([changed(n) for n in range(200)]).split()
    path = copying.folder / FILE_NAME
    async with (
        EmbeddedStore(path, parse=parse_line, retention_days=36_500) as store,
        FakeInflux(version="v1", bucket=BUCKET).serving() as theirs,
    ):
        assert await store.write(batch_of(lines)) == Accepted()
        result = await copying(
            "--from", "embedded", INFLUXDB_URL=theirs.url, INFLUXDB_BUCKET=BUCKET
        )

    assert result.status == 0, result.printed
    assert "the target has every value of the source" in result.printed
    assert sorted(theirs.lines) == sorted(lines)


async def test_an_embedded_store_that_does_not_exist_is_named(copying: Copying) -> None:
    """It is not created."""
    with pytest.raises(SettingsError, match=r"events\.db does not exist"):
        await copying("--from", "embedded", INFLUXDB_URL="http://127.0.0.1:1")


async def test_a_bucket_without_points_is_reported(copying: Copying) -> None:
    """As a misspelt name of a label of VictoriaMetrics would be."""
    async with databases(lines=[]) as (ours, theirs):
        result = await copying(**settings(ours, theirs))

    assert result.status == 1
    assert "Nothing found" in result.printed


async def test_a_dry_run_counts_and_writes_nothing(copying: Copying) -> None:
    """It shows each measurement, and a point as it would be written."""
    async with databases() as (ours, theirs):
        result = await copying("--dry-run", **settings(ours, theirs))

    assert result.status == 0
    assert theirs.requests == []
    assert "m0: about 400 values on 5 days" in result.printed
    assert "Example: m0,e=e0 " in result.printed
    assert "Nothing was written" in result.printed


async def test_only_the_span_of_time_is_copied(copying: Copying) -> None:
    """From the first moment, up to and not including the last."""
    async with databases() as (ours, theirs):
        result = await copying(
            "--since", "2024-10-04T12:00Z", "--until", "2024-10-05T00:00Z", **settings(ours, theirs)
        )

    times = {point.time_ns for point in theirs.points()}
    expected = {p.time_ns for p in ours.points() if 20_000.5 <= p.time_ns / DAY_NS < 20_001}
    assert result.status == 0, result.printed
    assert times == expected
    assert len(times) == 48


async def test_what_the_target_lacks_is_listed_and_copied_by_the_next_run(copying: Copying) -> None:
    """As after a crash of a target that had acknowledged points it had not stored."""
    async with databases() as (ours, theirs):
        theirs.refuses = lambda _: None
        lost = LINES[17]
        keep = theirs._keep
        theirs._keep = lambda lines: keep([line for line in lines if b"e=e2 n=17i" not in line])  # type: ignore[method-assign]
        first = await copying(**settings(ours, theirs))
        theirs._keep = keep  # type: ignore[method-assign]
        second = await copying(**settings(ours, theirs))

    assert first.status == 1
    assert "4 are missing, 0 are only in the target" in first.printed
    assert "missing: m2,e=e2 " in first.printed
    assert lost.startswith(b"m2,e=e2 value=17.5")
    assert second.status == 0, second.printed
    assert values(theirs) == values(ours)


async def test_values_that_only_the_target_has_are_no_failure(copying: Copying) -> None:
    """The service writes there, too."""
    async with databases() as (ours, theirs):
        theirs.lines = [b"m0,e=live value=1 %d" % START_NS]
        result = await copying(**settings(ours, theirs))

    assert result.status == 0, result.printed
    assert "0 are missing, 1 are only in the target" in result.printed


async def test_refused_points_are_in_a_file_with_the_reason(copying: Copying) -> None:
    """Every one of them, and no other."""
    async with databases() as (ours, theirs):
        theirs.refuses = lambda line: "no fives" if b"e=e5" in line or b"e=e3" in line else None
        result = await copying(**settings(ours, theirs))

    refused = [line for line in LINES if b"e=e3" in line]
    assert result.status == 1
    assert f"Refused: {len(refused)} points" in result.printed
    assert copying.refused.count(b"no fives") == len(refused) > 50
    assert copying.refused.count(b"e=e3 ") == len(refused)
    assert len(theirs.points()) == len(LINES) - len(refused)


async def test_points_without_a_form_in_line_protocol_are_in_the_file(copying: Copying) -> None:
    """A tag that ends in a backslash: written, it would escape the comma behind it."""
    async with databases() as (ours, theirs):
        points = [
            StoredPoint(measurement="m", tags={"e": "x\\"}, fields={"v": 1.0}, time_ns=START_NS),
            StoredPoint(measurement="m", tags={"e": "y"}, fields={"v": 1.0}, time_ns=START_NS),
            StoredPoint(measurement="m", tags={}, fields={"f\\": 1.0}, time_ns=START_NS),
        ]
        ours.points = lambda: points  # type: ignore[method-assign]
        result = await copying(**settings(ours, theirs))

    assert result.status == 1
    assert b"line protocol cannot express" in copying.refused
    assert "Refused: 2 points" in result.printed
    assert theirs.lines == [b"m,e=y v=1.0 %d" % START_NS]


async def test_a_refused_point_is_listed_once_however_often_its_day_is_copied(
    copying: Copying,
) -> None:
    """The days on which the target lacks values are copied again by each run."""
    async with databases() as (ours, theirs):
        theirs.refuses = lambda line: "no threes" if b"m0,e=e3" in line else None
        for _ in range(2):
            result = await copying(**settings(ours, theirs))
        refused = copying.refused
        theirs.refuses = lambda _: None
        last = await copying(**settings(ours, theirs))

    count = sum(b"m0,e=e3" in line for line in LINES)
    assert f"Refused: {count} points" in result.printed
    assert refused.count(b"no threes") == count
    assert last.status == 0, last.printed
    assert copying.refused == b""


async def test_a_span_that_is_read_again_lists_its_refused_points_once(
    copying: Copying, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a source that failed in the middle of an answer."""
    monkeypatch.setattr(influxql_reader, "_ROWS", 10)
    failures = 2

    def answers(chunks: list[bytes]) -> list[bytes]:
        nonlocal failures
        if len(chunks) == 1 or not failures or not theirs.requests:
            return chunks
        failures -= 1
        return chunks[:-1]

    async with databases() as (ours, theirs):
        ours.answers = answers
        theirs.refuses = lambda line: "no threes" if b"m0,e=e3" in line else None
        result = await copying(**settings(ours, theirs))

    count = sum(b"m0,e=e3" in line for line in LINES)
    assert failures == 0
    assert f"Refused: {count} points" in result.printed
    assert copying.refused.count(b"no threes") == count


async def test_a_later_run_still_reports_points_that_could_not_be_copied(copying: Copying) -> None:
    """Their days are complete, so that run does not read them."""
    point = StoredPoint(measurement="m", tags={"e": "x\\"}, fields={"v": 1.0}, time_ns=START_NS)
    async with databases() as (ours, theirs):
        ours.points = lambda: [point]  # type: ignore[method-assign]
        first = await copying(**settings(ours, theirs))
        again = await copying(**settings(ours, theirs))

    assert (first.status, again.status) == (1, 1)
    assert "Refused: 1 points" in again.printed
    assert copying.refused.count(b"line protocol cannot express") == 1


async def test_a_type_conflict_of_a_whole_measurement_costs_few_requests(copying: Copying) -> None:
    """All lines with the field are refused together, and those without it are accepted together."""
    lines = [
        b"m,e=%d %b=1.5 %d" % (n % 3, b"w" if n % 10 == 0 else b"v", START_NS + n * 10**9)
        for n in range(600)
    ]
    async with databases(lines=lines) as (ours, theirs):
        theirs.lines, theirs._types = [b'm v="text" 1'], {(0, "m", "v"): str}
        given = settings(ours, theirs) | {"INFLUXDB_MAX_BATCH_POINTS": "600"}
        result = await copying(**given)

    assert result.status == 1
    assert copying.refused.count(b"field type conflict") == 540
    assert len(theirs.points()) == 1 + 60
    assert len(theirs.requests) < 15


FAULTS = [
    Reply(status=503, body="busy", headers={"Retry-After": "0"}),
    Reply(status=500, body="broken"),
    RESET,
]


@pytest.mark.parametrize("seed", range(5))
async def test_a_failing_target_delays_and_loses_nothing(copying: Copying, seed: int) -> None:
    """Errors of every kind at random moments."""
    chance = random.Random(seed)
    async with databases() as (ours, theirs):
        script = [chance.choice([*FAULTS, None, None]) for _ in range(60)]
        theirs.script.extend(reply for reply in script if reply is not None)
        result = await copying(**settings(ours, theirs))

    assert result.status == 0, result.printed
    assert values(theirs) == values(ours)
    assert copying.refused == b""


async def test_requests_that_are_too_large_are_split(copying: Copying) -> None:
    """Down to what the target accepts."""
    async with databases() as (ours, theirs):
        theirs.max_body_bytes = 150
        result = await copying(**settings(ours, theirs))

    assert result.status == 0, result.printed
    assert theirs.statuses.count(413) > 5
    assert values(theirs) == values(ours)


@pytest.mark.parametrize("fault", ["truncated", "reset", "cut in a chunk"])
async def test_an_answer_that_ends_early_is_read_again(copying: Copying, fault: str) -> None:
    """Whether the server ends it properly or not, and wherever."""
    left = 7

    def answers(chunks: list[bytes]) -> list[bytes]:
        nonlocal left
        ours.cuts_answer = False
        if len(chunks) == 1 or not left or not theirs.requests:
            return chunks
        left -= 1
        ours.cuts_answer = fault == "reset"
        return [*chunks[:-1], chunks[-1][:-5]] if fault == "cut in a chunk" else chunks[:-1]

    async with databases() as (ours, theirs):
        ours.answers = answers
        result = await copying(**settings(ours, theirs))

    assert result.status == 0, result.printed
    assert "Waiting: " in result.printed
    assert left == 0
    assert values(theirs) == values(ours)


async def test_an_error_within_an_answer_ends_the_command(copying: Copying) -> None:
    """InfluxDB 1 has sent the status 200 by then."""
    error = msgpack.packb({"results": [{"statement_id": 0, "error": "max-select-point exceeded"}]})
    async with databases() as (ours, theirs):
        ours.answers = lambda chunks: [*chunks[:2], error] if len(chunks) > 2 else chunks
        with pytest.raises(DatabaseRefused, match="max-select-point exceeded"):
            await copying(**settings(ours, theirs))


async def test_a_database_that_refuses_ends_the_command(copying: Copying) -> None:
    """A wrong token on either side, with the advice of the settings."""
    async with databases("v2", "v2") as (ours, theirs):
        wrong = settings(ours, theirs) | {"COPY_FROM_TOKEN": "wrong"}
        with pytest.raises(DatabaseRefused, match="answers 401"):
            await copying(**wrong)
        theirs.fault = UNAUTHORIZED
        with pytest.raises(DatabaseRefused, match=r"Check INFLUXDB_TOKEN"):
            await copying(**settings(ours, theirs))


async def test_only_a_copy_that_has_done_something_says_what_the_next_run_keeps(
    copying: Copying,
) -> None:
    """With nothing copied there is nothing to continue."""
    async with databases() as (ours, theirs):
        theirs.fault = UNAUTHORIZED
        with pytest.raises(DatabaseRefused):
            await copying(**settings(ours, theirs))
        before = copying.printed
        theirs.fault = None

        def closes_for_m1(line: bytes) -> None:
            if line.startswith(b"m1"):
                theirs.fault = UNAUTHORIZED

        theirs.refuses = closes_for_m1
        with pytest.raises(DatabaseRefused):
            await copying(**settings(ours, theirs))

    assert "are not read again" not in before
    assert "5 days are copied and are not read again by the next run" in copying.printed


async def test_a_database_that_does_not_respond_at_the_start_ends_the_command(
    copying: Copying,
) -> None:
    """An address with a mistake in it is not waited for."""
    async with databases() as (ours, theirs):
        nowhere = settings(ours, theirs) | {"COPY_FROM_URL": "http://127.0.0.1:1"}
        with pytest.raises(QueryFailed, match=r"127\.0\.0\.1:1"):
            await copying(**nowhere)


async def test_source_and_target_must_differ(copying: Copying) -> None:
    """Copying a database onto itself does nothing but work."""
    async with databases() as (ours, _):
        with pytest.raises(SettingsError, match="the same"):
            await copying(**settings(ours, ours))
        with pytest.raises(SettingsError, match="COPY_FROM_URL"):
            await copying(INFLUXDB_URL=ours.url)


async def test_a_rate_is_not_exceeded(copying: Copying) -> None:
    """Before each part it waits as long as those before it may take: the last may come early."""
    async with databases() as (ours, theirs):
        result = await copying("--points-per-second", "2", **settings(ours, theirs))

    assert result.status == 0
    assert 140 < copying.slept_s <= 150


@pytest.mark.parametrize("at", [1, 2, 5, 6, 10, 16])
async def test_a_copy_that_is_cancelled_at_any_write_continues(copying: Copying, at: int) -> None:
    """The second run ends it, and repeats at most one span of each measurement."""
    async with databases() as (ours, theirs):
        run = asyncio.create_task(copying(**settings(ours, theirs)), name="copy")

        def cancelled(_: bytes) -> None:
            if len(theirs.requests) + 1 >= at:
                run.cancel()

        theirs.refuses = cancelled
        with suppress(asyncio.CancelledError):
            await run
        theirs.refuses = lambda _: None
        result = await copying(**settings(ours, theirs))

    assert result.status == 0, result.printed
    assert values(theirs) == values(ours)


async def test_a_copy_that_is_killed_again_and_again_is_complete(tmp_path: Path) -> None:
    """With SIGKILL, in the middle of a request or of an answer."""
    async with databases() as (ours, theirs):
        ours.answer_delay_s, theirs.delay_s = 0.005, 0.02
        environment = {"PATH": os.environ["PATH"], **required(tmp_path), **settings(ours, theirs)}
        kills = 0
        for requests in (2, 7, 4, 1_000_000):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "app", "copy", cwd=ROOT, env=environment,
                stdout=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            await _until(theirs, len(theirs.requests) + requests, process)
            if process.returncode is None:
                process.kill()
                kills += 1
            status = await process.wait()

    assert status == 0
    assert kills == 3
    assert values(theirs) == values(ours)


async def _until(database: FakeInflux, requests: int, process: asyncio.subprocess.Process) -> None:
    """Wait for that many requests, or for the end of the process."""
    while len(database.requests) < requests and process.returncode is None:
        await asyncio.sleep(0.005)


def test_the_times_of_the_lines_rise() -> None:
    """So that the tests above copy several days."""
    times = [int(line.rsplit(b" ", 1)[1]) for line in LINES[:-1]]

    assert all(before < after for before, after in pairwise(times))
    assert len({time // DAY_NS for time in times}) == 5
