"""Which entity of today's catalog had an entity id at some time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from app.discovery.catalog import Catalog
from app.discovery.identity import entry_of
from app.discovery.identity_table import RecordedRename
from app.discovery.store import StoredCatalog, read_catalog
from app.model import MAX_TIME_NS, LastNames, Placement, nanoseconds
from app.runtime.errors import SettingsError, StorageError

_NO_NAMES = LastNames(None, None, None)


class KnownEntity(NamedTuple):
    """An entity of today's catalog."""

    placement: Placement
    names: LastNames


class Holder(NamedTuple):
    """Which entity had an id, up to and not including a time."""

    until_ns: int
    entity: KnownEntity | None
    """None if it is in no catalog."""


class EntityHistory:
    """The entities of a catalog by the ids that they had."""

    def __init__(self, stored: StoredCatalog) -> None:
        """Join the registries, and sort the renames by id."""
        self._names = stored.names
        self._catalog = Catalog()
        self._catalog.replace(stored.registries)
        self._ids = {row.entity_id for row in stored.registries.entities}
        self._today = {
            entry: row.entity_id
            for row in stored.registries.entities
            if (entry := entry_of(row)) is not None
        }
        self._renames: dict[str, list[RecordedRename]] = {}
        for rename in stored.renames:
            for entity_id in {rename.former, rename.entity_id}:
                self._renames.setdefault(entity_id, []).append(rename)

    def holders(self, entity_id: str) -> Sequence[Holder]:
        """Return which entities had an id, oldest first; the last one has it now."""
        found = []
        arrived: str | None = None
        for rename in self._renames.get(entity_id, ()):
            has_left = rename.former == entity_id
            entity = self._entity_of(rename.entry if has_left else arrived)
            found.append(Holder(nanoseconds(rename.at), entity))
            arrived = None if has_left else rename.entry
        # It may have been registered, without a rename, since the last entity left it.
        return [*found, Holder(MAX_TIME_NS, self._entity(entity_id))]

    def _entity_of(self, entry: str | None) -> KnownEntity | None:
        today = self._today.get(entry or "")
        return None if today is None else self._entity(today)

    def _entity(self, entity_id: str) -> KnownEntity | None:
        names = self._names.get(entity_id)
        if entity_id not in self._ids and names is None:
            return None
        # Without a unique id an entity is in no registry, and has names all the same.
        return KnownEntity(self._catalog.placement(entity_id), names or _NO_NAMES)


def open_history(path: Path) -> EntityHistory:
    """Read the catalog of the service.

    Raises:
        SettingsError: there is none.
    """
    advice = "Start the service once, so that it lists Home Assistant's registries"
    try:
        stored = read_catalog(path)
    except StorageError as exc:
        raise SettingsError(
            f"copy: {path} has no catalog that can be read ({exc}). {advice}"
        ) from exc
    if stored is None:
        raise SettingsError(f"copy: {path} has no catalog yet. {advice}")
    return EntityHistory(stored)
