"""`python -m app run | demo | …`: owns the server, the signals and the exit status."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import gc
import logging
import os
import re
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from app import settings
from app.api.connections import ConnectionLimits, Connections
from app.api.server import Server
from app.commands import backfill, dead_letters, doctor
from app.commands.help_text import described
from app.container import Container
from app.main import ENV_FILE, configure_logs, create_app, running
from app.runtime.environment import cleaned
from app.runtime.errors import SettingsError, StorageError
from app.runtime.supervisor import Supervisor
from app.settings import Settings
from simulator.fake_home_assistant import FakeHomeAssistant
from simulator.house import DemoHouse

OK, FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130
"""Exit status: stopped as asked, a loop or a command failed, the settings or the folder cannot
be used, a command was ended by Ctrl-C."""

_RUN_HELP = described(
    "run the service with the settings of the environment and .env",
    does="""\
Connects to Home Assistant, makes every state change durable in DATA_DIR, writes it to InfluxDB
or the embedded store, and serves dashboard, API, /ws, /health and /metrics, until SIGTERM or
Ctrl-C. Home Assistant and the database may be away at the start: they are tried again for ever.""",
    needs="""\
HOME_ASSISTANT_URL and HOME_ASSISTANT_TOKEN; INFLUXDB_URL and its credentials for a database. The
environment wins over .env; .env.example has all settings. `python -m app doctor` checks them.""",
    examples="""\
python -m app run
HOME_ASSISTANT_URL=http://homeassistant.local:8123 HOME_ASSISTANT_TOKEN=… python -m app run""",
    statuses="""\
0  stopped as asked
1  a part of the service failed; the reason is the last log line
2  the settings or DATA_DIR cannot be used; one line says why""",
)
_DEMO_HELP = described(
    "run it against a simulated home, with the embedded store",
    does="""\
Plays a simulated home through Home Assistant's real protocol and runs the whole service on it:
nothing else is needed. It prints its addresses, keeps its data in data/demo, and goes on there
next time.""",
    needs="""\
Nothing. It ignores .env, and what the environment says of Home Assistant, InfluxDB and a data
API; it listens on WEBSOCKET_INGESTION_PORT, else on the first free port from 8001 on.""",
    examples="""\
python -m app demo
WEBSOCKET_INGESTION_PORT=9000 python -m app demo""",
    statuses="""\
0  stopped as asked
1  a part of the service failed; the reason is the last log line
2  the port or the folder cannot be used""",
)

_DEMO_DIR = Path("data/demo")
_DEMO_TOKEN = "demo-" + "0" * 32
_DEMO_IGNORES = ("HOME_ASSISTANT_", "HA_", "INFLUXDB_", "DATA_API_")
_DEMO_PORTS = range(8001, 8100)
_LAST_PORT = 65_535
_MAX_DESCRIPTORS = 65_536

logger = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Run the command of the command line and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m app",
        description="Every state change of Home Assistant, written durably to InfluxDB.",
        epilog="Each command has a page of its own: python -m app COMMAND --help",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", **_RUN_HELP)
    commands.add_parser("demo", **_DEMO_HELP)
    doctor.add_arguments(commands.add_parser("doctor", **doctor.HELP))
    backfill.add_arguments(commands.add_parser("backfill", **backfill.HELP))
    dead_letters.add_arguments(commands.add_parser("dead-letters", **dead_letters.HELP))
    parsed = parser.parse_args(arguments)
    try:
        return asyncio.run(_do(parsed))
    except (SettingsError, StorageError) as exc:
        sys.stderr.write(f"websocket-ingestion: {exc}\n")
        return UNUSABLE
    except KeyboardInterrupt:
        return INTERRUPTED


async def _do(parsed: argparse.Namespace) -> int:
    match parsed.command:
        case "run":
            return await _run()
        case "demo":
            return await _demo()
        case "doctor":
            # What it asks with takes a third of the time that importing this program takes.
            from app.commands.doctor import command  # noqa: PLC0415

            # A name server that is away would hold the process for longer than all the checks.
            os.environ.setdefault("RES_OPTIONS", "timeout:2 attempts:2")
            verdict = await command.run(ENV_FILE, sys.stdout, as_json=parsed.json)
            return {"failed": FAILED, "unusable": UNUSABLE}.get(verdict, OK)
        case "backfill":
            chosen = settings.load_settings(ENV_FILE)
            return OK if await backfill.run(parsed, chosen, sys.stdout) else FAILED
        case _:
            await dead_letters.run(parsed, settings.load_settings(ENV_FILE), sys.stdout.buffer)
            return OK


async def _run() -> int:
    chosen = settings.load_settings(ENV_FILE)
    configure_logs(chosen, env_file=ENV_FILE)
    return await _serve(chosen, listen=_listen(chosen.serving.host, [chosen.serving.port]))


