"""`python -m app copy` between two real InfluxDB 1 on loopback, on one core.

`python -m benchmarks.copying` prints a table; it needs `influxd` (`make real-servers`) and takes
about two minutes.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from app.model import Change, Placement
from app.schema.homeiq import HomeiqEncoder
from benchmarks.tables import print_table
from tests.real.influx_1 import Database
from tests.real.servers import PROJECT, influxdb

POINTS = 500_000

_BATCH = 5_000
_ENTITIES = 200
_START_NS = 1_760_000_000_000_000_000
_EVERY_NS = 500_000_000
_RATE = re.compile(r"(Copying|Comparing) .* 100%  ([\d,]+) values, ([\d,]+)/s")
_PLACES = [
    Placement(device_id=f"device_{n}", area_id=f"area_{n % 12}", integration="mqtt")
    for n in range(_ENTITIES)
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one copy of `POINTS` points took."""

    values_per_point: float
    copied_per_s: float
    """Points."""
    compared_per_s: float
    """Points; both sides are read."""
    cpu_us_per_point: float
    """Of the command, for both, its start included."""
    memory_mb: float


def measure(lines: Callable[[int, int], bytes], *, points: int = POINTS) -> Figures:
    """Fill a database and copy it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        influxdb(Path(folder) / "from") as source,
        influxdb(Path(folder) / "to") as target,
    ):
        database = Database(source.url, "home_assistant")
        database.create()
        for first in range(0, points, _BATCH):
            database.write(lines(first, _BATCH))
        printed, usage = _run(
            {
                "PATH": os.environ["PATH"],
                "DATA_DIR": f"{folder}/data",
                "HOME_ASSISTANT_URL": "http://127.0.0.1:1",
                "HOME_ASSISTANT_TOKEN": "t" * 40,
                "COPY_FROM_URL": source.url,
                "INFLUXDB_URL": target.url,
            }
        )
    found = _RATE.findall(printed)
    rates = {what: (_number(values), _number(rate)) for what, values, rate in found}
    values = rates["Copying"][0]
    return Figures(
        values_per_point=values / points,
        copied_per_s=rates["Copying"][1] * points / values,
        compared_per_s=rates["Comparing"][1] * points / values,
        cpu_us_per_point=(usage.ru_utime + usage.ru_stime) / points * 1e6,
        memory_mb=usage.ru_maxrss / 1_000,
    )


def _run(environment: Mapping[str, str]) -> tuple[str, resource.struct_rusage]:
    """Run the command on one core; return what it prints, and what it used."""
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "copy"],
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    os.sched_setaffinity(process.pid, {0})
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, printed
    return printed, usage


def _number(text: str) -> int:
    return int(text.replace(",", ""))


def home_assistant(first: int, count: int) -> bytes:
    """Return lines as Home Assistant's own integration writes them."""
    return "".join(
        f"°C,domain=sensor,entity_id=e{n % _ENTITIES} value={20 + n % 100 / 10},battery={n % 100},"
        f'friendly_name_str="Sensor {n % _ENTITIES}" {_START_NS + n * _EVERY_NS}\n'
        for n in range(first, first + count)
    ).encode()


_ENCODER = HomeiqEncoder("home_assistant_events", instance=None, attribute_fields=[])


def homeiq(first: int, count: int) -> bytes:
    """Return lines as this service writes them."""
    return _ENCODER.encode(list(_changes(first, count))).data


def _changes(first: int, count: int) -> Iterator[Change]:
    for n in range(first, first + count):
        yield Change(
            entity_id=f"sensor.s{n % _ENTITIES}",
            domain="sensor",
            time_ns=_START_NS + n * _EVERY_NS,
            state=str(20 + n % 100 / 10),
            previous_state=str(20 + (n + 7) % 100 / 10),
            duration_s=60.0,
            attributes=b'{"state_class":"measurement","unit_of_measurement":"\xc2\xb0C"}',
            device_class="temperature",
            unit_of_measurement="°C",
            friendly_name=f"Sensor {n % _ENTITIES}",
            context=None,
            placement=_PLACES[n % _ENTITIES],
        )


def main() -> None:
    """Measure both schemas and print the table."""
    rows = []
    for name, lines in (("Home Assistant's", home_assistant), ("homeiq", homeiq)):
        found = measure(lines)
        rows.append(
            [
                name,
                f"{found.values_per_point:.0f}",
                f"{found.copied_per_s:,.0f}",
                f"{found.compared_per_s:,.0f}",
                f"{found.cpu_us_per_point:.1f}",
                f"{found.memory_mb:.0f}",
            ]
        )
    heads = ["schema", "fields", "copied/s", "compared/s", "CPU µs per point", "memory MB"]
    print_table(heads, rows)


if __name__ == "__main__":
    main()
