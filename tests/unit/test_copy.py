"""The pure parts of `python -m app copy`, and its writer against a target that fails at random."""

from __future__ import annotations

import io
import json
import random
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.commands.copy.bar import ProgressBar
from app.commands.copy.rows import (
    ENCODERS,
    Chunk,
    Row,
    Unwritable,
    line_of,
    name,
    row_of,
    samples,
    series,
)
from app.commands.copy.source import DAY_NS, Days, Measurement, Period
from app.commands.copy.spans import spans_of
from app.commands.copy.verification import Comparison
from app.commands.copy.victoria_metrics import VictoriaMetrics, measurements_of
from app.commands.copy.writer import LineWriter
from app.runtime.errors import DatabaseRefused, QueryFailed
from app.runtime.retry import Backoff
from app.schema.line_protocol import parse_line
from app.sinks.batches import Batch, FieldName
from app.sinks.influxdb.dialects import Target
from app.sinks.influxdb.http import Request
from app.sinks.influxdb.influxql import ChunkedAnswer, Series, quoted
from app.sinks.outcomes import (
    Accepted,
    Busy,
    Held,
    Outcome,
    OutOfBounds,
    Refused,
    ServerFailed,
    TimedOut,
    TooLarge,
)

NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
VALUES = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
)


@given(NAMES, st.dictionaries(NAMES, NAMES), st.dictionaries(NAMES, VALUES, min_size=1), st.data())
def test_a_row_is_the_point_in_line_protocol(
    measurement: str, tags: dict[str, str], fields: dict[str, object], data: st.DataObject
) -> None:
    """Names and strings of any characters, unless line protocol has no form for them."""
    time_ns = data.draw(st.integers(-(2**62), 2**62))
    try:
        head = series(measurement.encode(), {k.encode(): v.encode() for k, v in tags.items()})
        encoded = [
            name(key.encode()) + b"=" + ENCODERS[type(value)](value)
            for key, value in fields.items()
        ]
    except Unwritable:
        return
    row = (head, encoded, time_ns)
    line = line_of(row)

    assert row_of(line) == row
    if '"' not in "".join(fields):
        point = parse_line(line)
        assert point.measurement == measurement
        assert point.tags == tags
        assert {key: (type(v), v) for key, v in point.fields.items()} == {
            key: (type(v), v) for key, v in fields.items()
        }


@pytest.mark.parametrize(
    "text", [b"", b"a\\", b"a\\,b", b"a\\ b", b"a\\=b", b"a\nb", b"a\rb"], ids=repr
)
def test_a_name_without_a_form_in_line_protocol_is_refused(text: bytes) -> None:
    """It would join what follows, or end the line."""
    with pytest.raises(Unwritable):
        name(text)


def test_a_measurement_that_would_be_a_comment_is_refused() -> None:
    """A database would skip its line in silence."""
    with pytest.raises(Unwritable):
        series(b"#m", {})


@pytest.mark.parametrize("line", [b"", b"m", b"m 1", b"m v=1", b'm v="a 1', b"m v=1,, 5"], ids=repr)
def test_what_is_no_line_is_no_row(line: bytes) -> None:
    """Rather than a part of it."""
    with pytest.raises(ValueError, match="Not line protocol"):
        row_of(line)


def test_victoria_metrics_stores_a_sample_for_each_field() -> None:
    """Numbers as floats, texts as 0 or the number they spell, times in milliseconds."""
    numbers = (b"a=1i", b"b=-0.5", b"c=true", b"f\\ \\==2u")
    fields = (*numbers, b'd="21.5"', b'e="on, \\" = off"', b'g="NaN"')
    rows: list[Row] = [(b"m\\ 1,t=x\\,y", fields, 1_999_999)]

    assert list(samples(rows)) == [
        (b"m\\ 1_%b,t=x\\,y" % key, (value,), 1_000_000)
        for key, value in [
            (b"a", b"1.0"),
            (b"b", b"-0.5"),
            (b"c", b"1.0"),
            (b"f\\ =", b"2.0"),
            (b"d", b"21.5"),
            (b"e", b"0.0"),
            (b"g", b""),
        ]
    ]


