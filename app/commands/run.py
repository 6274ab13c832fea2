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
from app.commands.command_line import FAILED, OK
from app.container import Container
from app.health import SinkStatus
from app.main import ENV_FILE, configure_logs, create_app, running
from app.runtime.errors import SettingsError
from app.settings import Settings, load_settings

_MAX_DESCRIPTORS = 65_536

logger = logging.getLogger(__name__)


async def run() -> int:
    """Run the service with the settings of the environment and .env; return the exit status."""
    chosen = load_settings(ENV_FILE)
    configure_logs(chosen, env_file=ENV_FILE)
    return await serve(chosen, listen=bound(chosen.serving.host, [chosen.serving.port]))


async def serve(
    chosen: Settings,
    *,
    listen: socket.socket,
    started: Callable[[str], None] = lambda _: None,
    stopped: Callable[[Sequence[SinkStatus]], None] = lambda _: None,
) -> int:
    """Run the service until SIGTERM, Ctrl-C or a failure, and return the exit status.

    Args:
        chosen: the settings.
        listen: the bound socket of the HTTP server.
        started: called with the service's address once it listens.
        stopped: called with the final state of each sink once everything is closed.
    """
    container = Container(settings=chosen)
    supervisor = container.supervisor()
    limits = ConnectionLimits.within(
        _raise_descriptor_limit(), trusted_proxies=chosen.serving.proxies
    )
    connections = Connections(limits)

    def on_started() -> None:
        host, port = listen.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        logger.info("Listening on %s", address)
        started(address)

    server = Server(
        create_app(container, connections=connections), connections, on_started=on_started
    )

    def stop() -> None:
        # Reading stops at the signal, not after the last open request was answered.
        supervisor.begin_stop()
        supervisor.cancel("source")
        # The other half of the time is for points that were read and are not delivered yet.
        server.config.timeout_graceful_shutdown = max(1, int(supervisor.remaining_s / 2))
        server.force_exit = server.should_exit
        server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
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
