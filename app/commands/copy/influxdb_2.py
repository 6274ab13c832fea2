"""Reads an InfluxDB 2, with Flux."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any

from app.commands.copy.rows import ENCODERS, Chunk, RefusedRow, Row, Unwritable, name, series
from app.commands.copy.source import (
    DAY_NS,
    NOTHING_WANTED,
    Days,
    Measurement,
    Period,
    Wants,
    every_field,
)
from app.runtime.errors import QueryFailed
from app.sinks.influxdb.queries import QueryClient

_ROWS = 5_000
_OWN_COLUMNS = {"result", "table", "_start", "_stop", "_time", "_value", "_field", "_measurement"}


class InfluxDb2:
    """A bucket of an InfluxDB 2. Each field of a point is a row of its own, as in Flux."""

    unit = "values"
    counts_exactly = True
    has_whole_points = False

    def __init__(self, client: QueryClient, *, wants: Wants = every_field) -> None:
        """Assign the client; fields that `wants` does not select are not read."""
        self._wants = wants
        self.omitted: list[str] = []
        self._client = client

    async def measurements(self, times: Period) -> AsyncIterator[Measurement]:
        """Yield what the bucket has in a span of time."""
        for measurement in await self._listed("measurements", times):
            every = await self._listed("fieldKeys", times, measurement)
            fields = [each for each in every if self._wants(each)]
            chosen = fields if len(fields) < len(every) else ()
            if every and not fields:
                self.omitted.append(f"{measurement} ({NOTHING_WANTED})")
                continue
            days = Days()
            async for record in self._client.flux(self._counting(measurement, chosen, times)):
                days.add(record["_start"] // DAY_NS, record["_value"])
            if days:
                yield Measurement(name=measurement, fields=fields, days=days)

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
        chunk, wanted = Chunk(), set(fields)
        # The database selects only a few fields: a filter for hundreds would be too long.
        selected = fields if entity_ids or self._wants is not every_field else ()
        async for record in self._client.flux(
            f"{self._selected(measurement, selected, times)}{_any_of('entity_id', entity_ids)}"
            # As a time the client would cut it to microseconds.
            " |> map(fn: (r) => ({r with _time: int(v: r._time)}))"
        ):
            if wanted and record["_field"] not in wanted:
                continue
            try:
                chunk.rows.append(row_of_record(record))
            except Unwritable as exc:
                chunk.refused.append(
                    RefusedRow(repr(dict(record)).encode(), str(exc), record["_time"])
                )
            if len(chunk.rows) + len(chunk.refused) >= _ROWS:
                yield chunk
                chunk = Chunk()
        if chunk.rows or chunk.refused:
            yield chunk

    async def _listed(self, function: str, times: Period, measurement: str = "") -> list[str]:
        """Return the names that a function of Flux' package `schema` lists."""
        about = f", measurement: {_text(measurement)}" if measurement else ""
        start, stop = (f"time(v: {at})" for at in times)
        kind = "measurementFieldKeys" if measurement else function
        query = (
            'import "influxdata/influxdb/schema"\n'
            f"schema.{kind}(bucket: {_text(self._client.target.bucket)}{about},"
            f" start: {start}, stop: {stop})"
        )
        return sorted([str(record["_value"]) async for record in self._client.flux(query)])

    def _counting(self, measurement: str, fields: Sequence[str], times: Period) -> str:
        return (
            self._selected(measurement, fields, times)
            # Counts are integers, whatever is counted: only they can be grouped.
            + " |> window(every: 1d) |> count()"
            ' |> group(columns: ["_start"]) |> sum() |> group()'
            " |> map(fn: (r) => ({_start: int(v: r._start), _value: r._value}))"
            ' |> sort(columns: ["_start"])'
        )

    def _selected(self, measurement: str, fields: Sequence[str], times: Period) -> str:
        return (
            f"from(bucket: {_text(self._client.target.bucket)})"
            f" |> range(start: time(v: {times.start_ns}), stop: time(v: {times.end_ns}))"
            f" |> filter(fn: (r) => r._measurement == {_text(measurement)})"
            f"{_any_of('_field', fields)}"
        )


def _any_of(column: str, texts: Sequence[str]) -> str:
    """Return a filter for the values of a column; empty for no values."""
    if not texts:
        return ""
    conditions = " or ".join(f"r.{column} == {_text(text)}" for text in texts)
    return f" |> filter(fn: (r) => {conditions})"


def row_of_record(record: Mapping[str, Any]) -> Row:
    """Return the row of a record whose `_time` is in nanoseconds.

    Raises:
        Unwritable: line protocol cannot express a name in it.
        QueryFailed: it is no point.
    """
    tags = {
        key.encode(): value.encode()
        for key, value in record.items()
        if key not in _OWN_COLUMNS and isinstance(value, str)
    }
    # Every value exists, so what the client takes for a missing one is an empty text.
    value = "" if record["_value"] is None else record["_value"]
    if isinstance(value, str):  # InfluxDB writes each line break as two characters
        value = value.replace("\r\n", "\n")
    encoder = ENCODERS.get(type(value))
    if encoder is None or not isinstance(record["_time"], int):
        raise QueryFailed("the answer to a query has values that no point has")
    field = name(record["_field"].encode()) + b"=" + encoder(value)
    return series(record["_measurement"].encode(), tags), (field,), record["_time"]


def _text(text: str) -> str:
    # Flux interpolates `${…}` in strings.
    return json.dumps(text, ensure_ascii=False).replace("${", "\\${")
