"""Reads a VictoriaMetrics, with its export."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from typing import TypeVar
from urllib.parse import urlencode

import msgspec

from app.commands.copy.rows import Chunk, RefusedRow, Unwritable, line_of, name, series
from app.commands.copy.source import (
    DAY_NS,
    NOTHING_WANTED,
    Days,
    Measurement,
    Period,
    Wants,
    every_field,
)
from app.model import MEGABYTE, SECOND_NS
from app.runtime.errors import QueryFailed
from app.sinks.influxdb.http import Request
from app.sinks.influxdb.queries import QueryClient

Answer = TypeVar("Answer")

_ROWS = 5_000
_ROWS_PER_LINE = 2_000
_MAX_LINE_BYTES = 64 * MEGABYTE
_MILLISECOND_NS = 1_000_000
_DAY_S = DAY_NS // SECOND_NS
_FIRST_DAY = 10_957
"""The first of January 2000: from 1970 on, VictoriaMetrics 1.79 counts and 1.151 lists nothing."""
_NUMBER_BEGINS = b"-0123456789"
_NAMING_FIELDS = ("_value", "_state_value", "_state")
"""Ends of the metrics that a home's measurements have; what stands before them names one."""


class _Exported(msgspec.Struct):
    """Samples of a series."""

    metric: dict[str, str]
    values: list[msgspec.Raw]
    """As they are written: `-0` would be decoded as the integer 0."""
    timestamps: list[int]


class _Series(msgspec.Struct):
    values: list[tuple[float, str]]


class _Result(msgspec.Struct):
    result: list[_Series]


class _Counts(msgspec.Struct):
    data: _Result


class _Names(msgspec.Struct):
    data: list[str]


