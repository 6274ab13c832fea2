"""The embedded store: event history in one SQLite file, without a database server."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Self, TypeAlias

import msgspec
from msgspec import Meta

from app.model import MAX_TIME_NS, SECOND_NS, Context, StoredPoint, iso_time, moment_of
from app.runtime.errors import StorageDamaged, StorageError, StorageFull
from app.runtime.logging import RateLimitedLog
from app.runtime.sqlite import (
    Connection,
    Database,
    open_or_replace,
    quick_check,
    shrink,
    sync_folder,
)
from app.sinks.batches import Batch
from app.sinks.outcomes import Accepted, Held, Outcome, Refused, Unavailable

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

Value: TypeAlias = str | float | int | None

_KEY = ("entity_id", "time_ns", "event_type")

_MIGRATIONS = (
    """
    CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        time_ns INTEGER NOT NULL,
        entity_id TEXT NOT NULL,
        event_type TEXT NOT NULL,
        domain TEXT,
        area_id TEXT,
        device_id TEXT,
        integration TEXT,
        device_class TEXT,
        unit_of_measurement TEXT,
        event_category TEXT,
        instance TEXT,
        state TEXT,
        previous_state TEXT,
        value REAL,
        available INTEGER,
        duration_s REAL,
        attributes TEXT,
        context_id TEXT,
        context_parent_id TEXT,
        context_user_id TEXT,
        friendly_name TEXT,
        manufacturer TEXT,
        model TEXT,
        sw_version TEXT,
        backfilled INTEGER,
        removed INTEGER
    );
    CREATE UNIQUE INDEX events_of_entity ON events (entity_id, time_ns, event_type);
    CREATE INDEX events_by_time ON events (time_ns);
    CREATE INDEX events_of_domain ON events (domain, time_ns);
    CREATE INDEX events_of_area ON events (area_id, time_ns)
    """,
)

_CATALOG = frozenset({"devices", "entities", "identity_changes"})
_CURSOR = re.compile(r"(-?[0-9]{1,19})_([0-9]{1,18})")
_MAX_TIME_NS = 2**63 - 1
_NS_PER_DAY = 86_400 * SECOND_NS
_DISTRUST_S = 86_400.0
"""How long nothing is deleted when the events of more than a day expire at once."""
_BETWEEN_STEPS_S = 3_600.0
"""Afterwards, the interval at which the events of one day are deleted."""
# Batches of 5000 touch the index of every entity: 58,000 rows/s, against 40,000 with less.
_CACHE_BYTES = 32_000_000
_WAL_BYTES = 32_000_000
_ROWS_PER_STEP = 500
_ROWS_PER_INSERT = 300
_MAX_REASON = 500
_BYTES_PER_STEP = 1_000_000
_CONSEQUENCE = (
    "A new event store begins: no event of the damaged file is in it. The recorder's part can be"
    " read back: python -m app backfill --since …"
)


Text: TypeAlias = str | None


class StoredEvent(msgspec.Struct, frozen=True, kw_only=True, rename={"duration_s": "duration"}):
    """A stored event, as the API returns it; None where nothing was known.

    The only list of what is stored: each name is a column and a tag or field of a line, apart
    from those in `_SOURCES`. OpenAPI documents the events from it.
    """

    entity_id: Annotated[str, Meta(examples=["sensor.kitchen_temperature"])]
    domain: Annotated[Text, Meta(examples=["sensor"])]
    event_type: Annotated[str, Meta(examples=["state_changed"])]
    state: Annotated[Text, Meta(examples=["21.5"], description="null when the entity was removed")]
    previous_state: Annotated[Text, Meta(examples=["21.4"])]
    value: Annotated[
        float | None, Meta(examples=[21.5], description="The state as a number, if it is one")
    ]
    available: Annotated[bool | None, Meta(examples=[True])]
    duration_s: Annotated[
        float | None, Meta(examples=[60.0], description="Seconds that the previous state lasted")
    ]
    removed: Annotated[bool, Meta(examples=[False])]
    backfilled: Annotated[bool, Meta(examples=[False], description="Read back from the recorder")]
    attributes: Annotated[
        msgspec.Raw,
        Meta(examples=[{"state_class": "measurement"}], extra_json_schema={"type": "object"}),
    ]
    device_class: Annotated[Text, Meta(examples=["temperature"])]
    unit_of_measurement: Annotated[Text, Meta(examples=["°C"])]
    event_category: Annotated[Text, Meta(examples=["climate"])]
    friendly_name: Annotated[Text, Meta(examples=["Kitchen temperature"])]
    manufacturer: Annotated[Text, Meta(examples=["Aqara"])]
    model: Annotated[Text, Meta(examples=["WSDCGQ11LM"])]
    sw_version: Annotated[Text, Meta(examples=["3000-0001"])]
    area_id: Annotated[Text, Meta(examples=["kitchen"])]
    device_id: Annotated[Text, Meta(examples=["a1b2c3"])]
    integration: Annotated[Text, Meta(examples=["mqtt"])]
    instance: Annotated[Text, Meta(examples=[None], description="INSTANCE_NAME")]
    time: Annotated[
        str,
        Meta(examples=["2026-11-23T10:00:00.123456Z"], extra_json_schema={"format": "date-time"}),
    ]
    """Stored as `time_ns`."""
    context: Context | None
    """Stored as `context_id`, `context_parent_id` and `context_user_id`."""


_CONTEXT = ("context_id", "context_parent_id", "context_user_id")
_COLUMNS = (
    "time_ns",
    *(name for name in StoredEvent.__struct_fields__ if name not in {"time", "context"}),
    *_CONTEXT,
)
_SOURCES = {"state": "state_value", "duration_s": "duration_in_state_seconds"}
"""Columns with another name than their field. `attr_*` fields are in `attributes` already."""
_READ = tuple(_SOURCES.get(name, name) for name in _COLUMNS[1:])

# A second write of a point adds fields and removes none, as in InfluxDB.
_ON_CONFLICT = f" ON CONFLICT ({', '.join(_KEY)}) DO UPDATE SET " + ", ".join(
    f"{name} = coalesce(excluded.{name}, {name})" for name in _COLUMNS if name not in _KEY
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Events, newest first."""

    events: Sequence[StoredEvent]
    next_cursor: str | None
    """Requests the next page; None after the last."""


