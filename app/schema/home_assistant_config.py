"""Loads the options of the schema `home_assistant` from INFLUXDB_SCHEMA_CONFIG."""

from __future__ import annotations

from app.runtime.errors import SettingsError
from app.runtime.home_assistant_yaml import ConfigurationInvalid, read_section
from app.schema.home_assistant import Text
from app.schema.home_assistant_options import (
    CONNECTION_KEYS,
    Options,
    OptionsInvalid,
    read_options,
)

_SETTING = "INFLUXDB_SCHEMA_CONFIG"


def load_options(source: str | None, *, text: Text) -> tuple[Options, list[str]]:
    """Return the options in a file, a folder or YAML, and the connection keys among them.

    Without a source, Home Assistant's defaults.

    Raises:
        SettingsError: they cannot be read, or Home Assistant would refuse them.
    """
    if source is None:
        return Options(), []
    try:
        section = read_section("influxdb", source, label=_SETTING, opaque=CONNECTION_KEYS)
    except ConfigurationInvalid as exc:
        raise SettingsError(f"{_SETTING}: {exc}") from exc
    try:
        options = read_options(section.value, unread=section.unread)
    except OptionsInvalid as exc:
        sentences = [
            f"{section.place(path)}: {'.'.join(['influxdb', *map(str, path)])} {sentence}"
            for path, sentence in exc.problems
        ]
        raise SettingsError(f"{_SETTING}: {'. '.join(sentences)}") from exc
    if text == "v1" and options.precision in {"us", "ns"}:
        place = section.place(("precision",))
        raise SettingsError(
            f"{_SETTING}: {place}: influxdb.precision: with {options.precision}, Home Assistant"
            " writes nothing to InfluxDB 1. Use ms or s, or leave it out"
        )
    return options, sorted(section.unread | (CONNECTION_KEYS & section.value.keys()))
