"""The table `identity_changes` of `metadata.db`: which ids changed, and the chain of an entity.

Its functions run in the database's own threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import NamedTuple

import msgspec

from app.discovery.identity import entry_of
from app.discovery.registries import EntityRow
from app.model import IdentityChange, TimeSource
from app.runtime.sqlite import Connection

MAX_CHANGES = 10_000
"""Older ones are deleted."""

CREATE = """
    CREATE TABLE identity_changes (
        id INTEGER PRIMARY KEY,
        what TEXT NOT NULL,
        entity_id TEXT,
        device_id TEXT,
        old TEXT,
        new TEXT,
        at TEXT NOT NULL,
        at_source TEXT NOT NULL,
        first_point TEXT,
        entry TEXT
    ) STRICT;
    CREATE INDEX identity_changes_of_entry ON identity_changes (entry) WHERE entry IS NOT NULL;
    CREATE INDEX identity_changes_of_device ON identity_changes (device_id)
        WHERE device_id IS NOT NULL;
    CREATE INDEX identity_changes_to_name ON identity_changes (new) WHERE what = 'entity_id';
    CREATE INDEX identity_changes_from_name ON identity_changes (old) WHERE what = 'entity_id';
    CREATE UNIQUE INDEX identity_changes_by_split ON identity_changes (new, old)
        WHERE what = 'split';
    """
"""The migration that adds it."""

_COLUMNS = ("what", "entity_id", "device_id", "old", "new", "at", "at_source", "first_point")
_INSERT = (
    f"INSERT OR IGNORE INTO identity_changes ({', '.join(_COLUMNS)}, entry)"  # noqa: S608 - names of ours
    f" VALUES (:{', :'.join(_COLUMNS)}, :entry)"
)
_DELETE_OLDEST = (
    "DELETE FROM identity_changes WHERE id <= (SELECT max(id) FROM identity_changes) - ?"
)
_LAST_ENTRY = (
    "SELECT entry FROM identity_changes WHERE what = 'entity_id' AND (old = ?1 OR new = ?1)"
    " ORDER BY id DESC LIMIT 1"
)
_OF_ENTRY = f"SELECT id, {', '.join(_COLUMNS)} FROM identity_changes WHERE entry = ? ORDER BY id"  # noqa: S608 - names of ours
_OF_DEVICES = (
    f"SELECT id, {', '.join(_COLUMNS)} FROM identity_changes"  # noqa: S608 - names of ours
    " WHERE device_id IN (SELECT value FROM json_each(?))"
)


class NameSpan(NamedTuple):
    """A time in which an entity had one id."""

    entity_id: str
    since: datetime | None
    """None for the first known id: since it was registered."""
    since_source: TimeSource | None
    until: datetime | None
    """When it was renamed or removed; None for the current id."""
    first_point: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityIdentity:
    """All known ids of one entity, and the changes of its id, device and area."""

    names: Sequence[NameSpan]
    """Oldest first."""
    changes: Sequence[IdentityChange]
    """Oldest first, including the splits and areas of its devices."""


class RecordedRename(NamedTuple):
    """A change of an entity's id."""

    former: str
    entity_id: str
    at: datetime
    entry: str | None
    """What identifies the entity across renames."""


def all_renames(connection: Connection) -> list[RecordedRename]:
    """Return the changes of entity ids, in order."""
    rows = connection.execute(
        "SELECT old, new, at, entry FROM identity_changes"
        " WHERE what = 'entity_id' AND old IS NOT NULL AND new IS NOT NULL ORDER BY id"
    )
    return [
        RecordedRename(former, entity_id, msgspec.convert(at, datetime), entry)
        for former, entity_id, at, entry in rows
    ]


def store_identity_changes(connection: Connection, changes: Sequence[IdentityChange]) -> None:
    """Add changes, and delete the oldest beyond `MAX_CHANGES`."""
    if changes:
        connection.executemany(_INSERT, map(msgspec.to_builtins, changes))
        connection.execute(_DELETE_OLDEST, (MAX_CHANGES,))


def identity_of_entity(connection: Connection, entity_id: str) -> EntityIdentity | None:
    """Return the identity of the entity that has this id, or else had it last; None if unknown."""
    row = _row(connection, entity_id)
    entry = row.entry if row is not None else None
    if entry is None:  # an id between two listings
        found = connection.execute(_LAST_ENTRY, (entity_id,)).fetchone()
        entry = found[0] if found else None
    if row is None and entry is None:
        return None
    changes = _changes(connection, _OF_ENTRY, entry)
    names = _spans(entity_id, [change for _, change in changes])
    newest = _row(connection, names[-1].entity_id)
    devices = {change.old for _, change in changes if change.what == "device_id"}
    if newest is not None and newest.entry == entry:
        names[-1] = names[-1]._replace(until=newest.removed_at)
        devices.add(newest.device_id)
    ids = msgspec.json.encode(sorted(filter(None, devices))).decode()
    changes += _changes(connection, _OF_DEVICES, ids)
    return EntityIdentity(
        names=names, changes=[change for _, change in sorted(changes, key=itemgetter(0))]
    )


class _Row(NamedTuple):
    """What the table `entities` has of an entity id."""

    entry: str | None
    device_id: str | None
    removed_at: datetime | None


def _row(connection: Connection, entity_id: str) -> _Row | None:
    found = connection.execute(
        "SELECT platform, unique_id, device_id, removed_at FROM entities WHERE entity_id = ?",
        (entity_id,),
    ).fetchone()
    if found is None:
        return None
    platform, unique_id, device_id, removed_at = found
    row = EntityRow(entity_id, platform=platform, unique_id=unique_id)
    return _Row(entry_of(row), device_id, _moment(removed_at))


def _changes(
    connection: Connection, query: str, value: str | None
) -> list[tuple[int, IdentityChange]]:
    """Return changes with their numbers; a row that cannot be read is left out."""
    found = []
    for number, *values in connection.execute(query, (value,)):
        with suppress(msgspec.ValidationError):
            row = dict(zip(_COLUMNS, values, strict=True))
            found.append((number, msgspec.convert(row, IdentityChange)))
    return found


def _spans(entity_id: str, changes: Sequence[IdentityChange]) -> list[NameSpan]:
    """Return the ids of an entity, oldest first; the first is known from the first rename."""
    spans: list[NameSpan] = []
    for change in changes:
        if change.what != "entity_id":
            continue
        if not spans and change.old:
            spans.append(NameSpan(change.old, None, None, None, None))
        if spans:
            spans[-1] = spans[-1]._replace(until=change.at)
        if change.new:
            since = change.at, change.at_source
            spans.append(NameSpan(change.new, *since, None, change.first_point))
    return spans or [NameSpan(entity_id, None, None, None, None)]


def _moment(text: str | None) -> datetime | None:
    return None if text is None else msgspec.convert(text, datetime)
