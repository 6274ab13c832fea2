"""Reads an InfluxDB 1, with InfluxQL."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any
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


class InfluxDb1:
    """A database of an InfluxDB 1, in one retention policy."""

    unit = "values"
    counts_exactly = True
    has_whole_points = True

    def __init__(
        self,
        client: QueryClient,
        *,
        policy: str | None = None,
        wants: Wants = every_field,
    ) -> None:
        """Assign the client; without a policy the default one is read.

        Fields that `wants` does not select are not read.
        """
        self._wants = wants
        self.omitted: list[str] = []
        self._client = client
        self._policy = policy
        self._types: dict[str, dict[str, set[str]]] = {}

    async def measurements(self, times: Period) -> AsyncIterator[Measurement]:
        """Yield what the database has in a span of time."""
        for measurement, fields in (await self._field_types()).items():
            if not fields:
                self.omitted.append(f"{measurement} ({NOTHING_WANTED})")
                continue
            days = Days()
            counted = ", ".join(
                f"count({each})" for key, types in fields.items() for each in _casts(key, types)
            )
            async for part in self._query(
                f"SELECT {counted} FROM {self._from(measurement)} WHERE {_within(times)}"  # noqa: S608 - names are quoted
                " GROUP BY time(1d) fill(none)"
            ):
                for start_ns, *counts in part.rows:
                    days.add(_number(start_ns) // DAY_NS, sum(map(_number, counts)))
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
        known = [each for each in fields or types if each in types]
        if not known:
            return
        chunk, read_bytes = Chunk(), 0
        for part in _spans(times, is_mixed=any(len(types[each]) > 1 for each in known)):
            rows = _Rows(known, types)
            async for found in self._query(
                f"SELECT {', '.join(map(_field, known))} FROM {self._from(measurement)}"  # noqa: S608 - names are quoted
                f" WHERE {_within(part)}{_of_entities(entity_ids)} GROUP BY *"
            ):
                rows.add_to(chunk, found)
                read_bytes += rows.approximate_bytes(found)
                if len(chunk.rows) >= _ROWS or read_bytes >= _BYTES:
                    yield chunk
                    chunk, read_bytes = Chunk(), 0
        if chunk.rows or chunk.refused:
            yield chunk

    async def _field_types(self) -> Mapping[str, Mapping[str, set[str]]]:
        """Return each field of each measurement with its types: shards may differ."""
        if not self._types:
            policy = f" FROM {quoted(self._policy)}./.*/" if self._policy else ""
            async for part in self._query(f"SHOW FIELD KEYS{policy}"):
                types = self._types.setdefault(_text(part.name), {})
                for key, kind in part.rows:
                    if self._wants(_text(key)):
                        types.setdefault(_text(key), set()).add(_text(kind))
        return self._types

    def _from(self, measurement: str) -> str:
        policy = f"{quoted(self._policy)}." if self._policy else ""
        return policy + quoted(measurement)

    async def _query(self, statement: str) -> AsyncIterator[Series]:
        answer = ChunkedAnswer()
        query = {
            "db": self._client.target.bucket,
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

    def __init__(self, fields: Sequence[str], types: Mapping[str, set[str]]) -> None:
        self._columns: list[tuple[bytes, Mapping[type, Callable[..., bytes]]]] = []
        self._unwritable: dict[int, str] = {}
        """Why a field cannot be written, by its column."""
        for column, each in enumerate(fields, start=1):
            key = each.encode(errors="surrogateescape")
            try:
                key = name(key)
            except Unwritable as exc:
                self._unwritable[column] = str(exc)
            encoders = _UNSIGNED if types[each] == {"unsigned"} else ENCODERS
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


def _spans(times: Period, *, is_mixed: bool) -> Iterator[Period]:
    """Yield the spans to query one by one.

    One query returns only one type of a field. A shard has only one, and none is shorter than an
    hour.
    """
    if not is_mixed:
        yield times
        return
    start_ns = times.start_ns
    while start_ns < times.end_ns:
        end_ns = min((start_ns // _HOUR_NS + 1) * _HOUR_NS, times.end_ns)
        yield Period(start_ns, end_ns)
        start_ns = end_ns


def _number(value: Value) -> int:
    """Return a count or a time; a field without values on a day has no count."""
    return value if isinstance(value, int) else 0


def _text(value: Any) -> str:
    assert isinstance(value, bytes)
    return value.decode(errors="surrogateescape")
