"""Starting: how long importing takes, and how long until events can come.

`python -m benchmarks.start` measures and prints a table; it takes some seconds.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import HELPER_TOKEN, ROOT, Where, peer
from benchmarks.tables import print_table
from tests.service.process import service

_POLL_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The fastest of some starts, each in a process of its own."""

    import_s: float
    """Wall time of `import app.commands.run`, the interpreter's own start included."""
    import_cpu_s: float
    influx_import_cpu_s: float
    """The same with what only the InfluxDB sink needs."""
    connected_s: float
    """From starting the process, with InfluxDB, until Home Assistant's events stream."""


async def measure_start(*, rounds: int = 5) -> Start:
    """Start several times; a disturbance only ever makes a start slower."""
    plain = [await _imported("app.commands.run") for _ in range(rounds)]
    influx = [await _imported("app.commands.run, app.sinks.influxdb.sink") for _ in range(rounds)]
    async with peer("benchmarks.house") as house, peer("benchmarks.sink") as sink:
        environment = {
            "HOME_ASSISTANT_URL": (await house.ask(Where, "where")).url,
            "HOME_ASSISTANT_TOKEN": HELPER_TOKEN,
            "INFLUXDB_URL": (await sink.ask(Where, "where")).url,
            "INFLUXDB_TOKEN": HELPER_TOKEN,
        }
        connected = [await _connected(environment) for _ in range(rounds)]
    return Start(
        import_s=min(wall_s for wall_s, _ in plain),
        import_cpu_s=min(cpu_s for _, cpu_s in plain),
        influx_import_cpu_s=min(cpu_s for _, cpu_s in influx),
        connected_s=min(connected),
    )


def print_start(start: Start) -> None:
    """Print a table."""
    print_table(
        ["starting", "fastest"],
        [
            ["import of the app, wall clock", f"{start.import_s:.2f} s"],
            ["import of the app, CPU", f"{start.import_cpu_s:.2f} s"],
            ["the same with InfluxDB's client, CPU", f"{start.influx_import_cpu_s:.2f} s"],
            ["start to connected, with InfluxDB, wall clock", f"{start.connected_s:.2f} s"],
        ],
    )


async def _imported(names: str) -> tuple[float, float]:
    """Return the seconds by the clock and of CPU that importing these took."""
    before, started_s = _children_cpu_s(), time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", f"import {names}", cwd=ROOT, stdout=DEVNULL
    )
    await process.wait()
    return time.perf_counter() - started_s, _children_cpu_s() - before


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


async def _connected(environment: dict[str, str]) -> float:
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir="/var/tmp") as folder:
        started_s = time.perf_counter()
        async with service(Path(folder), environment) as running:
            # Read its log; requests would slow it down.
            log = running.output
            while "Connected to Home" not in log.read_text():  # noqa: ASYNC110 - another process
                await asyncio.sleep(_POLL_S)
            return time.perf_counter() - started_s


if __name__ == "__main__":
    print_start(asyncio.run(measure_start()))
