"""`python -m app demo`: the service on a simulated home, with the embedded store."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from app.commands.run import bound, serve
from app.commands.terminal import bold
from app.health import SinkStatus
from app.main import configure_logs
from app.runtime.environment import cleaned
from app.runtime.errors import SettingsError
from app.runtime.supervisor import Supervisor
from app.settings import load_settings
from simulator.fake_home_assistant import FakeHomeAssistant
from simulator.home import SimulatedHome

_FOLDER = Path("data/demo")
_TOKEN = "demo-" + "0" * 32
_IGNORED = ("HOME_ASSISTANT_", "HA_", "INFLUXDB_", "DATA_API_")
_PORTS = range(8001, 8100)
_LAST_PORT = 65_535


async def demo() -> int:
    """Run the service on a simulated home until Ctrl-C, and return the exit status."""
    listen = bound("127.0.0.1", _ports())
    home = SimulatedHome(_FOLDER / "home")
    home_assistant = FakeHomeAssistant(home, token=_TOKEN)
    with _environment():
        async with home_assistant:
            os.environ["HOME_ASSISTANT_URL"] = home_assistant.url
            chosen = load_settings(None)
            configure_logs(chosen)
            simulation = Supervisor(grace_s=1.0)
            async with simulation.running({"home": lambda: home.run(home_assistant.fire)}):
                return await serve(chosen, listen=listen, started=_started, stopped=_stopped)


def _ports() -> Sequence[int]:
    chosen = cleaned(os.environ.get("WEBSOCKET_INGESTION_PORT", ""))
    if not chosen:
        return _PORTS
    if not re.fullmatch("[0-9]{1,5}", chosen) or int(chosen) > _LAST_PORT:
        raise SettingsError(
            f"WEBSOCKET_INGESTION_PORT: {chosen[:20]!r} is not a port number; set one up to"
            f" {_LAST_PORT}"
        )
    return [int(chosen)]


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Replace the settings of a real Home Assistant and database with those of the demo."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(_IGNORED):
            del os.environ[name]
    os.environ.setdefault("LOG_FORMAT", "text")
    os.environ.setdefault("LOG_LEVEL", "WARNING")
    os.environ.update(HOME_ASSISTANT_TOKEN=_TOKEN, DATA_DIR=str(_FOLDER), EMBEDDED_STORE="on")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _started(address: str) -> None:
    _write(
        f"\n{bold('The demo is running', sys.stdout)}: a simulated home streams into the embedded"
        " store. Ctrl-C stops it.\n"
        f"  Dashboard  {bold(f'{address}/', sys.stdout)}\n"
        f"  API        {address}/docs\n"
        f"  Health     {address}/health\n"
    )


def _stopped(sinks: Sequence[SinkStatus]) -> None:
    written = sum(sink.points_written for sink in sinks)
    points = "1 point" if written == 1 else f"{written:,} points"
    _write(f"\nStopped. Stored {points} of this run in {_FOLDER}; start again to continue\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
