"""The two ends of a copy, from the settings and the command line."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from app.commands.copy.conversion import Conversion, ConversionOptions
from app.commands.copy.converted import ConvertedSource
from app.commands.copy.embedded_store import FILE_NAME, EmbeddedEvents
from app.commands.copy.entity_history import open_history
from app.commands.copy.influxdb_2 import location_of_bucket
from app.commands.copy.influxql_reader import InfluxQlReader, Location
from app.commands.copy.source import Source, Wants, every_field
from app.commands.copy.victoria_metrics import VictoriaMetrics
from app.runtime.addresses import database_url
from app.runtime.errors import DatabaseRefused, SettingsError
from app.runtime.globs import glob_matcher
from app.runtime.logging import shown_url
from app.schema.home_assistant_config import load_options
from app.settings import CopySourceSettings, InfluxSettings, Settings
from app.sinks.influxdb.dialects import Target
from app.sinks.influxdb.queries import Kind, QueryClient
from app.sinks.influxdb.sink import InfluxSink

Opened: TypeAlias = InfluxQlReader | VictoriaMetrics

EMBEDDED = "embedded"
CATALOG_FILE = "metadata.db"
_TITLES: dict[Kind, str] = {
    "v1": "InfluxDB 1",
    "v2": "InfluxDB 2",
    "v3": "InfluxDB 3",
    "victoriametrics": "VictoriaMetrics",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One end of a copy: an address and a bucket there, or the embedded store."""

    url: str
    """`embedded` for the embedded store."""
    bucket: str
    policy: str | None = None

    def __str__(self) -> str:
        if self.url == EMBEDDED:
            return f"the embedded store in {self.bucket}"
        policy = f", retention policy {self.policy!r}" if self.policy else ""
        return f"{self.bucket!r} at {shown_url(self.url)}{policy}"


def source_end(arguments: argparse.Namespace, chosen: Settings) -> End:
    """Return what is read.

    Raises:
        SettingsError: it is not given, is no address, or does not exist.
    """
    given = arguments.source or chosen.copy_from.url
    if given is None:
        raise SettingsError(
            "copy: what is to be read? Use --from with an address or `embedded`, or COPY_FROM_URL"
        )
    if given == EMBEDDED:
        path = chosen.journal.data_dir / FILE_NAME
        if not path.exists():
            raise SettingsError(f"copy: there is no embedded store: {path} does not exist")
        return End(url=EMBEDDED, bucket=str(path))
    try:
        url = database_url(given)
    except ValueError as exc:
        raise SettingsError(f"copy: --from {exc}") from exc
    bucket = arguments.bucket or chosen.copy_from.bucket
    return End(url=url, bucket=bucket, policy=arguments.policy)


def target_end(chosen: Settings) -> End:
    """Return what is written: the database of the service.

    Raises:
        SettingsError: there is none.
    """
    if chosen.influx.url is None:
        raise SettingsError("INFLUXDB_URL: is unset, and `copy` writes to that database. Set it")
    return End(url=chosen.influx.url, bucket=chosen.influx.bucket)


def name_of(source: End, target: End, schema: str | None) -> str:
    """Return a short name for files about the copy of one end to another."""
    ends = repr([(shown_url(end.url), end.bucket, end.policy) for end in (source, target)])
    name = hashlib.blake2b(ends.encode(), digest_size=5).hexdigest()
    return f"{name}-{schema}" if schema else name


def conversion_of(chosen: Settings, *, has_texts: bool) -> Conversion:
    """Return what converts Home Assistant's schema into `homeiq`.

    Raises:
        SettingsError: the service has no catalog yet, or INFLUXDB_SCHEMA_CONFIG is invalid.
    """
    influx = chosen.influx
    known, _ = load_options(influx.schema_config, text="v2")
    rules = (known.component_config, known.component_config_domain, known.component_config_glob)
    overrides = [each.override_measurement for rule in rules for each in rule.values()]
    options = ConversionOptions(
        measurement=influx.measurement,
        instance=chosen.home_assistant.instance_name,
        is_attribute_field=(
            glob_matcher(influx.attribute_fields) if influx.attribute_fields else None
        ),
        other_measurements={known.default_measurement, known.override_measurement, *overrides},
        has_texts=has_texts,
    )
    history = open_history(chosen.journal.data_dir / CATALOG_FILE)
    return Conversion(options, history.holders)