@given(st.sets(st.text(alphabet="ab_°", min_size=1, max_size=8), max_size=12))
def test_measurement_and_field_joined_are_the_metric(metrics: set[str]) -> None:
    """Whatever is taken for the measurement; none is lost."""
    found = measurements_of(metrics)
    joined = {f"{m}_{each}" if m else each for m, fields in found.items() for each in fields}

    assert joined == metrics


def test_what_stands_before_a_value_names_a_measurement() -> None:
    """So attributes with underscores belong to it."""
    metrics = ["°C_value", "°C_battery_level", "sensor.a_b_state", "sensor.a_b_x", "go_gc_s", "up"]

    assert measurements_of(metrics) == {
        "": ["up"],
        "go_gc": ["s"],
        "sensor.a_b": ["state", "x"],
        "°C": ["battery_level", "value"],
    }


def answer(*results: dict[str, object]) -> bytes:
    """Return results as InfluxDB 1 packs them."""
    return b"".join(msgpack.packb({"results": [each]}) for each in results)


PART = {"name": "m", "tags": {"e": "é\n"}, "columns": ["time", "v"], "values": [[5, 1], [6, 2.0]]}


def test_an_answer_may_be_cut_anywhere() -> None:
    """Even within a number; integers and floats stay apart."""
    text = answer({"series": [PART], "partial": True}, {"series": [PART]})
    whole = ChunkedAnswer()
    found: list[Series] = []
    for at in range(len(text)):
        found += whole.feed(text[at : at + 1])
    whole.close()

    rows = [row for part in found for row in part.rows]
    assert [part.tags for part in found] == [{b"e": "é\n".encode()}] * 2
    assert [(type(value), value) for _, value in rows] == [(int, 1), (float, 2.0)] * 2


@pytest.mark.parametrize("missing", [1, 40, 70])
def test_an_answer_that_ends_early_is_no_answer(missing: int) -> None:
    """Also where a whole chunk is missing, which only its mark shows."""
    text = answer({"series": [PART], "partial": True}, {"series": [PART]})
    cut = ChunkedAnswer()
    list(cut.feed(text[:-missing]))

    with pytest.raises(QueryFailed):
        cut.close()


def test_an_error_within_an_answer_is_raised_after_the_rows_before_it() -> None:
    """InfluxDB 1 has sent the status 200 by then."""
    broken = ChunkedAnswer()
    found = broken.feed(answer({"series": [PART], "partial": True}, {"error": "timeout"}))

    assert next(found).name == b"m"
    with pytest.raises(DatabaseRefused, match="timeout"):
        next(found)


@pytest.mark.parametrize(
    "text", [b"<html>", b'{"results":[]}', b"\xc1", b"\x80", b"\x93abc"], ids=repr
)
def test_what_is_no_answer_of_influxdb_is_refused(text: bytes) -> None:
    """A page of a proxy is no empty result."""

    def decode() -> None:
        other = ChunkedAnswer()
        list(other.feed(text))
        other.close()

    with pytest.raises(QueryFailed):
        decode()


def test_an_answer_without_rows_is_whole() -> None:
    """As for a measurement that has no points in a span of time."""
    empty = ChunkedAnswer()
    assert list(empty.feed(answer({"statement_id": 0}))) == []
    empty.close()


def test_names_in_statements_are_quoted() -> None:
    """Whatever they hold."""
    assert quoted('a"b\\c\nd') == '"a\\"b\\\\c\\nd"'


def test_days_are_read_together_up_to_a_month_or_many_values() -> None:
    """And not those that are done."""
    days = Days(array("q", [1, 2, 3, 40, 41]), array("q", [10, 10, 150_000, 150_000, 10]))
    measurement = Measurement(name="m", fields=(), days=days)
    within = Period(DAY_NS + 5, 41 * DAY_NS + 7)

    found = list(spans_of(measurement, within, {Period(2 * DAY_NS, 3 * DAY_NS)}))

    assert [(span.days[0], span.days[-1], span.values) for span in found] == [
        (Period(DAY_NS + 5, 2 * DAY_NS), Period(3 * DAY_NS, 4 * DAY_NS), 150_010),
        (Period(40 * DAY_NS, 41 * DAY_NS), Period(41 * DAY_NS, 41 * DAY_NS + 7), 150_010),
    ]


