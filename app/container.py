"""The object graph: what is built from which settings; nothing is opened here."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

from dependency_injector import containers, providers
from prometheus_client import CollectorRegistry

from app.backfill.backfill import Backfill
from app.backfill.coverage import Coverage
from app.backfill.filler import GapFiller
from app.backfill.journal_reader import JournalReader
from app.backfill.last_states import LastStates
from app.backfill.writer import BackfillWriter
from app.discovery.catalog import Catalog
from app.discovery.device_history import DeviceHistory
from app.discovery.refresh import Discovery
from app.discovery.store import CatalogStore
from app.fanout.hub import Hub
from app.health_collector import HealthCollector
from app.health_report.reporter import HealthReport
from app.health_report.sensors import is_health_sensor
from app.homeassistant.connection import HomeAssistantSource
from app.homeassistant.endpoint import Endpoint
from app.homeassistant.reconnect import ReconnectPolicy
from app.homeassistant.recorder import open_recorder
from app.journal.batcher import Batcher
from app.journal.journal import SqliteJournal
from app.model import Lines
from app.normalize.changes import Normalizer
from app.normalize.filter import load_filter
from app.normalize.transforms import Transforms, load_transforms
from app.pipeline import Encoder, Pipeline
from app.runtime.metrics import Telemetry
from app.runtime.retry import Backoff, Breaker
from app.runtime.supervisor import Supervisor
from app.schema.encodings import TwoEncodings, is_for_database_only
from app.schema.home_assistant import HomeAssistantEncoder
from app.schema.home_assistant_config import load_options
from app.schema.homeiq import HomeiqEncoder, identity_of, last_state_of
from app.schema.line_protocol import parse_line
from app.settings import Settings
from app.sinks.dead_letters import DeadLetters
from app.sinks.delivery import Delivery
from app.sinks.embedded import EmbeddedStore

if TYPE_CHECKING:
    from app.discovery.data_api import DataApi
    from app.sinks.influxdb.sink import InfluxSink

T = TypeVar("T")

_DELIVERY_MAX_WAIT_S = 60.0
_DISCOVERY_MAX_WAIT_S = 300.0
_HEALTH_WAIT_S, _HEALTH_MAX_WAIT_S = 30.0, 60.0
_NONE: providers.Provider[None] = providers.Object(None)


def _lazy(module: str, name: str) -> Callable[..., Any]:
    """Return a constructor that imports its class when it is called: HTTP clients load slowly."""

    def construct(*args: object, **options: object) -> Any:
        return getattr(import_module(module), name)(*args, **options)

    return construct


def _if(
    condition: providers.Provider[Any],
    provider: providers.Provider[T],
    otherwise: providers.Provider[Any] = _NONE,
) -> providers.Provider[T | None]:
    switch = providers.Callable(lambda value: "on" if value else "off", condition)
    return providers.Selector(switch, on=provider, off=otherwise)


def _present(*parts: T | None) -> tuple[T, ...]:
    return tuple(part for part in parts if part is not None)


async def _append(journal: SqliteJournal, lines: Lines) -> None:
    await journal.append(lines, received_at=time.time())


class Container(containers.DeclarativeContainer):
    """Singletons of one process; constructors only assign, the lifespan opens and closes."""

    settings = providers.Dependency(instance_of=Settings)

    registry = providers.Singleton(CollectorRegistry)
    telemetry = providers.Singleton(Telemetry, registry)
    supervisor = providers.Singleton(
        Supervisor, grace_s=settings.provided.resilience.shutdown_timeout_s
    )

    _journal_settings = settings.provided.journal
    _influx_settings = settings.provided.influx
    _home_assistant_settings = settings.provided.home_assistant
    _breaker = providers.Factory(
        Breaker,
        threshold=settings.provided.resilience.breaker_threshold,
        reset_s=settings.provided.resilience.breaker_reset_s,
    )

    influx_sink: providers.Provider[InfluxSink | None] = _if(
        _influx_settings.url,
        providers.Singleton(
            _lazy("app.sinks.influxdb.sink", "InfluxSink"),
            _influx_settings.url,
            token=_influx_settings.token.get_secret_value.call(),
            org=_influx_settings.org,
            bucket=_influx_settings.bucket,
            timeout_s=_influx_settings.timeout_s,
            api=_influx_settings.api,
            username=_influx_settings.username,
            password=_influx_settings.password.get_secret_value.call(),
            ssl_verify=_influx_settings.ssl_verify,
            headers=_influx_settings.headers_by_name,
            client_cert=_influx_settings.client_cert,
            client_key=_influx_settings.client_key,
            flush_s=_influx_settings.flush_s,
        ),
    )
    embedded_store = _if(
        settings.provided.embedded_store,
        providers.Singleton(
            EmbeddedStore,
            _journal_settings.data_dir.joinpath.call("events.db"),
            parse=parse_line,
            retention_days=settings.provided.embedded.retention_days,
        ),
    )
    sinks = providers.Callable(_present, influx_sink, embedded_store)
    _sink_names = providers.Callable(lambda sinks: [sink.name for sink in sinks], sinks)
    dead_letters = providers.Singleton(
        DeadLetters,
        _journal_settings.data_dir.joinpath.call("dead_letters.db"),
        is_for_database_only=is_for_database_only,
    )
    coverage = providers.Singleton(
        Coverage,
        is_persistent=_journal_settings.is_on_disk,
        fills=settings.provided.backfill.enabled,
    )
    last_states = providers.Singleton(LastStates)
    journal: providers.Provider[SqliteJournal] = providers.Selector(
        _journal_settings.kind,
        sqlite=providers.Singleton(
            SqliteJournal,
            _journal_settings.data_dir.joinpath.call("journal.db"),
            sinks=_sink_names,
            max_bytes=_journal_settings.max_bytes,
            min_free_bytes=_journal_settings.min_free_bytes,
            overflow=_influx_settings.overflow_strategy,
            telemetry=telemetry,
            coverage=coverage,
            last_states=last_states,
        ),
        memory=providers.Singleton(
            SqliteJournal,
            None,
            sinks=_sink_names,
            max_bytes=settings.provided.memory_journal_bytes,
            overflow=_influx_settings.overflow_strategy,
            telemetry=telemetry,
            coverage=providers.Factory(Coverage, compare_s=-1.0),  # retains no acked points
        ),
    )
    append = providers.Factory(partial, _append, journal)
    _delivery = providers.Factory(
        Delivery,
        journal=journal,
        dead_letters=dead_letters,
        backoff=providers.Factory(Backoff, max_s=_DELIVERY_MAX_WAIT_S),
        telemetry=telemetry,
        batch_points=settings.provided.batch.size,
        batch_timeout_s=settings.provided.batch.timeout_s,
        max_batch_points=providers.Callable(
            max, _influx_settings.max_batch_points, settings.provided.batch.size
        ),
    )
    deliveries = providers.Singleton(
        _present,
        _if(
            influx_sink,
            providers.Factory(
                _delivery,
                sink=influx_sink,
                breaker=providers.Factory(_breaker, influx_sink.provided.name),
                process=influx_sink.provided.process,
                retention_s=influx_sink.provided.retention_s,
            ),
        ),
        _if(
            embedded_store,
            providers.Factory(
                _delivery,
                sink=embedded_store,
                breaker=providers.Factory(_breaker, embedded_store.provided.name),
            ),
        ),
    )
    batcher = providers.Singleton(
        Batcher,
        journal,
        telemetry=telemetry,
        coverage=coverage,
        commit_interval_s=_journal_settings.commit_interval_s,
        max_pending_points=_influx_settings.max_pending_points,
        overflow=_influx_settings.overflow_strategy,
    )

    hub = providers.Singleton(Hub)
    catalog = providers.Singleton(Catalog)
    endpoint = providers.Singleton(
        Endpoint,
        _home_assistant_settings.url,
        token=_home_assistant_settings.token.get_secret_value.call(),
        ssl_verify=_home_assistant_settings.ssl_verify,
        headers=_home_assistant_settings.headers_by_name,
        client_cert=_home_assistant_settings.client_cert,
        client_key=_home_assistant_settings.client_key,
    )
    reconnect = providers.Singleton(
        ReconnectPolicy,
        backoff=providers.Factory(Backoff, max_s=settings.provided.resilience.max_retry_delay_s),
        breaker=providers.Factory(_breaker, "Home Assistant"),
        max_retries=settings.provided.resilience.max_retries,
    )
    source = providers.Singleton(
        HomeAssistantSource, endpoint, reconnect=reconnect, telemetry=telemetry
    )
    normalizer = providers.Singleton(Normalizer, catalog.provided.placements)
    metadata = providers.Singleton(
        CatalogStore,
        _journal_settings.data_dir.joinpath.call("metadata.db"),
        catalog=catalog,
        source=settings.provided.source_name,
        names=normalizer,
    )
    data_api: providers.Provider[DataApi | None] = _if(
        settings.provided.discovery.data_api_url,
        providers.Singleton(
            _lazy("app.discovery.data_api", "DataApi"),
            settings.provided.discovery.data_api_url,
            key=settings.provided.discovery.data_api_key.get_secret_value.call(),
            source=settings.provided.source_name,
            backoff=providers.Factory(Backoff, max_s=_DISCOVERY_MAX_WAIT_S),
            breaker=providers.Factory(_breaker, "data API"),
        ),
    )
    device_history = _if(
        settings.provided.discovery.store_device_history,
        providers.Singleton(
            DeviceHistory,
            append,
            catalog=catalog,
            instance=_home_assistant_settings.instance_name,
        ),
    )
    discovery = providers.Singleton(
        Discovery,
        commands=source.provided.commands,
        catalog=catalog,
        listeners=providers.Callable(_present, metadata, data_api, device_history),
        backoff=providers.Factory(Backoff, max_s=_DISCOVERY_MAX_WAIT_S),
        interval_s=settings.provided.discovery.refresh_interval_s,
        first_seen_ns=last_states.provided.first_seen_ns,
    )
    schema_options = providers.Singleton(
        load_options, _influx_settings.schema_config, text=_influx_settings.client
    )
    _record_encoder = providers.Factory(
        HomeiqEncoder,
        _influx_settings.measurement,
        instance=_home_assistant_settings.instance_name,
        attribute_fields=_influx_settings.attribute_fields,
    )
    encoder: providers.Provider[Encoder | None] = _if(
        _influx_settings.is_home_assistant_schema,
        providers.Factory(
            TwoEncodings,
            _record_encoder,
            providers.Factory(
                HomeAssistantEncoder,
                schema_options.provided[0].with_instance.call(
                    _home_assistant_settings.instance_name
                ),
                text=_influx_settings.client,
            ),
            corrected=telemetry.provided.lines_corrected,
        ),
        otherwise=_record_encoder,
    )
    entity_filter = providers.Singleton(
        load_filter, settings.provided.filter.config, settings.provided.filter.config_file
    )
    _functions = providers.Singleton(
        load_transforms,
        settings.provided.extensions.transforms,
        shared_path=settings.provided.extensions.shared_path,
    )
    transforms = _if(
        _functions,
        providers.Singleton(Transforms, _functions, telemetry=telemetry),
    )
    pipeline = providers.Singleton(
        Pipeline,
        discovery=discovery,
        normalizer=normalizer,
        encoder=encoder,
        batcher=batcher,
        coverage=coverage,
        last_states=last_states,
        hub=hub,
        telemetry=telemetry,
        transforms=transforms,
        entity_filter=entity_filter,
        filter_fanout=settings.provided.filter.fanout,
        is_left_out=_if(settings.provided.health_report.is_on, providers.Object(is_health_sensor)),
        hold_events=settings.provided.influx.max_pending_points,
    )
    journal_reader = providers.Singleton(
        JournalReader,
        journal,
        batcher=batcher,
        caught_up=source.provided.caught_up,
        coverage=coverage,
        last_states=last_states,
        parse=parse_line,
        identity_of=identity_of,
        last_state_of=last_state_of,
    )
    _gap_filler = providers.Factory(
        GapFiller,
        coverage=coverage,
        last_states=last_states,
        journal=journal_reader,
        writer=providers.Factory(
            BackfillWriter,
            journal.provided.append,
            # An encoder of its own: old names and classes would evict current ones from the cache.
            encode=encoder.provided.encode,
            last_states=last_states,
            telemetry=telemetry,
            points_per_s=settings.provided.backfill.points_per_s,
        ),
        caught_up=source.provided.caught_up,
        select=pipeline.provided.selected,
        placements=catalog.provided.placements,
        names=normalizer.provided.last_names,
        renames=catalog.provided.renames,
        stores=_if(
            embedded_store,
            providers.Dict(
                catalog=metadata.provided.entity_ids,
                embedded_store=embedded_store.provided.entity_ids,
            ),
            otherwise=providers.Dict(catalog=metadata.provided.entity_ids),
        ),
        retention_s=_if(influx_sink, influx_sink.provided.retention_s),
        max_hours=settings.provided.backfill.max_hours,
    )
    backfill = providers.Singleton(
        Backfill,
        filler=_gap_filler,
        recorder=providers.Factory(
            partial,
            open_recorder,
            source.provided.commands,
            commit_interval_s=settings.provided.backfill.commit_interval_s,
        ),
        streaming=pipeline.provided.streaming,
        is_running=providers.Factory(partial, attrgetter("is_running"), source),
        missing_component=providers.Factory(partial, attrgetter("missing_component"), source),
        coverage=coverage,
        telemetry=telemetry,
        backoffs=providers.Object(partial(Backoff, max_s=_DISCOVERY_MAX_WAIT_S)),
    )
    observer = providers.Singleton(
        HealthCollector,
        source=source,
        pipeline=pipeline,
        backfill=backfill,
        batcher=batcher,
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
    _report_settings = settings.provided.health_report
    _rest_api = providers.Singleton(
        _lazy("app.health_report.rest", "RestApi"),
        _home_assistant_settings.url,
        token=_home_assistant_settings.token.get_secret_value.call(),
        ssl_verify=_home_assistant_settings.ssl_verify,
        headers=_home_assistant_settings.headers_by_name,
        client_cert=_home_assistant_settings.client_cert,
        client_key=_home_assistant_settings.client_key,
    )
    health_report: providers.Provider[HealthReport | None] = _if(
        _report_settings.is_on,
        providers.Singleton(
            HealthReport,
            snapshot=observer.provided.snapshot,
            sensors=_if(
                _report_settings.by_mqtt,
                providers.Factory(
                    _lazy("app.health_report.mqtt", "MqttSensors"),
                    _report_settings.url,
                    username=_report_settings.username,
                    password=_report_settings.password.get_secret_value.call(),
                    ssl_verify=_report_settings.ssl_verify,
                    instance=_home_assistant_settings.instance_name,
                ),
                otherwise=providers.Factory(
                    _lazy("app.health_report.rest", "RestSensors"),
                    _rest_api,
                    instance=_home_assistant_settings.instance_name,
                ),
            ),
            notifications=providers.Factory(
                _lazy("app.health_report.rest", "RestNotifications"),
                _rest_api,
                instance=_home_assistant_settings.instance_name,
            ),
            backoffs=providers.Object(
                # The first wait is as long as the interval of reports: each connection begins
                # with all of them.
                partial(Backoff, first_s=_HEALTH_WAIT_S, max_s=_HEALTH_MAX_WAIT_S)
            ),
        ),
    )