@asynccontextmanager
async def opened_source(
    end: End, chosen: Settings, *, is_converted: bool
) -> AsyncIterator[tuple[Source, str]]:
    """Open what is read, and name its kind.

    Raises:
        SettingsError: the settings do not allow it.
        QueryFailed: it does not respond.
        DatabaseRefused: it does not say what it is, or cannot be read.
    """
    if end.url == EMBEDDED:
        if is_converted:
            raise SettingsError("copy: the embedded store has the schema homeiq already")
        influx = chosen.influx
        yield (
            EmbeddedEvents(
                Path(end.bucket),
                measurement=influx.measurement,
                attribute_fields=influx.attribute_fields,
            ),
            "the embedded store",
        )
        return
    settings = chosen.copy_from
    async with _client(end, settings, org=settings.org) as client:
        kind = await client.kind() if settings.api == "auto" else settings.api
        if not is_converted:
            yield _source(client, kind, policy=end.policy), _TITLES[kind]
            return
        conversion = conversion_of(chosen, has_texts=kind != "victoriametrics")
        source = _source(client, kind, policy=end.policy, wants=conversion.wants)
        yield (
            ConvertedSource(source, conversion, measurement=chosen.influx.measurement),
            _TITLES[kind],
        )


def _source(
    client: QueryClient, kind: Kind, *, policy: str | None, wants: Wants = every_field
) -> Source:
    reader = reader_of(client, kind, policy=policy, wants=wants)
    if reader is None:
        raise DatabaseRefused("InfluxDB 3 cannot be read")
    return reader


@asynccontextmanager
async def opened_target(
    end: End, influx: InfluxSettings
) -> AsyncIterator[tuple[InfluxSink, QueryClient]]:
    """Open what is written, for writing and for reading it back."""
    sink = InfluxSink(
        end.url,
        token=influx.token.get_secret_value(),
        org=influx.org,
        bucket=influx.bucket,
        timeout_s=influx.timeout_s,
        api=influx.api,
        username=influx.username,
        password=influx.password.get_secret_value(),
        ssl_verify=influx.ssl_verify,
        headers=influx.headers_by_name,
        client_cert=influx.client_cert,
        client_key=influx.client_key,
    )
    async with sink, _client(end, influx, org=influx.org) as client:
        yield sink, client


def reader_of(
    client: QueryClient, kind: Kind, *, policy: str | None = None, wants: Wants = every_field
) -> Opened | None:
    """Return what reads a kind of database; None if nothing does."""

    async def location() -> Location:
        if kind == "v2":
            return await location_of_bucket(client)
        return Location(client.target.bucket, policy)

    match kind:
        case "v1" | "v2":
            # Most InfluxDB 1 refuse unsigned integers, and a bucket may be copied to one.
            return InfluxQlReader(client, location, keeps_unsigned=kind == "v1", wants=wants)
        case "v3":
            return None
        case "victoriametrics":
            return VictoriaMetrics(client, wants=wants)


def _client(end: End, settings: CopySourceSettings | InfluxSettings, *, org: str) -> QueryClient:
    return QueryClient(
        end.url,
        Target(
            bucket=end.bucket,
            org=org,
            token=settings.token.get_secret_value(),
            username=settings.username,
            password=settings.password.get_secret_value(),
        ),
        ssl_verify=settings.ssl_verify,
        headers=settings.headers_by_name,
        client_cert=settings.client_cert,
        client_key=settings.client_key,
    )