class _Stored:
    """A database with rows."""

    unit = "values"
    counts_exactly = True
    has_whole_points = True

    def __init__(self, rows: Iterable[Row]) -> None:
        self.omitted: list[str] = []
        self.rows = list(rows)

    def measurements(self, times: Period) -> AsyncIterator[Measurement]:
        raise NotImplementedError

    async def read(
        self, measurement: str, fields: Sequence[str], times: Period, /
    ) -> AsyncGenerator[Chunk, None]:
        for row in self.rows:
            if times.start_ns <= row[2] < times.end_ns:
                yield Chunk(rows=[row])


ROWS: list[Row] = [(b"m,e=%d" % (n % 3), (b"v=%d.0" % n, b"w=1i"), n * 10**13) for n in range(20)]


async def test_databases_with_the_same_values_in_another_order_are_equal() -> None:
    """Also where one has each field in a row of its own."""
    apart = [(head, (each,), at) for head, fields, at in reversed(ROWS) for each in fields]
    comparison = Comparison(_Stored(ROWS), _Stored(apart), as_samples=False)
    days = [Period(n * DAY_NS, (n + 1) * DAY_NS) for n in range(3)]

    assert await comparison.differences("m", (), days) == []


@pytest.mark.parametrize(
    "changed",
    [
        [],
        [(b"m,e=0", (b"v=0.5", b"w=1i"), 0)],
        [(b"m,e=0", (b"v=0i", b"w=1i"), 0)],
        [(b"m,e=1", (b"v=0.0", b"w=1i"), 0)],
        [(b"m,e=0", (b"v=0.0", b"w=1i"), 1)],
    ],
    ids=["missing", "value", "type", "series", "time"],
)
async def test_a_point_that_differs_is_found_and_named(changed: list[Row]) -> None:
    """On its day, and not on the next one, which is equal."""
    comparison = Comparison(_Stored(ROWS), _Stored([*changed, *ROWS[1:]]), as_samples=False)
    days = [Period(0, DAY_NS), Period(DAY_NS, 2 * DAY_NS)]

    (found,) = await comparison.differences("m", (), days)

    assert found.day == days[0]
    assert found.missing in {1, 2}
    assert any("m,e=0 v=0.0 0" in example for example in found.examples)


async def test_two_values_in_a_millisecond_are_one_sample_whichever_is_stored() -> None:
    """A value in another millisecond that differs is still found."""
    rows: list[Row] = [(b"m", (b"v=1i",), 10), (b"m", (b"v=2i",), 20), (b"m", (b"v=3i",), 10**6)]
    day = Period(0, DAY_NS)
    for kept in rows[:2]:
        stored = _Stored([(b"m", kept[1], 0), (b"m", (b"v=3.0",), 10**6)])
        assert (
            await Comparison(_Stored(rows), stored, as_samples=True).differences("m", (), [day])
            == []
        )
    stored = _Stored([(b"m", (b"v=1.0",), 0), (b"m", (b"v=4.0",), 10**6)])

    (found,) = await Comparison(_Stored(rows), stored, as_samples=True).differences("m", (), [day])

    assert (found.missing, found.extra) == (1, 1)