class EmbeddedStore:
    """Sink that stores events for some days and serves their history. Use as `async with`."""

    name = "embedded"

    def __init__(
        self,
        path: Path,
        *,
        parse: Callable[[bytes], StoredPoint],
        retention_days: float,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        prune_every_s: float = 60.0,
        prune_step_s: float = 0.1,
    ) -> None:
        """Assign the parser and the retention.

        `parse` is called in a thread; it raises `ValueError` for a line it cannot read. `clock`
        returns seconds since the epoch, `monotonic` seconds that only increase.
        """
        self.damage: str | None = None
        """One sentence when the file was damaged at the start."""
        self._path = path
        self._suspect = path.with_name(path.name + ".suspect")
        """Exists when the next start must check the whole database."""
        self._parse = parse
        self._retention_ns = int(retention_days * _NS_PER_DAY)
        self._clock = clock
        self._monotonic = monotonic
        self._distrusted_since: float | None = None
        """When the events of more than a day expired at once, as a wrong date makes them."""
        self._steps_taken = 0
        self._step_through_ns = 0
        self._sleep = sleep
        self._prune_every_s = prune_every_s
        self._prune_step_s = prune_step_s
        self._database = Database(
            path,
            migrations=_MIGRATIONS,
            cache_bytes=_CACHE_BYTES,
            wal_bytes=_WAL_BYTES,
            check=self._check,
        )

    async def __aenter__(self) -> Self:
        """Open, or create, the file; one that is damaged is set aside.

        Raises:
            StorageNewer: a newer version of this service wrote the file.
            StorageError: the folder or file cannot be opened.
        """
        self.damage = await open_or_replace(
            self._database, load=self._trust, consequence=_CONSEQUENCE
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Finish the current write and close the file."""
        await self._database.__aexit__()

    async def write(self, batch: Batch) -> Outcome:
        """Store a batch, durable when this returns; storing it again changes nothing."""
        try:
            await self._database.write(partial(_insert, batch=batch, parse=self._parse))
        except _Unreadable as exc:
            return Refused(reason=str(exc))
        except StorageFull as exc:
            return Held(reason=str(exc), advice=f"Free space on the disk of {self._path}.")
        except StorageDamaged as exc:
            # Checking the whole file can take minutes, so a start does it only after this.
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._distrust)
            return Held(reason=str(exc), advice=f"Check the disk of {self._path} and restart.")
        except StorageError as exc:
            return Unavailable(reason=str(exc))
        return Accepted()

    async def ping(self) -> bool:
        """Return True: the store is part of this process."""
        return True

    async def events(
        self,
        *,
        entity_id: str | None = None,
        start_ns: int | None = None,
        end_ns: int | None = None,
        domain: str | None = None,
        area_id: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        """Return the newest events that match; None means any.

        Args:
            entity_id: Of this entity only.
            start_ns: Nanoseconds since the epoch, inclusive.
            end_ns: Nanoseconds since the epoch, exclusive.
            domain: Of entities of this domain only.
            area_id: Of this area only, at the time of the event.
            limit: At most this many events.
            cursor: The `next_cursor` of the previous page, all else unchanged.

        Raises:
            ValueError: the cursor is not one of ours.
            StorageError: the file cannot be read.
        """
        conditions: dict[str, Value] = {
            "entity_id = ?": entity_id,
            "time_ns >= ?": start_ns,
            "time_ns < ?": end_ns,
            "domain = ?": domain,
            "area_id = ?": area_id,
        }
        chosen = {sql: value for sql, value in conditions.items() if value is not None}
        after = None if cursor is None else _position(cursor)
        return await self._database.read(
            partial(_select, conditions=chosen, after=after, limit=limit)
        )

    async def entity_ids(self) -> list[str]:
        """Return all entities that have events."""
        return await self._database.read(_entity_ids)

    async def run(self) -> None:
        """Delete expired events indefinitely, in steps that do not stall a write."""
        while True:
            more = False
            try:
                more = await self.prune()
            except StorageError as exc:
                limited_log.warning(
                    "Old events were not deleted; next attempt in a minute: %s", exc
                )
            else:
                limited_log.resolved("Old events are deleted again")
            await self._sleep(self._prune_step_s if more else self._prune_every_s)

    async def prune(self) -> bool:
        """Delete a few hundred expired events; return whether there are more.

        The clock may be wrong after a start. It counts at most one day beyond the newest event.
        When the events of more than a day expire at once, nothing is deleted for a day, then the
        events of one day each hour: by then the date has been corrected.
        """
        oldest_ns, newest_ns = await self._database.read(_ends)
        if oldest_ns is None or newest_ns is None:
            return False
        now_ns = min(int(self._clock() * SECOND_NS), newest_ns + _NS_PER_DAY)
        wanted_ns = max(now_ns - self._retention_ns, -MAX_TIME_NS)
        before_ns = self._trusted(wanted_ns, oldest_ns=oldest_ns)
        deleted = await self._database.write(partial(_prune, before_ns=before_ns))
        if deleted:
            limited_log.info(
                "Deleted %d events from before %s (EMBEDDED_RETENTION_DAYS)",
                deleted,
                moment_of(before_ns).isoformat(timespec="seconds"),
                topic="deletions",
            )
        return deleted == _ROWS_PER_STEP

    def _trusted(self, before_ns: int, *, oldest_ns: int) -> int:
        """Return the moment before which events may be deleted now."""
        if before_ns <= oldest_ns + _NS_PER_DAY:
            self._distrusted_since = None
            return before_ns
        now_s = self._monotonic()
        if self._distrusted_since is None:
            self._distrusted_since, self._steps_taken, self._step_through_ns = now_s, 0, oldest_ns
            logger.warning(
                "Events of %d days are older than EMBEDDED_RETENTION_DAYS at once; the date may be"
                " wrong. They are kept for a day, then the events of one day are deleted each hour",
                (before_ns - oldest_ns) // _NS_PER_DAY,
            )
        waited_s = now_s - self._distrusted_since - _DISTRUST_S
        if waited_s >= self._steps_taken * _BETWEEN_STEPS_S:
            self._steps_taken = int(waited_s // _BETWEEN_STEPS_S) + 1
            self._step_through_ns = oldest_ns + _NS_PER_DAY
        return min(before_ns, self._step_through_ns)

    async def _trust(self) -> None:
        """Clear the suspicion: the file was checked while it was opened."""
        with contextlib.suppress(OSError):
            self._suspect.unlink(missing_ok=True)

    def _distrust(self) -> None:
        self._suspect.touch()
        sync_folder(self._suspect.parent)

    def _check(self, connection: Connection) -> None:
        if self._suspect.exists():
            quick_check(connection)
        connection.execute("SELECT * FROM events ORDER BY id DESC LIMIT 1").fetchone()
        connection.execute("SELECT time_ns FROM events ORDER BY time_ns DESC LIMIT 1").fetchone()


class _Unreadable(Exception):
    """A batch contains a line that is not an event."""


# The functions below run in the database's own threads.


def _insert(connection: Connection, batch: Batch, parse: Callable[[bytes], StoredPoint]) -> None:
    try:
        points = map(parse, filter(None, batch.lines()))
        rows = [_row(point) for point in points if not _is_of_the_catalog(point)]
        # Many rows in one statement: between two statements the event loop may take the GIL and
        # keep it for 5 ms.
        for start in range(0, len(rows), _ROWS_PER_INSERT):
            part = rows[start : start + _ROWS_PER_INSERT]
            connection.execute(_insertion(len(part)), list(chain.from_iterable(part)))
    except StorageDamaged as exc:
        # The journal's row is damaged, not this file: delivery splits the batch and finds out.
        raise _Unreadable(str(exc)) from exc
    except (ValueError, OverflowError) as exc:
        raise _Unreadable(f"not an event: {exc}"[:_MAX_REASON]) from exc


@functools.lru_cache(maxsize=8)  # the full size, and some remainders
def _insertion(rows: int) -> str:
    row = f"({', '.join('?' * len(_COLUMNS))})"
    return (
        f"INSERT INTO events ({', '.join(_COLUMNS)}) VALUES {', '.join([row] * rows)}"  # noqa: S608 - names of ours
        f"{_ON_CONFLICT}"
    )


def _is_of_the_catalog(point: StoredPoint) -> bool:
    """Whether it belongs to the device history; `metadata.db` has the current state."""
    return point.measurement in _CATALOG and "event_type" not in point.tags


def _row(point: StoredPoint) -> list[Value]:
    if not point.tags.get("entity_id") or not point.tags.get("event_type"):
        raise ValueError(f"measurement {point.measurement!r} without entity_id or event_type")
    known = {**point.fields, **point.tags}.get
    return [point.time_ns, *map(known, _READ)]


def _select(
    connection: Connection,
    conditions: Mapping[str, Value],
    after: tuple[int, int] | None,
    limit: int,
) -> Page:
    where = list(conditions)
    values = list(conditions.values())
    if after is not None:
        where.append("(time_ns, id) < (?, ?)")
        values.extend(after)
    rows = connection.execute(
        f"SELECT id, {', '.join(_COLUMNS)} FROM events"  # noqa: S608 - names and conditions of ours
        + (f" WHERE {' AND '.join(where)}" if where else "")
        + " ORDER BY time_ns DESC, id DESC LIMIT ?",
        (*values, limit + 1),
    ).fetchall()
    more = len(rows) > limit
    page = rows[:limit]
    return Page(
        events=[_event(row) for row in page],
        next_cursor=f"{page[-1][1]}_{page[-1][0]}" if more else None,
    )


def _entity_ids(connection: Connection) -> list[str]:
    # One step in the index for each entity; DISTINCT would read all of it.
    found = connection.execute(
        "WITH RECURSIVE found (name) AS (SELECT min(entity_id) FROM events UNION ALL SELECT"
        " (SELECT min(entity_id) FROM events WHERE entity_id > name) FROM found"
        " WHERE name IS NOT NULL) SELECT name FROM found WHERE name IS NOT NULL"
    )
    return [name for (name,) in found]


def _event(row: Sequence[Value]) -> StoredEvent:
    columns: dict[str, object] = dict(zip(_COLUMNS, row[1:], strict=True))
    time_ns, available = columns["time_ns"], columns["available"]
    ids = [columns[name] for name in _CONTEXT]
    context = dict(zip(Context.__struct_fields__, ids, strict=True))
    if not isinstance(time_ns, int):
        raise StorageDamaged(f"the time of event {row[0]} is no integer")
    columns |= {
        "time": iso_time(time_ns),
        "context": None if context["id"] is None else context,
        "available": None if available is None else bool(available),
        "duration": columns["duration_s"],
        "attributes": msgspec.Raw(str(columns["attributes"] or "{}")),
        "backfilled": bool(columns["backfilled"]),
        "removed": bool(columns["removed"]),
    }
    try:
        return msgspec.convert(columns, StoredEvent)
    except msgspec.ValidationError as exc:
        raise StorageDamaged(f"event {row[0]} cannot be read: {exc}") from exc


def _position(cursor: str) -> tuple[int, int]:
    parts = _CURSOR.fullmatch(cursor)
    if parts is None or abs(int(parts[1])) > _MAX_TIME_NS:
        raise ValueError(f"not a cursor: {cursor[:100]!r}")
    return int(parts[1]), int(parts[2])


def _ends(connection: Connection) -> tuple[int | None, int | None]:
    """Return when the oldest and the newest event happened."""
    # Two statements: SQLite uses the index for only one min or max.
    (oldest_ns,) = connection.execute("SELECT min(time_ns) FROM events").fetchone()
    (newest_ns,) = connection.execute("SELECT max(time_ns) FROM events").fetchone()
    if not isinstance(oldest_ns, int | None) or not isinstance(newest_ns, int | None):
        raise StorageDamaged("the time of an event is no integer")
    return oldest_ns, newest_ns


def _prune(connection: Connection, before_ns: int) -> int:
    """Delete some events before a moment; return how many."""
    deleted = connection.execute(
        "DELETE FROM events WHERE id IN"
        " (SELECT id FROM events WHERE time_ns < ? ORDER BY time_ns LIMIT ?)",
        (before_ns, _ROWS_PER_STEP),
    ).rowcount
    shrink(connection, at_most_bytes=_BYTES_PER_STEP)
    return deleted
