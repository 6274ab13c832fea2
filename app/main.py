"""The application: `uvicorn app.main:app` serves it from settings alone."""

from __future__ import annotations

import logging
import os
import platform
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from functools import cache, partial
from importlib import import_module
from multiprocessing import parent_process
from pathlib import Path

from fastapi import FastAPI

from app import __version__, settings
from app.api.access import AccessRules
from app.api.application import build_api
from app.api.clients import LOOPBACK
from app.api.connections import Connections
from app.api.dependencies import Components
from app.api.setup import Setup
from app.api.setup_access import SetupLink
from app.api.setup_application import build_setup_api
from app.api.throttle import Challenges
from app.container import Container
from app.model import MEGABYTE
from app.runtime.errors import SettingsError
from app.runtime.logging import configure
from app.runtime.restart import Restart
from app.runtime.sqlite import owned_folder
from app.settings import Settings
from app.settings_store import SettingsStore

ENV_FILE = Path(".env")

_MOST_CHALLENGES = 100
"""How many clients of /ws may be unauthenticated at once; at most a quarter of all."""
_SWITCH_INTERVAL_S = 0.0002

logger = logging.getLogger(__name__)


def create_app(
    container: Container,
    *,
    connections: Connections | None = None,
    store: SettingsStore | None = None,
) -> FastAPI:
    """Return the application of a container; its lifespan runs the whole service.

    `connections` counts the connections of clients; only `python -m app` limits them. `store`
    changes settings; by default it cannot.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with running(container):
            yield

    connections = Connections() if connections is None else connections  # an empty one is false
    components = _components(container, connections, store or SettingsStore())
    return build_api(components, lifespan=lifespan)


def create_setup_app(chosen: Settings, *, store: SettingsStore, link: SetupLink) -> FastAPI:
    """Return the application of the set-up mode; its lifespan holds DATA_DIR and logs the link."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with owned_folder(chosen.journal.data_dir):
            log_setup(link)
            yield

    return build_setup_api(
        _lazy_setup(store), store=store, access=_access_rules(chosen), link=link, lifespan=lifespan
    )


def log_setup(link: SetupLink, *, port: int | None = None) -> None:
    """Log how to open the set-up; `port` is None where the server has not said it."""
    logger.warning(
        "Home Assistant is not set, so nothing is captured yet. Set it up in a browser on this"
        " machine at http://127.0.0.1:%(port)s/setup, or once from another one at"
        " http://ADDRESS:%(port)s/setup?key=%(key)s with the address of this machine",
        {"port": port or "PORT", "key": link.key},
    )


@asynccontextmanager
async def running(container: Container) -> AsyncIterator[None]:
    """Run the service: start from the sinks, stop from the source, so that no point is orphaned.

    Raises:
        StorageLocked: another process works in the same DATA_DIR.
        StorageError: a local database cannot be opened.
    """
    supervisor = container.supervisor()
    embedded, deliveries = container.embedded_store(), container.deliveries()
    _log_unused_options(container)
    batcher, pipeline = container.batcher(), container.pipeline()
    journal, source, backfill = container.journal(), container.source(), container.backfill()
    discovery, data_api = container.discovery(), container.data_api()
    entity_filter, health_report = container.entity_filter(), container.health_report()

    def finish_deliveries() -> None:
        for delivery in deliveries:
            delivery.finish()

    async with AsyncExitStack() as stack:
        stack.enter_context(_threads_in_turn())
        stack.enter_context(owned_folder(container.settings().journal.data_dir))
        await stack.enter_async_context(container.dead_letters())
        await stack.enter_async_context(container.metadata())
        for sink in container.sinks():
            await stack.enter_async_context(sink)
        await stack.enter_async_context(journal)
        keepers = {"journal": journal.run, "memory": container.observer().watch}
        if embedded is not None:
            keepers["retention"] = embedded.run
        if entity_filter is not None and container.settings().filter.config is None:
            keepers["filter"] = entity_filter.run
        if data_api is not None:
            keepers["data_api"] = data_api.run
        if health_report is not None:
            keepers["health_report"] = health_report.run
        await stack.enter_async_context(supervisor.running(keepers))
        await stack.enter_async_context(
            supervisor.running(
                {f"deliver[{delivery.name}]": delivery.run for delivery in deliveries},
                finish=finish_deliveries,
            )
        )
        await stack.enter_async_context(
            supervisor.running({"batcher": batcher.run}, finish=batcher.close)
        )
        stack.callback(pipeline.finish)
        await container.journal_reader().recall()
        await stack.enter_async_context(
            supervisor.running(
                {
                    "discovery": partial(discovery.run, pipeline.placed),
                    "backfill": backfill.run,
                }
            )
        )
        await stack.enter_async_context(
            supervisor.running({"source": partial(source.run, pipeline)})
        )
        yield


