"""Maps registry rows to columns of `metadata.db` and to rows of a data API; pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeAlias

import msgspec

from app.discovery.catalog import text_of
from app.discovery.registries import (
    Kind,
    Registries,
    domains_of,
    integration_of,
    read_device,
)

Value: TypeAlias = str | int | None
Row: TypeAlias = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The ids that differ between two listings of one registry."""

    changed: Sequence[str]
    """Including new rows."""
    removed: Sequence[str]


def difference(former: Registries, now: Registries, kind: Kind) -> Difference:
    """Compare one registry; a device has also changed when its integration has."""
    before, after = former.raw.get(kind, {}), now.raw.get(kind, {})
    # Sorted, because tables are filled much faster in order.
    changed = sorted(row_id for row_id, row in after.items() if before.get(row_id) != row)
    if kind == "device" and former.config_entries != now.config_entries:
        was, is_now = domains_of(former), domains_of(now)
        known = set(changed)
        changed += [
            device.id
            for device in now.devices
            if device.id not in known
            and integration_of(device, was) != integration_of(device, is_now)
        ]
    return Difference(changed=changed, removed=[row_id for row_id in before if row_id not in after])


def row_to_send(
    kind: Kind, raw: bytes, *, domains: Mapping[str, str | None], source: str
) -> dict[str, object]:
    """Return a row as a data API accepts it: Home Assistant's own, plus two members for a device.

    `domains` maps config entries to integrations; `source` is the name of this Home Assistant.
    """
    row = msgspec.json.decode(raw, type=dict[str, object])
    if kind == "device" and (device := read_device(raw)) is not None:
        row |= {"integration": integration_of(device, domains), "source": source}
    return row


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Maps rows of one kind to columns."""

    name: str
    key: str
    id_names: tuple[str, ...]
    """Names of the id in a row."""
    columns: Mapping[str, tuple[Callable[[object], Value], tuple[str, ...]]]
    """How each column is read, and from which members: the first that is not null."""
    names: tuple[str, ...]
    """Columns that may hold the displayed name, the best first."""
    shown_name: str
    """The column with the displayed name."""
    touched: str
    """The column with the moment of the last upsert."""

    def values(self, row: Row, *, moment: str) -> dict[str, Value] | None:
        """Return the columns that the row has members for; None without an id."""
        ids = [row[name] for name in self.id_names if name in row]
        row_id = next((found for found in ids if isinstance(found, str) and found), None)
        if row_id is None:
            return None
        values: dict[str, Value] = {self.key: row_id}
        # Thousands of rows beside live events: the plain loop takes a third of the time.
        for column, (read, members) in self.columns.items():
            for member in members:
                if member in row:
                    value = values[column] = read(row[member])
                    if value is not None:
                        break
        if self.key == "entity_id":
            values["domain"] = row_id.partition(".")[0]
        values.setdefault("created_at", moment)
        values[self.touched] = moment
        values["removed_at"] = moment if row.get("removed") is True else None
        return values

    def merged(self, stored: Mapping[str, Value], values: Mapping[str, Value]) -> dict[str, Value]:
        """Return a stored row, {} for none, with the columns that a newer version of it has."""
        row = {**stored, **values}
        if stored:
            row["created_at"] = stored["created_at"]
        if not stored or any(name in values for name in self.names):
            row[self.shown_name] = self._name_of(row) or stored.get(self.shown_name)
        return row

    def _name_of(self, row: Mapping[str, Value]) -> Value:
        for name in self.names:
            if row.get(name):
                return row[name]
        return str(row[self.key]).partition(".")[2].replace("_", " ").title() or None


def _text(value: object) -> Value:
    if value is None or type(value) is str:
        return value or None
    return text_of(value)


def _id_or_first(value: object) -> Value:
    """Return an id, or the first id of a list."""
    if isinstance(value, list):
        value = value[0] if value else None
    return text_of(value)


def _json(value: object) -> Value:
    if value == []:
        return "[]"
    return None if value is None else msgspec.json.encode(value).decode()


def _number(value: object) -> Value:
    return value if isinstance(value, int) and abs(value) < 2**63 else None


def _given(value: object) -> Value:
    """Return 1 for true, or for what disabled an entity."""
    return int(value is not None and value is not False)


def _moment(value: object) -> Value:
    """Return ISO 8601: Home Assistant writes seconds since the epoch."""
    if not isinstance(value, int | float):
        return text_of(value)
    try:
        return datetime.fromtimestamp(value, UTC).isoformat()
    except (OverflowError, OSError, ValueError):
        return None


def _columns(
    *plain: str, **special: tuple[Callable[[object], Value], tuple[str, ...]]
) -> Mapping[str, tuple[Callable[[object], Value], tuple[str, ...]]]:
    return {**{name: (_text, (name,)) for name in plain}, **special}


DEVICES = Table(
    name="devices",
    key="device_id",
    id_names=("id", "device_id"),
    columns=_columns(
        "name",
        "name_by_user",
        "manufacturer",
        "model",
        "sw_version",
        "area_id",
        "integration",
        "entry_type",
        "configuration_url",
        "suggested_area",
        "source",
        config_entry_id=(
            _id_or_first,
            ("config_entry_id", "primary_config_entry", "config_entries"),
        ),
        via_device=(_text, ("via_device_id", "via_device")),
        labels=(_json, ("labels",)),
        created_at=(_moment, ("created_at",)),
    ),
    names=("name_by_user", "name"),
    shown_name="name",
    touched="last_seen",
)

ENTITIES = Table(
    name="entities",
    key="entity_id",
    id_names=("entity_id",),
    columns=_columns(
        "device_id",
        "platform",
        "unique_id",
        "area_id",
        "name",
        "name_by_user",
        "original_name",
        "icon",
        "config_entry_id",
        "source",
        device_class=(_text, ("device_class", "original_device_class")),
        unit_of_measurement=(_text, ("unit_of_measurement",)),
        disabled=(_given, ("disabled_by", "disabled")),
        supported_features=(_number, ("supported_features",)),
        capabilities=(_json, ("capabilities",)),
        labels=(_json, ("labels",)),
        created_at=(_moment, ("created_at",)),
    ),
    names=("name_by_user", "name", "original_name"),
    shown_name="friendly_name",
    touched="updated_at",
)
