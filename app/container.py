"""The object graph: what is built from which settings; nothing is opened here."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from dependency_injector import containers, providers
from prometheus_client import CollectorRegistry

from app.backfill.backfill import Backfill, Schema
from app.backfill.coverage import Coverage
from app.backfill.last_states import LastStates
from app.discovery.catalog import Catalog
from app.discovery.device_history import DeviceHistory
from app.discovery.refresh import Discovery, RefreshListener
from app.discovery.store import CatalogStore
from app.fanout.hub import Hub
from app.health_collector import HealthCollector
from app.homeassistant.connection import HomeAssistantSource
from app.journal.batcher import Batcher
from app.journal.journal import SqliteJournal
from app.journal.memory import MemoryJournal
from app.model import MEGABYTE, Lines
from app.normalize.changes import Normalizer
from app.normalize.entity_filter import EntityFilter
from app.normalize.transforms import Transforms
from app.normalize.user_transforms import load_transforms, reporting
from app.pipeline import Pipeline
from app.runtime.errors import FilterInvalid, SettingsError
from app.runtime.metrics import Telemetry
from app.runtime.retry import Backoff, Breaker
from app.runtime.supervisor import Supervisor
from app.schema.homeiq import HomeiqEncoder, identity_of, last_state_of
from app.schema.line_protocol import parse_line
from app.settings import Settings
from app.sinks.dead_letters import DeadLetters
from app.sinks.delivery import Delivery
from app.sinks.embedded import EmbeddedStore

if TYPE_CHECKING:
    from app.discovery.data_api import DataApi
    from app.sinks.influxdb.sink import InfluxSink

Journal: TypeAlias = SqliteJournal | MemoryJournal

_DELIVERY_MAX_WAIT_S = 60.0
_DISCOVERY_MAX_WAIT_S = 300.0


def _breaker(name: str, settings: Settings) -> Breaker:
    return Breaker(
        name,
        threshold=settings.resilience.breaker_threshold,
        reset_s=settings.resilience.breaker_reset_s,
    )


def _source(settings: Settings, telemetry: Telemetry) -> HomeAssistantSource:
    return HomeAssistantSource(
        settings.home_assistant.url,
        token=settings.home_assistant.token.get_secret_value(),
        ssl_verify=settings.home_assistant.ssl_verify,
        headers=settings.home_assistant.headers_by_name,
        client_cert=settings.home_assistant.client_cert,
        client_key=settings.home_assistant.client_key,
        backoff=Backoff(max_s=settings.resilience.max_retry_delay_s),
        breaker=_breaker("Home Assistant", settings),
        telemetry=telemetry,
        max_retries=settings.resilience.max_retries,
    )


def _missing_component(source: HomeAssistantSource) -> str | None:
    return source.missing_component


def _is_running(source: HomeAssistantSource) -> bool:
    return source.is_running


def _embedded_store(settings: Settings) -> EmbeddedStore | None:
    if not settings.embedded_store:
        return None
    return EmbeddedStore(
        settings.journal.data_dir / "events.db",
        parse=parse_line,
        retention_days=settings.embedded.retention_days,
    )


def _influx_sink(settings: Settings) -> InfluxSink | None:
    if settings.influx.url is None:
        return None
    # InfluxDB's client is a third of the time that importing this program takes, and 22 MB.
    from app.sinks.influxdb.sink import InfluxSink  # noqa: PLC0415

    return InfluxSink(
        settings.influx.url,
        token=settings.influx.token.get_secret_value(),
        org=settings.influx.org,
        bucket=settings.influx.bucket,
        timeout_s=settings.influx.timeout_s,
        api=settings.influx.api,
        username=settings.influx.username,
        password=settings.influx.password.get_secret_value(),
        ssl_verify=settings.influx.ssl_verify,
        headers=settings.influx.headers_by_name,
        client_cert=settings.influx.client_cert,
        client_key=settings.influx.client_key,
        flush_s=settings.influx.flush_s,
    )


def _sinks(
    influx: InfluxSink | None, embedded: EmbeddedStore | None
) -> tuple[InfluxSink | EmbeddedStore, ...]:
    return tuple(sink for sink in (influx, embedded) if sink is not None)


def _metadata(settings: Settings, catalog: Catalog, normalizer: Normalizer) -> CatalogStore:
    return CatalogStore(
        settings.journal.data_dir / "metadata.db",
        catalog=catalog,
        source=settings.source_name,
        names=normalizer,
    )


def _data_api(settings: Settings) -> DataApi | None:
    if settings.discovery.data_api_url is None:
        return None
    from app.discovery.data_api import DataApi  # noqa: PLC0415 - see _influx_sink

    return DataApi(
        settings.discovery.data_api_url,
        key=settings.discovery.data_api_key.get_secret_value(),
        source=settings.source_name,
        backoff=Backoff(max_s=_DISCOVERY_MAX_WAIT_S),
        breaker=_breaker("data API", settings),
    )


def _entity_filter(settings: Settings) -> EntityFilter | None:
    text, file = settings.filter.config, settings.filter.config_file
    name = "ENTITY_FILTER_CONFIG" if text is not None else "ENTITY_FILTER_CONFIG_FILE"
    try:
        if text is not None:
            return EntityFilter.of_text(text)
        return None if file is None else EntityFilter.of_file(file)
    except FilterInvalid as exc:
        raise SettingsError(f"{name}: {exc}. See docs/FILTER.md") from exc


def _transforms(settings: Settings, telemetry: Telemetry) -> Transforms | None:
    extensions = settings.extensions
    found = load_transforms(extensions.transforms, shared_path=extensions.shared_path)
    return Transforms(found, failed=reporting(telemetry)) if found else None


def _device_history(settings: Settings, catalog: Catalog, journal: Journal) -> DeviceHistory | None:
    if not settings.discovery.store_device_history:
        return None

    async def append(lines: Lines) -> None:
        await journal.append(lines, received_at=time.time())

    return DeviceHistory(append, catalog=catalog, instance=settings.home_assistant.instance_name)


def _listeners(*listeners: RefreshListener | None) -> tuple[RefreshListener, ...]:
    return tuple(listener for listener in listeners if listener is not None)


def _journal(
    settings: Settings,
    sinks: Sequence[InfluxSink | EmbeddedStore],
    telemetry: Telemetry,
    coverage: Coverage,
    last_states: LastStates,
) -> Journal:
    names = tuple(sink.name for sink in sinks)
    overflow = settings.influx.overflow_strategy
    if settings.journal.kind == "memory":
        return MemoryJournal(
            sinks=names,
            # What is in memory must leave room for the service itself.
            max_bytes=min(settings.journal.max_mb, settings.log.max_memory_mb // 4) * MEGABYTE,
            overflow=overflow,
            telemetry=telemetry,
        )
    return SqliteJournal(
        settings.journal.data_dir / "journal.db",
        sinks=names,
        max_bytes=settings.journal.max_mb * MEGABYTE,
        min_free_bytes=settings.journal.min_free_mb * MEGABYTE,
        overflow=overflow,
        telemetry=telemetry,
        coverage=coverage,
        last_states=last_states,
    )


def _coverage(settings: Settings) -> Coverage:
    return Coverage(kept=settings.journal.kind == "sqlite", fills=settings.backfill.enabled)


def _encoder(settings: Settings) -> HomeiqEncoder:
    return HomeiqEncoder(
        settings.influx.measurement,
        instance=settings.home_assistant.instance_name,
        attribute_fields=settings.influx.attribute_fields,
    )


def _backfill_schema(settings: Settings) -> Schema:
    return Schema(
        # An encoder of its own: old names and classes would push today's out of the other's cache.
        encode=_encoder(settings).encode,
        parse=parse_line,
        identity_of=identity_of,
        last_state_of=last_state_of,
    )


def _past_entities(
    metadata: CatalogStore, embedded: EmbeddedStore | None
) -> Mapping[str, Callable[[], Awaitable[Collection[str]]]]:
    past: dict[str, Callable[[], Awaitable[Collection[str]]]] = {"catalog": metadata.entity_ids}
    if embedded is not None:
        past["embedded_store"] = embedded.entity_ids
    return past


def _retention_s(sink: InfluxSink | None) -> Callable[[], Awaitable[float | None]] | None:
    return None if sink is None else sink.retention_s


def _deliveries(
    settings: Settings,
    sinks: Sequence[InfluxSink | EmbeddedStore],
    journal: Journal,
    dead_letters: DeadLetters,
    telemetry: Telemetry,
) -> tuple[Delivery, ...]:
    return tuple(
        Delivery(
            sink=sink,
            journal=journal,
            dead_letters=dead_letters,
            breaker=_breaker(sink.name, settings),
            backoff=Backoff(max_s=_DELIVERY_MAX_WAIT_S),
            telemetry=telemetry,
            batch_points=settings.batch.size,
            batch_timeout_s=settings.batch.timeout_s,
            max_batch_points=max(settings.influx.max_batch_points, settings.batch.size),
            process=None if isinstance(sink, EmbeddedStore) else sink.process,
            retention_s=None if isinstance(sink, EmbeddedStore) else sink.retention_s,
        )
        for sink in sinks
    )


class Container(containers.DeclarativeContainer):
    """Singletons of one process; constructors only assign, the lifespan opens and closes."""

    settings = providers.Dependency(instance_of=Settings)

    registry = providers.Singleton(CollectorRegistry)
    telemetry = providers.Singleton(Telemetry, registry)
    supervisor = providers.Singleton(
        Supervisor, grace_s=settings.provided.resilience.shutdown_timeout_s
    )

    influx_sink = providers.Singleton(_influx_sink, settings)
    embedded_store = providers.Singleton(_embedded_store, settings)
    sinks = providers.Singleton(_sinks, influx_sink, embedded_store)
    dead_letters = providers.Singleton(
        DeadLetters, settings.provided.journal.data_dir.joinpath.call("dead_letters.db")
    )
    coverage = providers.Singleton(_coverage, settings)
    last_states = providers.Singleton(LastStates)
    journal = providers.Singleton(_journal, settings, sinks, telemetry, coverage, last_states)
    deliveries = providers.Singleton(_deliveries, settings, sinks, journal, dead_letters, telemetry)
    intake = providers.Singleton(
        Batcher,
        journal,
        telemetry=telemetry,
        coverage=coverage,
        commit_interval_s=settings.provided.journal.commit_interval_s,
        max_pending_points=settings.provided.influx.max_pending_points,
        overflow=settings.provided.influx.overflow_strategy,
    )

    hub = providers.Singleton(Hub)
    catalog = providers.Singleton(Catalog)
    source = providers.Singleton(_source, settings, telemetry)
    normalizer = providers.Singleton(Normalizer, catalog.provided.placements)
    metadata = providers.Singleton(_metadata, settings, catalog, normalizer)
    data_api = providers.Singleton(_data_api, settings)
    device_history = providers.Singleton(_device_history, settings, catalog, journal)
    discovery = providers.Singleton(
        Discovery,
        ask=source.provided.commands,
        catalog=catalog,
        listeners=providers.Callable(_listeners, metadata, data_api, device_history),
        backoff=providers.Factory(Backoff, max_s=_DISCOVERY_MAX_WAIT_S),
        interval_s=settings.provided.discovery.refresh_interval_s,
    )
    encoder = providers.Singleton(_encoder, settings)
    entity_filter = providers.Singleton(_entity_filter, settings)
    transforms = providers.Singleton(_transforms, settings, telemetry)
    pipeline = providers.Singleton(
        Pipeline,
        discovery=discovery,
        normalizer=normalizer,
        encoder=encoder,
        intake=intake,
        coverage=coverage,
        last_states=last_states,
        hub=hub,
        telemetry=telemetry,
        transforms=transforms,
        entity_filter=entity_filter,
        filter_fanout=settings.provided.filter.fanout,
        hold_events=settings.provided.influx.max_pending_points,
    )
    backfill = providers.Singleton(
        Backfill,
        commands=source.provided.commands,
        caught_up=source.provided.caught_up,
        streaming=pipeline.provided.streaming,
        is_running=providers.Factory(partial, _is_running, source),
        missing_component=providers.Factory(partial, _missing_component, source),
        coverage=coverage,
        last_states=last_states,
        journal=journal,
        intake=intake,
        schema=providers.Singleton(_backfill_schema, settings),
        placements=catalog.provided.placements,
        names=normalizer.provided.last_names,
        keep=pipeline.provided.kept,
        telemetry=telemetry,
        backoffs=providers.Object(partial(Backoff, max_s=_DISCOVERY_MAX_WAIT_S)),
        max_hours=settings.provided.backfill.max_hours,
        points_per_s=settings.provided.backfill.points_per_s,
        commit_interval_s=settings.provided.backfill.commit_interval_s,
        renames=catalog.provided.renames,
        retention_s=providers.Singleton(_retention_s, influx_sink),
        past=providers.Singleton(_past_entities, metadata, embedded_store),
    )
    observer = providers.Singleton(
        HealthCollector,
        source=source,
        pipeline=pipeline,
        backfill=backfill,
        intake=intake,
        journal=journal,
        deliveries=deliveries,
        discovery=discovery,
        data_api=data_api,
        entity_filter=entity_filter,
        dead_letters=dead_letters,
        local_files=providers.List(dead_letters, metadata, embedded_store),
        hub=hub,
        telemetry=telemetry,
        supervisor=supervisor,
        memory_limit_mb=settings.provided.log.max_memory_mb,
    )