@contextmanager
def _threads_in_turn() -> Iterator[None]:
    """Shorten the interpreter's switch interval, so that commits keep up while the loop is busy.

    A commit's thread needs the interpreter again after every statement and every compressed
    piece. With Python's default of 5 ms a commit at full speed takes three times as long
    (benchmarks/README.md).
    """
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before_s)


def _log_unused_options(container: Container) -> None:
    if container.settings().influx.is_home_assistant_schema:
        _, unused = container.schema_options()
        if unused:
            logger.info(
                "Not used of INFLUXDB_SCHEMA_CONFIG, because INFLUXDB_URL and others say it: %s",
                ", ".join(unused),
            )


def configure_logs(chosen: Settings, *, env_file: Path | None = None) -> None:
    """Configure logging, and log a warning for each setting that has no effect.

    Raises:
        SettingsError: the log file cannot be written.
    """
    try:
        configure(
            level=chosen.log.level,
            log_format=chosen.log.format,
            output=chosen.log.output,
            file=chosen.log_file,
            max_bytes=chosen.log.max_mb * MEGABYTE,
            backups=chosen.log.backups,
        )
    except OSError as exc:
        raise SettingsError(
            f"LOG_FILE or DATA_DIR: cannot write the log file {chosen.log_file} ({exc.strerror})."
            " Set a file that can be written, or LOG_OUTPUT=stdout"
        ) from exc
    for warning in settings.warnings(env_file):
        logger.warning("%s", warning)
    key = chosen.serving.api_key
    if key is not None and len(key.get_secret_value()) < settings.SHORTEST_GOOD_KEY:
        logger.warning(
            "API_KEY has fewer than %d characters and can be guessed", settings.SHORTEST_GOOD_KEY
        )


def _lazy_setup(store: SettingsStore) -> Callable[[], Setup]:
    """Return a function that makes the set-up when it is first used: HTTP clients load slowly."""

    @cache
    def setup() -> Setup:
        made: Setup = import_module("app.setup.setup").BrowserSetup(
            store, supervisor_token=os.environ.get("SUPERVISOR_TOKEN")
        )
        return made

    return setup


def _access_rules(chosen: Settings) -> AccessRules:
    serving = chosen.serving
    return AccessRules(
        api_key=serving.api_key.get_secret_value() if serving.api_key else None,
        trusted_peers=serving.trusted_peers,
        cors_origins=serving.cors_origins,
        ingress_peers=serving.ingress_peers,
        trusted_proxies=serving.trusted_proxies,
    )


def _components(container: Container, connections: Connections, store: SettingsStore) -> Components:
    serving = container.settings().serving
    return Components(
        snapshot=container.observer().snapshot,
        hub=container.hub(),
        telemetry=container.telemetry(),
        registry=container.registry(),
        event_store=container.embedded_store(),
        dead_letters=container.dead_letters(),
        coverage=container.coverage(),
        unknown_entities=container.backfill().unknown_entities,
        access=_access_rules(container.settings()),
        store=store,
        setup=_lazy_setup(store),
        challenges=Challenges(
            total=min(_MOST_CHALLENGES, connections.limits.total // 4),
            shared=(*LOOPBACK, *serving.proxies),
        ),
        connections=connections,
        catalog=container.catalog(),
        metadata=container.metadata(),
        discovery=container.discovery(),
        entity_filter=container.entity_filter(),
        takes_rows=container.settings().discovery.data_api_url is None,
        diagnostics=partial(_diagnostics, container.settings()),
        append=container.append(),
    )


def _diagnostics(chosen: Settings) -> Mapping[str, object]:
    return {
        "version": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "settings": chosen.model_dump(mode="json"),
    }


def __getattr__(name: str) -> FastAPI:
    """Build `app` from the environment on first access."""
    if name != "app":
        raise AttributeError(name)
    try:
        app = _app_of_environment()
    except SettingsError as exc:
        sys.stderr.write(f"websocket-ingestion: {exc}\n")
        raise SystemExit(2) from None
    globals()["app"] = app
    return app


def _app_of_environment() -> FastAPI:
    restart = Restart()
    for_setup = settings.load_for_setup(ENV_FILE)
    chosen = for_setup or settings.load_settings(ENV_FILE)
    configure_logs(chosen, env_file=ENV_FILE)
    # A child of uvicorn's --reload or --workers cannot execute itself again.
    request = restart.request if parent_process() is None else None
    store = SettingsStore(ENV_FILE, restart=request, is_setup=for_setup is not None)
    if for_setup is None:
        app = create_app(Container(settings=chosen), store=store)
    else:
        app = create_setup_app(chosen, store=store, link=SetupLink())
    app.router.lifespan_context = _restarting(app.router.lifespan_context, restart)
    return app


def _restarting(
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[object]], restart: Restart
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Return the lifespan that replaces the process at its end, if that is requested."""

    @asynccontextmanager
    async def restarting(app: FastAPI) -> AsyncIterator[None]:
        async with lifespan(app):
            yield
        if restart.is_requested:
            restart.replace_process()

    return restarting
