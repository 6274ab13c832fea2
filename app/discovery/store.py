"""The catalog on disk: `metadata.db`, with the tables of HomeIQ's data API.

`registry` holds the rows of this Home Assistant as received. A start reads them before the first
event, so that tags do not change because of a restart. `devices` and `entities` are what the API
serves, including rows that other instances sent.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, Self, TypeAlias

import msgspec

from app.discovery import identity_table
from app.discovery.catalog import Catalog
from app.discovery.columns import (
    DEVICES,
    ENTITIES,
    Row,
    Table,
    Value,
    difference,
    row_to_send,
)
from app.discovery.identity_table import EntityIdentity, RecordedRename, all_renames
from app.discovery.refresh import RegistryUpdate
from app.discovery.registries import KINDS, Kind, Registries, domains_of, read_registries
from app.homeassistant.messages import Timestamp
from app.model import IdentityChange, LastNames
from app.runtime.errors import StorageDamaged, StorageError
from app.runtime.logging import RateLimitedLog
from app.runtime.sqlite import (
    RESTART_ADVICE,
    Connection,
    Database,
    open_or_replace,
    quick_check,
    reading,
)
from app.runtime.time import utc_now
from app.runtime.tolerant_json import UNREADABLE

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

TableName = Literal["devices", "entities"]
Document: TypeAlias = dict[str, object]

_TABLES: Mapping[TableName, Table] = {"devices": DEVICES, "entities": ENTITIES}
_PUBLISHED: Mapping[Kind, Table] = {"device": DEVICES, "entity": ENTITIES}
_ROWS_PER_STEP = 500

_ALL_SEEN = (
    "UPDATE devices SET last_seen = ? WHERE device_id IN"
    " (SELECT id FROM registry WHERE kind = 'device')"
)
_IS_OF_PLATFORM = (
    "(integration = ? OR EXISTS (SELECT 1 FROM entities WHERE platform = ?"
    " AND entities.device_id = devices.device_id AND entities.removed_at IS NULL))"
)
_HAS_LABEL = "labels <> '[]' AND EXISTS (SELECT 1 FROM json_each(labels) WHERE value = ?)"
_MORE = {
    "devices": ", (SELECT count(*) FROM entities WHERE entities.device_id = devices.device_id"
    " AND entities.removed_at IS NULL) AS entity_count"
}
_JSON_COLUMNS = {"devices": ("labels",), "entities": ("labels", "capabilities")}
_CONSEQUENCE = (
    "The catalog is read from Home Assistant again; what other instances sent is missing until they"
    " send it again."
)
_MIGRATIONS = (
    """
    CREATE TABLE registry (
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        row BLOB NOT NULL,
        PRIMARY KEY (kind, id)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE refreshes (number INTEGER PRIMARY KEY CHECK (number = 1), at TEXT NOT NULL) STRICT;
    CREATE TABLE devices (
        device_id TEXT PRIMARY KEY,
        name TEXT,
        name_by_user TEXT,
        manufacturer TEXT,
        model TEXT,
        sw_version TEXT,
        area_id TEXT,
        integration TEXT,
        entry_type TEXT,
        configuration_url TEXT,
        suggested_area TEXT,
        config_entry_id TEXT,
        via_device TEXT,
        last_seen TEXT,
        created_at TEXT,
        labels TEXT,
        source TEXT,
        removed_at TEXT
    );
    CREATE TABLE entities (
        entity_id TEXT PRIMARY KEY,
        device_id TEXT,
        domain TEXT,
        platform TEXT,
        unique_id TEXT,
        area_id TEXT,
        disabled INTEGER NOT NULL DEFAULT 0,
        name TEXT,
        name_by_user TEXT,
        original_name TEXT,
        friendly_name TEXT,
        supported_features INTEGER,
        capabilities TEXT,
        icon TEXT,
        device_class TEXT,
        unit_of_measurement TEXT,
        config_entry_id TEXT,
        created_at TEXT,
        updated_at TEXT,
        labels TEXT,
        source TEXT,
        removed_at TEXT
    );
    CREATE INDEX devices_of_area ON devices (area_id, device_id);
    CREATE INDEX entities_of_device ON entities (device_id, removed_at, platform);
    CREATE INDEX entities_of_domain ON entities (domain, entity_id);
    CREATE INDEX entities_of_platform ON entities (platform, entity_id);
    CREATE INDEX entities_with_labels ON entities (entity_id) WHERE labels <> '[]';
    """,
    """
    CREATE TABLE last_names (
        entity_id TEXT PRIMARY KEY,
        device_class TEXT,
        unit_of_measurement TEXT,
        friendly_name TEXT
    ) STRICT, WITHOUT ROWID;
    """,
    identity_table.CREATE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentPage:
    """Rows, ordered by id."""

    documents: Sequence[Document]
    next_cursor: str | None
    """Requests the next page; None after the last."""


class Names(Protocol):
    """Keeps the last known class, unit and name of each entity."""

    def restore(self, names: Mapping[str, LastNames]) -> None:
        """Set the names that an earlier process stored."""
        ...

    def last_names(self) -> Mapping[str, LastNames]:
        """Return the current ones."""
        ...


class CatalogStore:
    """The catalog on disk. Use as `async with`; a damaged file is set aside and replaced."""

    def __init__(
        self, path: Path, *, catalog: Catalog, source: str, names: Names | None = None
    ) -> None:
        """Store the parts.

        Args:
            path: the file.
            catalog: what is stored in it, and restored from it.
            source: the name of this Home Assistant.
            names: the last known class, unit and name of each entity, stored as well.
        """
        self.damage: str | None = None
        """One sentence when the file was damaged at the start."""
        self._path = path
        self._catalog = catalog
        self._source = source
        self._names = names
        self._stored_names: Mapping[str, LastNames] = {}
        self._stored = Registries()
        """The registries that are in the file."""
        self._unstored: deque[IdentityChange] = deque(maxlen=identity_table.MAX_CHANGES)
        """Changes of identity that a failed write left out."""
        self._database = Database(path, migrations=_MIGRATIONS, check=_check)

    async def __aenter__(self) -> Self:
        """Open, or create, the file and restore the catalog from it.

        Raises:
            StorageNewer: a newer version of this service wrote the file.
            StorageError: the folder or file cannot be opened.
        """
        self.damage = await open_or_replace(
            self._database, load=self._load, consequence=_CONSEQUENCE
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Finish the current write, store the last known names, and close the file."""
        await self._store_names()
        await self._database.__aexit__()

    async def refreshed(self, update: RegistryUpdate) -> None:
        """Store what changed; after a failure the next refresh stores it."""
        self._unstored.extend(update.changes)
        work = partial(
            _store_update,
            before=self._stored,
            update=replace(update, changes=tuple(self._unstored)),
            source=self._source,
        )
        try:
            await self._database.write(work)
        except StorageError as exc:
            if isinstance(exc, StorageDamaged):
                self.damage = f"{self._path.name} is damaged ({exc}). {RESTART_ADVICE}"
            limited_log.warning("The catalog was not stored; the next refresh stores it: %s", exc)
        else:
            limited_log.resolved("The catalog is stored again")
            self._stored = update.now
            self._unstored.clear()
        if update.is_full:
            await self._store_names()

    async def _store_names(self) -> None:
        """Store changed names; a crash loses those since the last full refresh."""
        if self._names is None:
            return
        names, stored = self._names.last_names(), self._stored_names
        changed = [(name, *each) for name, each in names.items() if stored.get(name) != each]
        removed = [(name,) for name in stored if name not in names]
        if not changed and not removed:
            return
        try:
            await self._database.write(partial(_store_names, changed=changed, removed=removed))
        except StorageError as exc:
            limited_log.warning("The last known classes and units were not stored: %s", exc)
        else:
            self._stored_names = names

    async def upsert(self, table: TableName, rows: Sequence[bytes]) -> int:
        """Store the JSON rows of another sender; return how many had an id.

        Columns that a row does not have keep their values.

        Raises:
            StorageError: nothing was changed.
        """
        moment = utc_now().isoformat()

        def work(connection: Connection) -> int:
            upserted = 0
            for first in range(0, len(rows), _ROWS_PER_STEP):
                read = list(_objects(rows[first : first + _ROWS_PER_STEP]))
                upserted += _upsert(connection, _TABLES[table], read, moment=moment)
            return upserted

        return await self._database.write(work)

    async def devices(
        self,
        *,
        manufacturer: str | None = None,
        model: str | None = None,
        area_id: str | None = None,
        platform: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> DocumentPage:
        """Return the devices that match; None means any. `platform` is an integration."""
        conditions: dict[str, Value] = {
            "manufacturer = ?": manufacturer,
            "model = ?": model,
            "area_id = ?": area_id,
            _IS_OF_PLATFORM: platform,
        }
        return await self._page(DEVICES, conditions, limit=limit, cursor=cursor)

    async def entities(
        self,
        *,
        domain: str | None = None,
        platform: str | None = None,
        device_id: str | None = None,
        label: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> DocumentPage:
        """Return the entities that match; None means any. `label` is one of the entity's own."""
        conditions: dict[str, Value] = {
            "domain = ?": domain,
            "platform = ?": platform,
            "device_id = ?": device_id,
            _HAS_LABEL: label,
        }
        return await self._page(ENTITIES, conditions, limit=limit, cursor=cursor)

    async def device(self, device_id: str) -> Document | None:
        """Return a device, including a removed one; None when unknown."""
        return await self._database.read(partial(_one, table=DEVICES, row_id=device_id))

    async def entity(self, entity_id: str) -> Document | None:
        """Return an entity, including a removed one; None when unknown."""
        return await self._database.read(partial(_one, table=ENTITIES, row_id=entity_id))

    async def identity(self, entity_id: str) -> EntityIdentity | None:
        """Return the ids that an entity has had; None when unknown."""
        return await self._database.read(
            partial(identity_table.identity_of_entity, entity_id=entity_id)
        )

    async def entity_ids(self) -> list[str]:
        """Return all entities of this Home Assistant, including removed ones."""
        return await self._database.read(partial(_entity_ids, source=self._source))

    async def _page(
        self, table: Table, conditions: Mapping[str, Value], *, limit: int, cursor: str | None
    ) -> DocumentPage:
        chosen = {sql: value for sql, value in conditions.items() if value is not None}
        chosen[f"removed_at IS NULL AND {table.key} > ?"] = cursor or ""
        return await self._database.read(
            partial(_select, table=table, conditions=chosen, limit=limit)
        )

    async def _load(self) -> None:
        if self._names is not None:
            self._stored_names = await self._database.read(_load_names)
            self._names.restore(self._stored_names)
        loaded = await self._database.read(_load)
        if loaded is not None:
            self._stored, last_refresh = loaded
            self._catalog.restore(self._stored, last_refresh=last_refresh)


class StoredCatalog(NamedTuple):
    """What the file of a catalog holds."""

    registries: Registries
    names: Mapping[str, LastNames]
    """The last known class, unit and name of each entity."""
    renames: Sequence[RecordedRename]
    """In order."""


def read_catalog(path: Path) -> StoredCatalog | None:
    """Read the file of a catalog, also while the service writes to it; None before any refresh.

    Raises:
        StorageError: it cannot be read, or an older version of the service wrote it.
    """
    with reading(path) as connection:
        loaded = _load(connection)
        if loaded is None:
            return None
        return StoredCatalog(loaded[0], _load_names(connection), all_renames(connection))


# The functions below run in the database's own threads.


def _check(connection: Connection) -> None:
    quick_check(connection)
    for table, columns in _JSON_COLUMNS.items():
        invalid = " OR ".join(
            f"({name} IS NOT NULL AND NOT json_valid({name}))" for name in columns
        )
        (count,) = connection.execute(f"SELECT count(*) FROM {table} WHERE {invalid}").fetchone()  # noqa: S608 - names of ours
        if count:
            raise StorageDamaged(f"{count} rows of {table} hold no valid JSON")


def _load(connection: Connection) -> tuple[Registries, datetime] | None:
    last = connection.execute("SELECT at FROM refreshes").fetchone()
    if last is None:
        return None
    raw: dict[Kind, list[bytes]] = {}
    for kind in KINDS:
        found = connection.execute("SELECT row FROM registry WHERE kind = ?", (kind,))
        raw[kind] = [row for (row,) in found]
    try:
        last_refresh = msgspec.convert(last[0], Timestamp)
        return read_registries(raw), last_refresh
    except UNREADABLE as exc:
        raise StorageDamaged(f"a row of a registry cannot be read: {exc}") from exc


def _load_names(connection: Connection) -> dict[str, LastNames]:
    found = connection.execute(
        "SELECT entity_id, device_class, unit_of_measurement, friendly_name FROM last_names"
    )
    return {entity_id: LastNames(*names) for entity_id, *names in found}


def _store_names(
    connection: Connection, changed: Sequence[Sequence[Value]], removed: Sequence[Sequence[Value]]
) -> None:
    connection.executemany("REPLACE INTO last_names VALUES (?, ?, ?, ?)", changed)
    connection.executemany("DELETE FROM last_names WHERE entity_id = ?", removed)


def _store_update(
    connection: Connection, before: Registries, update: RegistryUpdate, source: str
) -> None:
    domains, moment = domains_of(update.now), update.at.isoformat()
    for kind in KINDS:
        found = difference(before, update.now, kind)
        rows = update.now.raw.get(kind, {})
        connection.executemany(
            "REPLACE INTO registry (kind, id, row) VALUES (?, ?, ?)",
            ((kind, row_id, rows[row_id]) for row_id in found.changed),
        )
        connection.executemany(
            "DELETE FROM registry WHERE kind = ? AND id = ?",
            ((kind, row_id) for row_id in found.removed),
        )
        if table := _PUBLISHED.get(kind):
            changed = (
                row_to_send(kind, rows[row_id], domains=domains, source=source)
                for row_id in found.changed
            )
            _upsert(connection, table, changed, moment=moment)
            connection.executemany(
                f"UPDATE {table.name} SET removed_at = ? WHERE {table.key} = ?",  # noqa: S608 - names of ours
                ((moment, row_id) for row_id in found.removed),
            )
    identity_table.store_identity_changes(connection, update.changes)
    if update.is_full:
        connection.execute(_ALL_SEEN, (moment,))
        connection.execute("REPLACE INTO refreshes (number, at) VALUES (1, ?)", (moment,))


def _objects(rows: Iterable[bytes]) -> Iterator[dict[str, object]]:
    for row in rows:
        with contextlib.suppress(*UNREADABLE):  # what is not an object has no id either
            yield msgspec.json.decode(row, type=dict[str, object])


def _upsert(connection: Connection, table: Table, rows: Iterable[Row], *, moment: str) -> int:
    """Insert rows, or update the columns that they have; return how many had an id."""
    read = [values for row in rows if (values := table.values(row, moment=moment)) is not None]
    ids = msgspec.json.encode([values[table.key] for values in read]).decode()
    found = connection.execute(
        f"SELECT * FROM {table.name} WHERE {table.key} IN (SELECT value FROM json_each(?))",  # noqa: S608 - names of ours
        (ids,),
    )
    names = [description[0] for description in found.description]
    merged = {row[0]: dict(zip(names, row, strict=True)) for row in found}
    for values in read:
        row_id = values[table.key]
        merged[row_id] = table.merged(merged.get(row_id, {}), values)
    connection.executemany(
        f"REPLACE INTO {table.name} VALUES (:{', :'.join(names)})",  # noqa: S608 - names of ours
        ({**dict.fromkeys(names), "disabled": 0, **row} for row in merged.values()),
    )
    return len(read)


def _one(connection: Connection, table: Table, row_id: str) -> Document | None:
    page = _select(connection, table, {f"{table.key} = ?": row_id}, limit=1)
    return page.documents[0] if page.documents else None


def _entity_ids(connection: Connection, source: str) -> list[str]:
    found = connection.execute("SELECT entity_id FROM entities WHERE source = ?", (source,))
    return [entity_id for (entity_id,) in found]


def _select(
    connection: Connection, table: Table, conditions: Mapping[str, Value], limit: int
) -> DocumentPage:
    where = " AND ".join(
        sql.replace("?", f"?{number}") for number, sql in enumerate(conditions, start=1)
    )
    cursor = connection.execute(
        f"SELECT *{_MORE.get(table.name, '')} FROM {table.name} WHERE {where}"  # noqa: S608 - names and conditions of ours
        f" ORDER BY {table.key} LIMIT ?{len(conditions) + 1}",
        (*conditions.values(), limit + 1),
    )
    names = [description[0] for description in cursor.description]
    rows = cursor.fetchall()
    return DocumentPage(
        documents=[_document(names, row) for row in rows[:limit]],
        next_cursor=rows[limit - 1][0] if len(rows) > limit else None,
    )


def _document(names: Sequence[str], row: Sequence[Value]) -> Document:
    document: Document = dict(zip(names, row, strict=True))
    if "disabled" in document:
        document["disabled"] = bool(document["disabled"])
    for name in ("labels", "capabilities"):
        if document.get(name) is not None:
            document[name] = msgspec.Raw(str(document[name]))
    return document