class VictoriaMetrics:
    """The series of a VictoriaMetrics whose label `db` is the bucket.

    Without any, the series that have no such label: writing as to InfluxDB 2 sets none.
    """

    unit = "samples"
    counts_exactly = False  # of equal times one is copied
    has_whole_points = False

    def __init__(self, client: QueryClient, *, wants: Wants = every_field) -> None:
        """Assign the client; fields that `wants` does not select are not read."""
        self._wants = wants
        self.omitted: list[str] = []
        self._client = client
        self._label: str | None = None

    async def measurements(self, times: Period) -> AsyncIterator[Measurement]:
        """Yield what the database has in a span of time."""
        found = measurements_of(await self._metrics())
        self.omitted = [
            f"{metric} (its name is no measurement and field)" for metric in found.pop("", [])
        ]
        for measurement, every in found.items():
            if not (fields := [each for each in every if self._wants(each)]):
                self.omitted.append(f"{measurement} ({NOTHING_WANTED})")
                continue
            days = await self._days([f"{measurement}_{each}" for each in fields], times)
            if days:
                yield Measurement(name=measurement, fields=fields, days=days)

    async def read(
        self, measurement: str, fields: Sequence[str], times: Period
    ) -> AsyncGenerator[Chunk, None]:
        """Yield the rows of a measurement with these fields, or all fields for none."""
        if self._label is None or not fields:
            prefix = f"{measurement}_"
            found = [each for each in await self._metrics() if each.startswith(prefix)]
            fields = fields or [each.removeprefix(prefix) for each in found]
        if not fields:
            return
        metrics = {f"{measurement}_{each}": each for each in fields}
        form = [
            *(("match[]", self._matching(f"__name__={_quoted(each)}")) for each in metrics),
            ("start", _seconds(-(-times.start_ns // _MILLISECOND_NS))),
            ("end", _seconds(-(-times.end_ns // _MILLISECOND_NS) - 1)),
            ("max_rows_per_line", str(_ROWS_PER_LINE)),
        ]
        rows = _Rows(measurement, metrics, bucket=self._client.target.bucket)
        chunk = Chunk()
        async for line in self._lines("/api/v1/export", form):
            rows.add_to(chunk, _decoded(line, _Exported))
            if len(chunk.rows) + len(chunk.refused) >= _ROWS:
                yield chunk
                chunk = Chunk()
        if chunk.rows or chunk.refused:
            yield chunk

    async def flush(self) -> None:
        """Make everything that was accepted visible to queries."""
        await self._client.body(Request(path="/internal/force_flush"))

    async def _metrics(self) -> Sequence[str]:
        names: Sequence[str] = ()
        for label in (self._client.target.bucket, ""):
            self._label = label
            form = [("match[]", self._matching()), ("start", str(_FIRST_DAY * _DAY_S))]
            body = await self._post("/api/v1/label/__name__/values", form)
            if names := _decoded(body, _Names).data:
                break
        return names

    async def _days(self, metrics: Collection[str], times: Period) -> Days:
        days = Days()
        pattern = _quoted("|".join(map(re.escape, metrics)))
        first, last = max(_FIRST_DAY, times.start_ns // DAY_NS), (times.end_ns - 1) // DAY_NS
        # At the last millisecond of each day, over that day.
        at = [f"{(day + 1) * _DAY_S - 1}.999" for day in (first, last)]
        form = [
            ("query", f"sum(count_over_time({self._matching(f'__name__=~{pattern}')}[1d]))"),
            ("start", at[0]),
            ("end", at[1]),
            ("step", "1d"),
            ("nocache", "1"),
        ]
        for each in _decoded(await self._post("/api/v1/query_range", form), _Counts).data.result:
            for time_s, count in each.values:
                days.add(int(time_s) // _DAY_S, int(float(count)))
        return days

    def _matching(self, *conditions: str) -> str:
        return "{" + ",".join((f"db={_quoted(self._label or '')}", *conditions)) + "}"

    async def _post(self, path: str, form: Sequence[tuple[str, str]]) -> bytes:
        return await self._client.body(_posted(path, form))

    async def _lines(self, path: str, form: Sequence[tuple[str, str]]) -> AsyncIterator[bytes]:
        rest = b""
        async for part in self._client.stream(_posted(path, form)):
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                yield line
            if len(rest) > _MAX_LINE_BYTES:
                raise QueryFailed("the export has a line that is too long")
        if rest:
            raise QueryFailed("the export ended early")


class _Rows:
    """Makes rows of exported samples, one for each time of a series."""

    def __init__(self, measurement: str, metrics: Mapping[str, str], *, bucket: str) -> None:
        self._measurement = measurement.encode()
        self._metrics = metrics
        self._bucket = bucket
        self._last: tuple[bytes, bytes, int] | None = None

    def add_to(self, chunk: Chunk, exported: _Exported) -> None:
        """Add the samples of a line of the export; of equal times the last one counts."""
        labels = exported.metric
        field = self._metrics.get(labels.pop("__name__", ""))
        if field is None:
            raise QueryFailed("the export has a series that was not asked for")
        if labels.get("db") == self._bucket:
            del labels["db"]
        try:
            head = series(
                self._measurement, {key.encode(): text.encode() for key, text in labels.items()}
            )
            prefix = name(field.encode()) + b"="
        except Unwritable as exc:
            chunk.refused += [
                RefusedRow(
                    f"{labels} {field}={bytes(raw).decode()} {at}".encode(),
                    str(exc),
                    at * _MILLISECOND_NS,
                )
                for at, raw in zip(exported.timestamps, exported.values, strict=True)
            ]
            return
        for time_ms, raw in zip(exported.timestamps, exported.values, strict=True):
            time_ns, text = time_ms * _MILLISECOND_NS, bytes(raw)
            if text[0] not in _NUMBER_BEGINS:
                refused = line_of((head, (prefix + text,), time_ns))
                chunk.refused.append(RefusedRow(refused, "InfluxDB has no such number", time_ns))
                continue
            if self._last == (head, prefix, time_ms):
                if not chunk.rows:  # the former one is copied already
                    continue
                chunk.rows.pop()
            self._last = head, prefix, time_ms
            chunk.rows.append((head, (prefix + b"%a" % float(text),), time_ns))


def measurements_of(metrics: Collection[str]) -> dict[str, list[str]]:
    """Return measurements with their fields for metrics, whose names join the two.

    Where a metric ends in `_value` or `_state`, what stands before names a measurement; the
    longest such name that begins a metric is its measurement, else what stands before its last
    underscore. Joining the two again gives the metric, whatever was meant. Metrics without an
    underscore are under the empty name.
    """
    known = {
        metric.removesuffix(end)
        for metric in metrics
        for end in _NAMING_FIELDS
        if metric.endswith(end) and metric != end
    }
    found: dict[str, list[str]] = {}
    for metric in sorted(metrics):
        cuts = [at for at, char in enumerate(metric) if char == "_" and 0 < at < len(metric) - 1]
        at = next((cut for cut in reversed(cuts) if metric[:cut] in known), None)
        if at is None and cuts:
            at = cuts[-1]
        measurement, field = ("", metric) if at is None else (metric[:at], metric[at + 1 :])
        found.setdefault(measurement, []).append(field)
    return found


def _posted(path: str, form: Sequence[tuple[str, str]]) -> Request:
    return Request(
        method="POST",
        path=path,
        headers={"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"},
        body=urlencode(form).encode(),
    )


def _decoded(text: bytes, kind: type[Answer]) -> Answer:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise QueryFailed(f"the answer is not what VictoriaMetrics answers: {exc}") from exc


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds / 1000:.3f}"
