"""From Home Assistant's rows to the columns of `metadata.db` and the rows of a data API; pure."""

from __future__ import annotations

import functools
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
    """What became of one registry between two listings, by ids."""

    changed: Sequence[str]
    """New rows, too."""
    removed: Sequence[str]


def difference(former: Registries, now: Registries, kind: Kind) -> Difference:
    """Compare one registry; a device whose config entry changed hands has changed as well."""
    before, after = former.raw.get(kind, {}), now.raw.get(kind, {})
    # In order, because tables are filled much faster so.
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
    """Return a row as a data API takes it: Home Assistant's own and, of a device, two more.

    `domains` has the integration of each config entry, `source` names this Home Assistant.
    """
    row = msgspec.json.decode(raw, type=dict[str, object])
    if kind == "device" and (device := read_device(raw)) is not None:
        row |= {"integration": integration_of(device, domains), "source": source}
    return row


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """How rows of one kind become columns."""

    name: str
    key: str
    id_names: tuple[str, ...]
    """What the id is called in a row."""
    columns: Mapping[str, tuple[Callable[[object], Value], tuple[str, ...]]]
    """How each column is read, and from which members of the row: the first that says something."""
    names: tuple[str, ...]
    """Columns that give the name that is shown, the best first."""
    shown_name: str
    touched: str
    """The column with the moment of the last upsert."""

    def values(self, row: Row, *, moment: str) -> dict[str, Value] | None:
        """Return the columns that the row knows; of others nothing is said. None without an id."""
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
        values[self.shown_name] = _shown_name(self, values, row_id)
        if self.key == "entity_id":
            values["domain"] = row_id.partition(".")[0]
        values.setdefault("created_at", moment)
        values[self.touched] = moment
        values["removed_at"] = moment if row.get("removed") is True else None
        return values


def _shown_name(table: Table, values: Mapping[str, Value], row_id: str) -> Value:
    for name in table.names:
        if values.get(name):
            return values[name]
    return row_id.partition(".")[2].replace("_", " ").title() or None


@functools.lru_cache(maxsize=256)  # a sender chooses the columns
def upsert_statement(table: Table, columns: tuple[str, ...]) -> str:
    """Return the SQL that inserts a row, or gives these columns of it new values.

    Columns that are not among them stay; the name that is shown follows from what is known
    after that.
    """
    kept = {table.key, "created_at", table.shown_name}
    sets = [f"{name} = excluded.{name}" for name in columns if name not in kept]
    if set(table.names) & set(columns):
        names = [
            f"nullif({'excluded' if name in columns else table.name}.{name}, '')"
            for name in table.names
            if name != table.shown_name
        ]
        best = ", ".join(
            (*names, f"excluded.{table.shown_name}", f"{table.name}.{table.shown_name}")
        )
        sets.append(f"{table.shown_name} = coalesce({best})")
    return (
        f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608 - names of ours
        f" ON CONFLICT ({table.key}) DO UPDATE SET {', '.join(sets)}"
    )


def _text(value: object) -> Value:
    if value is None or type(value) is str:
        return value or None
    return text_of(value)


def _id_or_first(value: object) -> Value:
    """Return an id, or the first of a list of them."""
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
    """Return 1 for what is there: who or what disabled an entity, or true."""
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