async def _demo() -> int:
    listen = _listen("127.0.0.1", _demo_ports())
    house = DemoHouse(_DEMO_DIR / "house")
    home_assistant = FakeHomeAssistant(house, token=_DEMO_TOKEN)
    with _environment_of_the_demo():
        async with home_assistant:
            os.environ["HOME_ASSISTANT_URL"] = home_assistant.url
            chosen = settings.load_settings(None)
            configure_logs(chosen)
            household = Supervisor(grace_s=1.0)
            async with household.running({"house": lambda: house.run(home_assistant.fire)}):
                return await _serve(chosen, listen=listen, started=_announce)


async def _serve(
    chosen: Settings,
    *,
    listen: socket.socket,
    started: Callable[[str], None] | None = None,
) -> int:
    container = Container(settings=chosen)
    supervisor = container.supervisor()
    limits = ConnectionLimits.within(
        _raise_descriptor_limit(), trusted_proxies=chosen.serving.trusted_proxies
    )
    connections = Connections(limits)
    server = Server(
        create_app(container, connections=connections),
        connections,
        on_started=lambda: _say_where(listen, started),
    )

    def stop() -> None:
        # Reading stops at the signal, not after the last open request was answered.
        supervisor.begin_stop()
        supervisor.cancel("source")
        # The other half is for what was read and is not delivered yet.
        server.config.timeout_graceful_shutdown = max(1, int(supervisor.remaining_s / 2))
        server.force_exit = server.should_exit
        server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    async with running(container):
        # What starting made stays until the end: looking through it again and again costs a
        # tenth of a second each time, in which no event is read (benchmarks/discovery.py).
        gc.freeze()
        await server.serve(sockets=[listen])
    for name, why in supervisor.failures.items():
        logger.critical("Stopped with status %d: the %s loop ended: %s", FAILED, name, why)
    return FAILED if supervisor.failures else OK


def _raise_descriptor_limit() -> int:
    """Raise the limit of open files as far as this process may, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # A sandbox may forbid what the hard limit allows; the old limit is then obeyed.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def _listen(host: str, ports: Sequence[int]) -> socket.socket:
    refusal: OSError | TypeError | None = None
    for port in ports:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        candidate = socket.socket(family, socket.SOCK_STREAM)
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((host, port))
        except (OSError, TypeError) as exc:  # the latter for a name that no machine can have
            candidate.close()
            refusal = exc
        else:
            return candidate
    assert refusal is not None
    raise _refused(refusal, host=host, port=ports[-1])


def _refused(exc: OSError | TypeError, *, host: str, port: int) -> SettingsError:
    why = exc.strerror if isinstance(exc, OSError) else "not a name of a machine"
    if isinstance(exc, OSError) and exc.errno in {errno.EADDRINUSE, errno.EACCES}:
        return SettingsError(
            f"WEBSOCKET_INGESTION_PORT: cannot listen on {host}:{port} ({why})."
            " Stop what listens there, or set another port"
        )
    return SettingsError(
        f"WEBSOCKET_INGESTION_HOST: cannot listen on {host} ({why})."
        " Set an address of this machine, or 0.0.0.0 for all"
    )


def _say_where(listen: socket.socket, started: Callable[[str], None] | None) -> None:
    host, port = listen.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    logger.info("Listening on %s", address)
    if started is not None:
        started(address)


def _demo_ports() -> Sequence[int]:
    chosen = cleaned(os.environ.get("WEBSOCKET_INGESTION_PORT", ""))
    if not chosen:
        return _DEMO_PORTS
    if not re.fullmatch("[0-9]{1,5}", chosen) or int(chosen) > _LAST_PORT:
        raise SettingsError(
            f"WEBSOCKET_INGESTION_PORT: {chosen[:20]!r} is not a port number; set one up to"
            f" {_LAST_PORT}"
        )
    return [int(chosen)]


@contextlib.contextmanager
def _environment_of_the_demo() -> Iterator[None]:
    """Hide what the environment says of real neighbors; the demo has its own."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(_DEMO_IGNORES):
            del os.environ[name]
    os.environ.setdefault("LOG_FORMAT", "text")
    os.environ.setdefault("LOG_LEVEL", "WARNING")
    os.environ.update(
        HOME_ASSISTANT_TOKEN=_DEMO_TOKEN, DATA_DIR=str(_DEMO_DIR), EMBEDDED_STORE="on"
    )
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _announce(address: str) -> None:
    sys.stdout.write(
        "\nA simulated home is streaming into the embedded store. Ctrl-C ends it.\n"
        f"  Dashboard  {address}/\n"
        f"  API        {address}/docs\n"
        f"  Health     {address}/health\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
