"""`python -m app run`: the service with its HTTP server, until a signal or a failure ends it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import resource
import signal
import socket
from collections.abc import Callable, Sequence

from app.api.connections import ConnectionLimits, Connections
from app.api.server import Server
from app.api.setup_access import SetupLink
from app.commands.command_line import FAILED, OK
from app.container import Container
from app.health import SinkStatus
from app.main import (
    ENV_FILE,
    configure_logs,
    create_app,
    create_setup_app,
    log_setup,
    running,
)
from app.runtime.errors import SettingsError
from app.runtime.restart import Restart, inherited_listener
from app.runtime.sqlite import owned_folder
from app.settings import Settings, load_for_setup, load_settings
from app.settings_store import SettingsStore

_MAX_DESCRIPTORS = 65_536

logger = logging.getLogger(__name__)


async def run(restart: Restart) -> int:
    """Run the service, or its set-up, with the settings there are; return the exit status.

    With status 0 and `restart` requested, the caller starts the process again.
    """
    for_setup = load_for_setup(ENV_FILE)
    chosen = for_setup or load_settings(ENV_FILE)
    configure_logs(chosen, env_file=ENV_FILE)
    host, port = chosen.serving.host, chosen.serving.port
    restart.bound_for = f"{host} {port}"
    listen = inherited_listener(bound_for=restart.bound_for) or bound(host, [port])
    restart.listen = listen
    if for_setup is not None:
        return await serve_setup(chosen, listen=listen, restart=restart)
    return await serve(chosen, listen=listen, restart=restart)


async def serve(
    chosen: Settings,
    *,
    listen: socket.socket,
    restart: Restart | None = None,
    started: Callable[[str], None] = lambda _: None,
    stopped: Callable[[Sequence[SinkStatus]], None] = lambda _: None,
) -> int:
    """Run the service until SIGTERM, Ctrl-C or a failure, and return the exit status.

    Args:
        chosen: the settings.
        listen: the bound socket of the HTTP server.
        restart: restarts the service with changed settings; without it they cannot be changed.
        started: called with the service's address once it listens.
        stopped: called with the final state of each sink once everything is closed.
    """
    container = Container(settings=chosen)
    supervisor = container.supervisor()
    connections = _connections(chosen)
    store = SettingsStore(ENV_FILE, restart=restart.request) if restart else None

    def on_started() -> None:
        address = _address(listen)
        logger.info("Listening on %s", address)
        started(address)

    server = Server(
        create_app(container, connections=connections, store=store),
        connections,
        on_started=on_started,
    )

    def stop() -> None:
        # Reading stops at the signal, not after the last open request was answered.
        supervisor.begin_stop()
        supervisor.cancel("source")
        # The other half of the time is for points that were read and are not delivered yet.
        server.config.timeout_graceful_shutdown = max(1, int(supervisor.remaining_s / 2))
        server.force_exit = server.should_exit
        server.should_exit = True

    _stop_at_signals(stop, restart)
    async with running(container):
        # Objects created during the start live until the end. Without this, every full collection
        # scans them for a tenth of a second without reading an event (benchmarks/discovery.py).
        gc.freeze()
        await server.serve(sockets=[listen])
    sinks = container.observer().snapshot().sinks
    logger.info("Stopped: %s", remaining(sinks, is_durable=chosen.journal.kind != "memory"))
    stopped(sinks)
    for name, why in supervisor.failures.items():
        logger.critical("Stopped with status %d: the %s loop ended: %s", FAILED, name, why)
    return FAILED if supervisor.failures else OK


async def serve_setup(chosen: Settings, *, listen: socket.socket, restart: Restart) -> int:
    """Serve the set-up until it is done, or until SIGTERM or Ctrl-C."""
    connections = _connections(chosen)
    store = SettingsStore(ENV_FILE, restart=restart.request, is_setup=True)
    link = SetupLink()

    def on_started() -> None:
        logger.info("Listening on %s", _address(listen))
        log_setup(link, port=listen.getsockname()[1])

    app = create_setup_app(chosen, store=store, link=link)
    server = Server(app, connections, on_started=on_started)

    def stop() -> None:
        server.config.timeout_graceful_shutdown = 1
        server.force_exit = server.should_exit
        server.should_exit = True

    _stop_at_signals(stop, restart)
    with owned_folder(chosen.journal.data_dir):
        await server.serve(sockets=[listen])
    return OK


def _connections(chosen: Settings) -> Connections:
    limits = ConnectionLimits.within(
        _raise_descriptor_limit(), trusted_proxies=chosen.serving.proxies
    )
    return Connections(limits)


def _address(listen: socket.socket) -> str:
    host, port = listen.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _stop_at_signals(stop: Callable[[], None], restart: Restart | None) -> None:
    """Call `stop` at SIGTERM and Ctrl-C, which end a restart, and at a request to restart."""

    def end() -> None:
        if restart is not None:
            restart.cancel()
        stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    if restart is not None:
        restart.stop = stop


def remaining(sinks: Sequence[SinkStatus], *, is_durable: bool) -> str:
    """Return what the sinks have not received, as the rest of a sentence."""
    waiting = [f"{sink.held:,} points for {sink.name}" for sink in sinks if sink.held]
    if not waiting:
        return "every point is delivered"
    if not is_durable:
        return f"{' and '.join(waiting)} are lost, because JOURNAL=memory keeps nothing"
    return f"{' and '.join(waiting)} are in the journal; the next start sends them"


def bound(host: str, ports: Sequence[int]) -> socket.socket:
    """Return a socket that listens on the first free one of these ports.

    Raises:
        SettingsError: there is none.
    """
    refusal: OSError | TypeError | None = None
    for port in ports:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        candidate = socket.socket(family, socket.SOCK_STREAM)
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((host, port))
            candidate.listen()  # until then, another program may bind the port as well
        except (OSError, TypeError) as exc:  # the latter for an impossible host name
            candidate.close()
            refusal = exc
        else:
            return candidate
    assert refusal is not None
    raise _refused(refusal, host=host, port=ports[-1])


def _refused(exc: OSError | TypeError, *, host: str, port: int) -> SettingsError:
    why = exc.strerror if isinstance(exc, OSError) else "not a host name"
    if isinstance(exc, OSError) and exc.errno in {errno.EADDRINUSE, errno.EACCES}:
        return SettingsError(
            f"WEBSOCKET_INGESTION_PORT: cannot listen on {host}:{port} ({why})."
            " Stop the program that listens there, or set another port"
        )
    return SettingsError(
        f"WEBSOCKET_INGESTION_HOST: cannot listen on {host} ({why})."
        " Set an address of this machine, or 0.0.0.0 for all"
    )


def _raise_descriptor_limit() -> int:
    """Raise the limit of open files as far as this process may, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # A sandbox may forbid what the hard limit allows; the old limit then stays.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
