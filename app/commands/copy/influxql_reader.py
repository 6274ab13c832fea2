"""Reads an InfluxDB 1 or 2 with InfluxQL."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Container,
    Mapping,
    Sequence,
)
from typing import Any, NamedTuple
from urllib.parse import urlencode

from app.commands.copy.rows import (
    ENCODERS,
    Chunk,
    RefusedRow,
    Row,
    Unwritable,
    line_of,
    name,
    series,
)
from app.commands.copy.source import (
    DAY_NS,
    NOTHING_WANTED,
    Days,
    Measurement,
    Period,
    Wants,
    every_field,
)
from app.model import SECOND_NS
from app.sinks.influxdb.http import Request
from app.sinks.influxdb.influxql import CONTENT_TYPE, ChunkedAnswer, Series, Value, Values, quoted
from app.sinks.influxdb.queries import QueryClient

_HOUR_NS = 3_600 * SECOND_NS
_ROWS = 5_000
_BYTES = 4_000_000
_ROWS_PER_PART = 2_000


class Location(NamedTuple):
    """Where InfluxQL finds points."""

    database: str
    policy: str | None = None
    """The retention policy; None for the default one."""


class InfluxQlReader:
    """A database of an InfluxDB 1 in one retention policy, or a bucket of an InfluxDB 2."""

    unit = "values"
    counts_exactly = True
    has_whole_points = True

    def __init__(
        self,
        client: QueryClient,
        locate: Callable[[], Awaitable[Location]],
        *,
        keeps_unsigned: bool = True,
        wants: Wants = every_field,
    ) -> None:
        """Assign the client; `locate` is called once.

        Fields that `wants` does not select are not read. Unsigned integers become integers if they
        are not kept.
        """
        self._wants = wants
        self.omitted: list[str] = []
        self._client = client
        self._locate = locate
        self._location: Location | None = None
        self._keeps_unsigned = keeps_unsigned
        self._types: dict[str, dict[str, set[str]]] = {}

    async def measurements(self, times: Period) -> AsyncIterator[Measurement]:
        """Yield what the database has in a span of time."""
        for measurement, fields in (await self._field_types()).items():
            if not fields:
                self.omitted.append(f"{measurement} ({NOTHING_WANTED})")
                continue
            days = Days()
            async for start_ns, count in self._counts(measurement, fields, times, every="1d"):
                days.add(start_ns // DAY_NS, count)
            if days:
                yield Measurement(name=measurement, fields=tuple(fields), days=days)

    async def read(
        self,
        measurement: str,
        fields: Sequence[str],
        times: Period,
        entity_ids: Sequence[str] = (),
    ) -> AsyncGenerator[Chunk, None]:
        """Yield the rows of a measurement with these fields, or all fields for none.

        `entity_ids` limits them to rows whose tag `entity_id` is listed.
        """
        types = (await self._field_types()).get(measurement, {})
        # A field that is not known may have been written since the fields were listed.
        columns = list(fields or types)
        if not columns:
            return
        chunk, read_bytes = Chunk(), 0
        for part in await self._parts(measurement, columns, types, times):
            rows = _Rows(columns, self._unsigned(types))
            async for found in self._query(
                f"SELECT {', '.join(map(_field, columns))}"  # noqa: S608 - names are quoted
                f" FROM {await self._from(measurement)}"
                f" WHERE {_within(part)}{_of_entities(entity_ids)} GROUP BY *"
            ):
                rows.add_to(chunk, found)
                read_bytes += rows.approximate_bytes(found)
                if len(chunk.rows) >= _ROWS or read_bytes >= _BYTES:
                    yield chunk
                    chunk, read_bytes = Chunk(), 0
        if chunk.rows or chunk.refused:
            yield chunk

    async def _parts(
        self,
        measurement: str,
        columns: Sequence[str],
        types: Mapping[str, set[str]],
        times: Period,
    ) -> Sequence[Period]:
        """Return the spans to query one by one.

        One query returns only one type of a field. A shard has only one, and none is shorter than
        an hour, so the hours with values are read one by one if any field has several types.
        """
        known = {each: types[each] for each in columns if each in types}
        if all(len(found) == 1 for found in known.values()):
            return [times]
        starts = [
            start_ns async for start_ns, _ in self._counts(measurement, known, times, every="1h")
        ]
        return [
            Period(max(start_ns, times.start_ns), min(start_ns + _HOUR_NS, times.end_ns))
            for start_ns in starts
        ]

    async def _counts(
        self, measurement: str, types: Mapping[str, set[str]], times: Period, *, every: str
    ) -> AsyncIterator[tuple[int, int]]:
        """Yield the start of each day or hour that has values, with their number."""
        counted = ", ".join(
            f"count({each})" for key, found in types.items() for each in _casts(key, found)
        )
        async for part in self._query(
            f"SELECT {counted} FROM {await self._from(measurement)} WHERE {_within(times)}"  # noqa: S608 - names are quoted
            f" GROUP BY time({every}) fill(none)"
        ):
            for start_ns, *counts in part.rows:
                yield _number(start_ns), sum(map(_number, counts))

    def _unsigned(self, types: Mapping[str, set[str]]) -> set[str]:
        """Return the fields that are written as unsigned integers."""
        if not self._keeps_unsigned:
            return set()
        return {each for each, found in types.items() if found == {"unsigned"}}

    async def _field_types(self) -> Mapping[str, Mapping[str, set[str]]]:
        """Return each field of each measurement with its types: shards may differ."""
        if not self._types:
            policy = (await self._located()).policy
            where = f" FROM {quoted(policy)}./.*/" if policy else ""
            async for part in self._query(f"SHOW FIELD KEYS{where}"):
                types = self._types.setdefault(_text(part.name), {})
                for key, kind in part.rows:
                    if self._wants(_text(key)):
                        types.setdefault(_text(key), set()).add(_text(kind))
        return self._types

    async def _located(self) -> Location:
        if self._location is None:
            self._location = await self._locate()
        return self._location

    async def _from(self, measurement: str) -> str:
        policy = (await self._located()).policy
        return (f"{quoted(policy)}." if policy else "") + quoted(measurement)

    async def _query(self, statement: str) -> AsyncIterator[Series]:
        answer = ChunkedAnswer()
        query = {
            "db": (await self._located()).database,
            "epoch": "ns",
            "chunked": "true",
            "chunk_size": str(_ROWS_PER_PART),
        }
        request = Request(
            method="POST",
            path="/query",
            query=query,
            headers={
                "Accept": CONTENT_TYPE,
                "Content-Type": "application/x-www-form-urlencoded; charset=utf-8",
            },
            body=urlencode({"q": statement}, errors="surrogateescape").encode(),
        )
        async for data in self._client.stream(request):
            for part in answer.feed(data):
                yield part
        answer.close()


class _Rows:
    """Encodes the rows of one statement."""

    def __init__(self, fields: Sequence[str], unsigned: Container[str]) -> None:
        self._columns: list[tuple[bytes, Mapping[type, Callable[..., bytes]]]] = []
        self._unwritable: dict[int, str] = {}
        """Why a field cannot be written, by its column."""
        for column, each in enumerate(fields, start=1):
            key = each.encode(errors="surrogateescape")
            try:
                key = name(key)
            except Unwritable as exc:
                self._unwritable[column] = str(exc)
            encoders = _UNSIGNED if each in unsigned else ENCODERS
            self._columns.append((key + b"=", encoders))

    def add_to(self, chunk: Chunk, part: Series) -> None:
        """Add the rows of a part."""
        try:
            head = series(part.name, part.tags)
        except Unwritable as exc:
            head = b"%b,%a" % (part.name, dict(part.tags))
            chunk.refused += [_refused(self._row(head, row), str(exc)) for row in part.rows]
            return
        if not self._unwritable:
            chunk.rows += [self._row(head, row) for row in part.rows]
            return
        for row in part.rows:
            reason = next((why for at, why in self._unwritable.items() if row[at] is not None), "")
            if reason:
                chunk.refused.append(_refused(self._row(head, row), reason))
            else:
                chunk.rows.append(self._row(head, row))

    def _row(self, head: bytes, row: Values) -> Row:
        time_ns, *values = row
        fields = [
            prefix + encoders[type(value)](value)
            for (prefix, encoders), value in zip(self._columns, values, strict=True)
            if value is not None
        ]
        return head, fields, time_ns  # type: ignore[return-value]

    @staticmethod
    def approximate_bytes(part: Series) -> int:
        """Return about how many bytes the rows of a part have."""
        if not part.rows:
            return 0
        row = part.rows[len(part.rows) // 2]
        return len(part.rows) * sum(len(v) if isinstance(v, bytes) else 8 for v in row)


def _refused(row: Row, reason: str) -> RefusedRow:
    return RefusedRow(line_of(row), reason, row[2], len(row[1]))


_UNSIGNED = {**ENCODERS, int: lambda value: b"%du" % value}


def _field(key: str) -> str:
    # A tag may have the same name.
    return f"{quoted(key)}::field"


def _casts(key: str, types: set[str]) -> list[str]:
    """Return expressions that together select all values of a field in one query.

    Without a cast, a query over shards of different types leaves out texts and booleans.
    """
    if len(types) == 1:
        return [_field(key)]
    return sorted({f"{quoted(key)}::{_CASTS.get(each, 'float')}" for each in types})


_CASTS = {"string": "string", "boolean": "boolean"}
"""Any number can be cast to a float."""


def _of_entities(entity_ids: Sequence[str]) -> str:
    if not entity_ids:
        return ""
    conditions = " OR ".join(f'"entity_id"::tag = {_literal(each)}' for each in entity_ids)
    return f" AND ({conditions})"


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def _within(times: Period) -> str:
    return f"time >= {times.start_ns} AND time < {times.end_ns}"


def _number(value: Value) -> int:
    """Return a count or a time; a field without values on a day has no count."""
    return value if isinstance(value, int) else 0


def _text(value: Any) -> str:
    assert isinstance(value, bytes)
    return value.decode(errors="surrogateescape")
