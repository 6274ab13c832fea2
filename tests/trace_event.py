"""Counts the functions of the service that a live event passes, from the socket to the 204.

`python -m tests.trace_event` runs the whole service in one process, between the simulated Home
Assistant and a simulated InfluxDB. It sends one event after the other and records every function
of `app/` that is entered until the database has accepted the point. What only some of the events
meet belongs to a loop that woke up meanwhile and is not counted; comprehensions are part of their
function. `--list` prints the functions in the order of their first call.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import CodeType, FrameType

from app.container import Container
from app.main import running
from app.runtime.metrics import SinkCounts
from app.settings import load_settings
from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.influx import FakeInflux
from tests.fakes.still_house import StillHouse

ROOT = Path(__file__).parents[1]
_APP = f"{ROOT / 'app'}{os.sep}"
_FAKES = (f"{ROOT / 'tests'}{os.sep}", f"{ROOT / 'simulator'}{os.sep}")
_COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")
_TOKEN = "t" * 40
_PATIENCE_S = 20.0
_EVENTS = 8
_PAUSE_S = 0.3
_POLL_S = 0.002


class Trace:
    """The functions of `app/` that were entered while it was recording, and how often."""

    def __init__(self) -> None:
        self.calls: Counter[CodeType] = Counter()
        self.is_recording = False

    def functions(self) -> list[str]:
        """Return `file:line name` of each function, in the order of their first call."""
        return [f"{_file(code)}:{code.co_firstlineno} {code.co_qualname}" for code in self.calls]

    def files(self) -> set[str]:
        """Return the files of those functions."""
        return {_file(code) for code in self.calls}

    def install(self) -> None:
        """Watch this thread, and every thread that is started from now on."""
        threading.setprofile(self._entered)
        sys.setprofile(self._entered)

    def _entered(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if (
            self.is_recording
            and event == "call"
            and code.co_filename.startswith(_APP)
            and code.co_name not in _COMPREHENSIONS
            and not _is_called_by_a_fake(frame)
        ):
            self.calls[code] += 1


def _file(code: CodeType) -> str:
    return Path(code.co_filename).relative_to(ROOT).as_posix()


def _is_called_by_a_fake(frame: FrameType) -> bool:
    """Whether a simulated server uses a function of the service for itself."""
    caller = frame.f_back
    while caller is not None and caller.f_code.co_filename.startswith(_APP):
        caller = caller.f_back
    return caller is not None and caller.f_code.co_filename.startswith(_FAKES)


@asynccontextmanager
async def _service(home: FakeHomeAssistant, influx: FakeInflux) -> AsyncIterator[Container]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(
            HOME_ASSISTANT_URL=home.url,
            HOME_ASSISTANT_TOKEN=_TOKEN,
            INFLUXDB_URL=influx.url,
            INFLUXDB_TOKEN=influx.token,
            INFLUXDB_ORG=influx.org,
            INFLUXDB_BUCKET="home_assistant_events",
            DATA_DIR=folder,
            BATCH_TIMEOUT="0.1",
        )
        container = Container(settings=load_settings(None))
        async with running(container):
            yield container


async def trace_events() -> Trace:
    """Return what every one of some changes of a known entity passes."""
    trace = Trace()
    house = StillHouse(clock=lambda: datetime.now(UTC))
    house.set_state("sensor.kitchen", "0", {"unit_of_measurement": "°C"})
    async with FakeHomeAssistant(house, token=_TOKEN) as home, FakeInflux().serving() as influx:
        house.fire = home.fire
        trace.install()
        async with _service(home, influx) as container:
            sink = container.telemetry().sink("influxdb")
            await _until(lambda: home.subscribers > 0)
            calls = []
            for state in range(1, _EVENTS + 1):
                trace.calls.clear()
                trace.is_recording = True
                house.set_state("sensor.kitchen", str(state))
                await _until(partial(_has_written, sink, state))
                trace.is_recording = False
                calls.append(dict(trace.calls))
                await asyncio.sleep(_PAUSE_S)
        sys.setprofile(None)
    last = calls[-1]
    always = set.intersection(*map(set, calls[1:]))
    trace.calls = Counter({code: last[code] for code in last if code in always})
    return trace


def _has_written(sink: SinkCounts, points: int) -> bool:
    return sink.written >= points


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_PATIENCE_S):
        while not condition():
            await asyncio.sleep(_POLL_S)


def main() -> None:
    """Print how many functions in how many files an event passes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--list", action="store_true", help="print each function")
    chosen = parser.parse_args()
    trace = asyncio.run(trace_events())
    if chosen.list:
        sys.stdout.write("\n".join(trace.functions()) + "\n")
    functions, files = trace.functions(), trace.files()
    calls = sum(trace.calls.values())
    sys.stdout.write(f"{len(functions)} functions in {len(files)} files, {calls} calls\n")


if __name__ == "__main__":
    main()