class _Flaky:
    """A target that fails at random and refuses some lines."""

    name = "flaky"

    def __init__(self, chance: random.Random) -> None:
        self.stored: list[bytes] = []
        self._chance = chance

    async def ping(self) -> bool:
        return self._chance.random() < 0.5

    async def write(self, batch: Batch) -> Outcome:
        lines = batch.lines()
        drawn = self._chance.random()
        if drawn < 0.4:
            failures: list[Outcome] = [
                Busy(reason="busy"),
                TimedOut(reason="late"),
                ServerFailed(reason="broken", status=500),
            ]
            return self._chance.choice(failures)
        if len(lines) > 7:
            return TooLarge(reason="too large")
        if any(line.startswith(b"bad") for line in lines):
            return Refused(reason="bad")
        old = [line for line in lines if line.startswith(b"old")]
        if old:
            self.stored += [line for line in lines if line not in old]
            return OutOfBounds(cause="retention", reason="too old", dropped=len(old))
        self.stored += lines
        return Accepted()


@pytest.mark.parametrize("seed", range(20))
async def test_every_line_is_stored_or_refused(seed: int) -> None:
    """However the target fails, and however many lines in a row it refuses."""
    chance = random.Random(seed)
    kinds = chance.choices([b"good", b"bad", b"old"], [8, seed % 4, 1], k=400)
    lines = [b"%b v=%d %d" % (kind, n, n) for n, kind in enumerate(kinds)]
    target, refused, reasons = _Flaky(chance), list[bytes](), set[str]()

    async def sleep(_: float) -> None:
        pass

    writer = LineWriter(
        target, refuse=lambda line, _: refused.append(line), backoff=Backoff(max_s=60),
        max_points=50, waiting=reasons.add, sleep=sleep,
    )  # fmt: skip
    for start in range(0, len(lines), 90):
        await writer.write(lines[start : start + 90])

    assert set(target.stored) == {line for line in lines if line.startswith(b"good")}
    assert refused == [line for line in lines if not line.startswith(b"good")]
    assert reasons <= {"busy", "late", "broken"}


