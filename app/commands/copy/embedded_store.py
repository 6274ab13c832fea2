"""Reads the embedded store: `events.db` in DATA_DIR, also while the service writes to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.commands.copy.rows import Chunk, row_of
from app.commands.copy.source import DAY_NS, Days, Measurement, Period
from app.model import Change, Context, Lines, Placement
from app.runtime.sqlite import Connection, reading
from app.schema.homeiq import HomeiqEncoder

FILE_NAME = "events.db"

_ROWS = 2_000
_VALUES_PER_EVENT = 12
"""About: an event has 7 to 15 fields."""
_PLACED = ("device_id", "area_id", "integration", "manufacturer", "model", "sw_version")
_CHANGED = (
    *("entity_id", "domain", "event_type", "time_ns", "state", "previous_state", "duration_s"),
    *("attributes", "device_class", "unit_of_measurement", "friendly_name", "backfilled"),
)
_CONTEXT = ("context_id", "context_parent_id", "context_user_id")
_COLUMNS = (*_CHANGED, *_PLACED, *_CONTEXT, "instance", "id")
_CUT_ATTRIBUTES = 65_536


class EmbeddedEvents:
    """The events of an embedded store, as the lines that the service writes to a database."""

    unit = "values"
    counts_exactly = False
    has_whole_points = True

    def __init__(self, path: Path, *, measurement: str, attribute_fields: Sequence[str]) -> None:
        """Assign the file; the rest is as in the settings INFLUXDB_*."""
        self.omitted: list[str] = []
        self._path = path
        self._measurement = measurement
        self._attribute_fields = tuple(attribute_fields)
        self._encoders: dict[tuple[str | None, tuple[str, ...]], HomeiqEncoder] = {}

    async def measurements(self, times: Period) -> AsyncIterator[Measurement]:
        """Yield the one measurement."""
        days = Days()
        with reading(self._path) as connection:
            for number, events in connection.execute(
                "SELECT (time_ns - (time_ns % :day + :day) % :day) / :day AS number, count(*)"
                " FROM events WHERE time_ns >= :start AND time_ns < :end"
                " GROUP BY number ORDER BY number",
                {"day": DAY_NS, "start": times.start_ns, "end": times.end_ns},
            ):
                days.add(number, events * _VALUES_PER_EVENT)
        if days:
            yield Measurement(name=self._measurement, fields=(), days=days)

    async def read(self, _: str, __: Sequence[str], times: Period) -> AsyncGenerator[Chunk, None]:
        """Yield the events of a span of time."""
        after = (times.start_ns, -1)
        with reading(self._path) as connection:
            while events := _page(connection, after, times.end_ns):
                lines = [line for event in events for line in self._encoded(event)]
                yield Chunk(rows=[row_of(line) for line in lines])
                after = (events[-1]["time_ns"], events[-1]["id"])
                await asyncio.sleep(0)

    def _encoded(self, event: Mapping[str, Any]) -> Sequence[bytes]:
        # Attributes that were cut are no JSON, so no fields can be made of them.
        attributes = event["attributes"] or "{}"
        is_cut = len(attributes.encode()) >= _CUT_ATTRIBUTES
        key = (event["instance"], () if is_cut else self._attribute_fields)
        encoder = self._encoders.get(key)
        if encoder is None:
            encoder = self._encoders[key] = HomeiqEncoder(
                self._measurement, instance=key[0], attribute_fields=key[1]
            )
        lines: Lines = encoder.encode([_change(event, attributes)])
        return lines.split()


def _change(event: Mapping[str, Any], attributes: str) -> Change:
    ids = [event[each] for each in _CONTEXT]
    return Change(
        **{each: event[each] for each in _CHANGED if each not in {"attributes", "backfilled"}},
        attributes=attributes.encode(),
        backfilled=bool(event["backfilled"]),
        context=Context(*ids) if any(ids) else None,
        placement=Placement(**{each: event[each] for each in _PLACED}),
    )


def _page(
    connection: Connection, after: tuple[int, int], end_ns: int
) -> Sequence[Mapping[str, Any]]:
    found = connection.execute(
        f"SELECT {', '.join(_COLUMNS)} FROM events"  # noqa: S608 - names of ours
        " WHERE (time_ns, id) > (?, ?) AND time_ns < ? ORDER BY time_ns, id LIMIT ?",
        (*after, end_ns, _ROWS),
    )
    return [dict(zip(_COLUMNS, row, strict=True)) for row in found]
