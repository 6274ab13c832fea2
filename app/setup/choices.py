"""The kinds of database that a person chooses from, as settings. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from app.api.setup import Kind

ENVIRONMENT: Kind = "environment"
"""The kind while the environment says which database it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseKind:
    """One kind of database."""

    kind: Kind
    label: str
    settings: Mapping[str, str] = field(default_factory=dict)
    """The setting of each field."""
    fixed: Mapping[str, str] = field(default_factory=dict)
    """Settings that follow from the kind."""

    def values(self, fields: Mapping[str, str]) -> dict[str, str | None]:
        """Return the settings for what was entered; None for each that the kind does not have."""
        given = {self.settings[name]: text for name, text in fields.items()}
        unset: dict[str, str | None] = dict.fromkeys(DATABASE_SETTINGS)
        return unset | {name: text or None for name, text in given.items()} | dict(self.fixed)


_USER = {"username": "INFLUXDB_USERNAME", "password": "INFLUXDB_PASSWORD"}
_DATABASE = {"url": "INFLUXDB_URL", "database": "INFLUXDB_BUCKET"}

DATABASE_KINDS = {
    each.kind: each
    for each in (
        DatabaseKind(kind="embedded", label="Embedded store"),
        DatabaseKind(
            kind="influxdb1",
            label="InfluxDB 1.x",
            settings={**_DATABASE, **_USER},
            fixed={"INFLUXDB_API": "v1"},
        ),
        DatabaseKind(
            kind="influxdb2",
            label="InfluxDB 2.x",
            settings={
                "url": "INFLUXDB_URL",
                "org": "INFLUXDB_ORG",
                "bucket": "INFLUXDB_BUCKET",
                "token": "INFLUXDB_TOKEN",
            },
            fixed={"INFLUXDB_API": "v2"},
        ),
        DatabaseKind(
            kind="influxdb3",
            label="InfluxDB 3",
            settings={**_DATABASE, "token": "INFLUXDB_TOKEN"},
            fixed={"INFLUXDB_API": "v3"},
        ),
        DatabaseKind(
            kind="victoriametrics",
            label="VictoriaMetrics",
            settings={**_DATABASE, **_USER},
            fixed={"INFLUXDB_API": "v1"},
        ),
    )
}
DATABASE_SETTINGS = frozenset(
    {"INFLUXDB_HEADERS"}.union(
        *(each.settings.values() for each in DATABASE_KINDS.values()),
        *(each.fixed for each in DATABASE_KINDS.values()),
    )
)
"""All that a choice replaces, so that no secret is sent to a server that it is not for."""
FIELDS = {
    "HOME_ASSISTANT_URL": "url",
    "HOME_ASSISTANT_TOKEN": "token",
    **{
        setting: name for each in DATABASE_KINDS.values() for name, setting in each.settings.items()
    },
    "INFLUXDB_BUCKET": "bucket",
}
"""The field of each setting, for what is wrong with it."""
FIELDS_OF_CHECKS = {
    "home_assistant": "url",
    "token": "token",
    "rights": "token",
    "database": "url",
}
"""The field that each check is about."""


def database_values(kind: Kind, fields: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return the settings for a choice; a field that the kind does not have is ignored."""
    if kind == ENVIRONMENT:
        return {}
    chosen = DATABASE_KINDS[kind]
    return chosen.values({name: text for name in chosen.settings if (text := fields.get(name))})