class _Sharded(_Flaky):
    """A target that has the field `v` as text on even days, and names one shard as InfluxDB 1."""

    requests = 0

    async def write(self, batch: Batch) -> Outcome:
        self.requests += 1
        lines = batch.lines()
        refused = [
            line for line in lines if b" v=" in line and int(line.split()[-1]) // DAY_NS % 2 == 0
        ]
        self.stored += [line for line in lines if line not in refused]
        if not refused:
            return Accepted()
        shard = int(refused[0].split()[-1]) // DAY_NS
        dropped = sum(int(line.split()[-1]) // DAY_NS == shard for line in refused)
        return Refused(reason="conflict", conflict=FieldName("v", "m"), dropped=dropped)


async def test_a_type_conflict_of_some_shards_is_found_by_their_times() -> None:
    """InfluxDB 1 counts the refused points of one shard only."""
    lines = [
        b"m,e=%d %b=1 %d" % (n % 7, b"w" if n % 3 == 0 else b"v", n * DAY_NS // 100)
        for n in range(1_000)
    ]
    target, refused = _Sharded(random.Random(0)), list[bytes]()
    writer = LineWriter(
        target, refuse=lambda line, _: refused.append(line), backoff=Backoff(max_s=1),
        max_points=1_000, waiting=lambda _: None,
    )  # fmt: skip

    await writer.write(lines)

    expected = {n for n in range(1_000) if n % 3 and n // 100 % 2 == 0}
    assert {int(line.split()[-1]) * 100 // DAY_NS for line in refused} == expected
    assert set(target.stored) == set(lines) - set(refused)
    assert len(refused) == len(expected)
    assert target.requests < 60


async def test_a_target_that_needs_a_person_ends_the_writing() -> None:
    """With what to do about it; a wrong token does not heal by waiting."""

    class Closed(_Flaky):
        async def write(self, batch: Batch) -> Outcome:
            return Held(reason="unauthorized", advice="Check INFLUXDB_TOKEN.")

    writer = LineWriter(
        Closed(random.Random(0)), refuse=lambda *_: None, backoff=Backoff(max_s=1),
        max_points=5, waiting=lambda _: None,
    )  # fmt: skip

    with pytest.raises(DatabaseRefused, match=r"unauthorized\. Check INFLUXDB_TOKEN\."):
        await writer.write([b"m v=1 1"])


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_with_an_estimate() -> None:
    """On one line, that is drawn again."""
    now_s, out = 0.0, _Terminal()
    bar = ProgressBar(out, "Copying", total=1_000, unit="values", clock=lambda: now_s)
    now_s = 60.0
    bar.advance(100)
    bar.print("Waiting: busy")
    now_s = 300.0
    bar.advance(400)
    bar.finish()

    text = out.getvalue()
    assert (
        "\r" + "Copying [###...........................]  10%  100 values, 2/s, 9 min left" in text
    )
    assert "\nWaiting: busy\n" in text
    assert text.endswith("50%  500 values, 2/s, 5 min left\x1b[K\n")


def test_a_file_gets_a_line_for_each_tenth() -> None:
    """Without control characters."""
    out = io.StringIO()
    bar = ProgressBar(out, "Copying", total=100, unit="values", clock=lambda: 1.0)
    for _ in range(100):
        bar.advance(1)
    bar.finish()

    lines = out.getvalue().splitlines()
    assert len(lines) == 11
    assert "\r" not in out.getvalue()
    assert json.dumps(lines[-1]).count("\\") == 0


class _Exporting:
    """A VictoriaMetrics that answers an export with given parts."""

    target = Target(bucket="home")

    def __init__(self, *parts: bytes) -> None:
        self._parts = parts

    async def stream(self, _: Request) -> AsyncIterator[bytes]:
        for part in self._parts:
            yield part

    async def body(self, _: Request) -> bytes:
        return b'{"status":"success","data":["m_v"]}'


async def exported(*parts: bytes) -> Chunk:
    """Return what is read of an export."""
    source, read = VictoriaMetrics(_Exporting(*parts)), Chunk()  # type: ignore[arg-type]
    async for chunk in source.read("m", ("v",), Period()):
        read.rows += chunk.rows
        read.refused += chunk.refused
    return read


def sample(values: str, times: str, **labels: str) -> bytes:
    """Return a line of an export."""
    metric = json.dumps({"__name__": "m_v", "db": "home", **labels})
    return f'{{"metric":{metric},"values":[{values}],"timestamps":[{times}]}}\n'.encode()


async def test_an_export_may_be_cut_anywhere() -> None:
    """Values are floats, and the label of the bucket is no tag."""
    text = sample("1,2.5", "5,6", t="é, x") + sample("-0", "7", db="other")
    parts = [text[at : at + 1] for at in range(len(text))]

    assert (await exported(*parts)).rows == [
        ("m,t=é\\,\\ x".encode(), (b"v=1.0",), 5_000_000),
        ("m,t=é\\,\\ x".encode(), (b"v=2.5",), 6_000_000),
        (b"m,db=other", (b"v=-0.0",), 7_000_000),
    ]


async def test_of_samples_with_one_time_the_last_is_copied() -> None:
    """Also where a line ends between them; other series are other samples."""
    read = await exported(sample("1,2", "5,5"), sample("3", "5"), sample("4", "5", t="x"))

    assert read.rows == [(b"m", (b"v=3.0",), 5_000_000), (b"m,t=x", (b"v=4.0",), 5_000_000)]


async def test_samples_that_influxdb_has_no_form_for_are_refused() -> None:
    """Marks of series that ended, infinity, and labels that line protocol cannot express."""
    read = await exported(sample('null,"Infinity",1', "5,6,7"), sample("2", "8", t="x\\"))

    assert read.rows == [(b"m", (b"v=1.0",), 7_000_000)]
    assert [each.reason.partition(" the ")[0] for each in read.refused] == [
        "InfluxDB has no such number",
        "InfluxDB has no such number",
        "line protocol cannot express",
    ]


@pytest.mark.parametrize(
    "parts",
    [[sample("1", "5")[:-1]], [b"<html>\n"], [sample("1", "5").replace(b"m_v", b"m_v\xff")]],
    ids=["early end", "a page", "not UTF-8"],
)
async def test_what_is_no_whole_export_is_read_again(parts: list[bytes]) -> None:
    """Rather than copied in part."""
    with pytest.raises(QueryFailed):
        await exported(*parts)
