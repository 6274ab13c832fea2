"""The program whose file operations are recorded: the service, with a home and a database.

`python -m tests.power_cuts.workload SCENARIO ACKNOWLEDGEMENTS` runs one or two lives of the service
and appends what it has acknowledged to a file, one JSON document in each write.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

from app.container import Container
from app.main import running
from app.model import Lines
from app.settings import load_settings
from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.influx import FakeInflux, error
from tests.fakes.still_house import StillHouse
from tests.service.driver import instrument_statements
from tests.service.process import TOKEN


class Workload:
    """A home, a database, and the acknowledgements of the service between them."""

    def __init__(self, ledger: int) -> None:
        self._ledger = ledger
        self._house = StillHouse()
        self._home_assistant = FakeHomeAssistant(self._house, token=TOKEN)
        self._influx = FakeInflux()
        self._committed = asyncio.Event()
        self._numbers = 0

    @contextlib.asynccontextmanager
    async def life(self, *, influx: bool) -> AsyncIterator[Container]:
        """Run the service until the block ends; `influx` is whether the database accepts."""
        async with self._home_assistant, self._influx.serving():
            self._house.fire = self._home_assistant.fire
            self._influx.fault = None if influx else error(503, "down")
            os.environ["HOME_ASSISTANT_URL"] = self._home_assistant.url
            os.environ["INFLUXDB_URL"] = self._influx.url
            container = Container(settings=load_settings(None))
            self._observe(container)
            async with running(container):
                while not self._home_assistant.subscribers:
                    await asyncio.sleep(0.01)
                yield container

    def _observe(self, container: Container) -> None:
        """Report what the parts of the service have acknowledged when their methods return."""
        journal, metadata, influx = (
            container.journal(),
            container.metadata(),
            container.influx_sink(),
        )
        assert influx is not None, "INFLUXDB_URL is set"
        append, refreshed, write = journal.append, metadata.refreshed, influx.write

        async def appended(lines: Lines, **rest: Any) -> None:
            await append(lines, **rest)
            self._report("journal", [line.decode() for line in lines.split()])
            self._committed.set()

        async def stored(update: Any) -> None:
            await refreshed(update)
            self._report("devices", list(update.now.raw.get("device", {})))

        async def written(batch: Any) -> object:
            outcome = await write(batch)
            self._report("influx", [line.decode() for line in self._influx.lines])
            self._influx.lines.clear()
            return outcome

        # The container's own objects, observed: what is built with them calls these.
        vars(journal)["append"] = appended
        vars(metadata)["refreshed"] = stored
        vars(influx)["write"] = written

    def _report(self, kind: str, items: list[str]) -> None:
        os.write(self._ledger, json.dumps({kind: items}).encode())

    async def changes(self, container: Container, *, bursts: int, entities: int) -> None:
        """Change states, and wait for each commit; some points are refused by one sink."""
        for burst in range(bursts):
            self._committed.clear()
            for number in range(entities):
                self._numbers += 1
                # Unlike each other, so that a row takes several pages.
                text = os.urandom(300).hex()
                self._house.set_state(f"sensor.number_{number}", str(self._numbers), {"text": text})
            await self._committed.wait()
            if burst % 5 == 1:
                self._numbers += 1
                line = b"garage door=%di %d\n" % (self._numbers, self._numbers)
                await container.append()(Lines(line, 1))
            if burst % 10 == 3:
                self.device()
                rows = [json.dumps({"device_id": f"sent_{self._numbers}", "name": "x"}).encode()]
                await container.metadata().upsert("devices", rows)
                self._report("devices", [f"sent_{self._numbers}"])
            if burst % 10 == 5:
                self._house.let_pass(seconds=200)  # older points need not be compared any more

    def device(self) -> None:
        """Add a device to the registry."""
        self._numbers += 1
        row: dict[str, object] = {"id": f"device_{self._numbers}", "name": "Lamp", "labels": []}
        self._house.put_row("device", row, id_name="id")

    async def drained(self, container: Container, sink: str) -> None:
        """Wait until a sink has accepted everything."""
        while container.journal().pending(sink).points:
            await asyncio.sleep(0.01)


async def first_start(workload: Workload) -> None:
    """A new DATA_DIR, an orderly stop, another start, and a kill."""
    async with workload.life(influx=False) as container:
        workload.device()
        await workload.changes(container, bursts=8, entities=3)
        await workload.drained(container, "embedded")
    async with workload.life(influx=False) as container:
        await workload.changes(container, bursts=4, entities=3)
        os._exit(0)


async def busy(workload: Workload) -> None:
    """Checkpoints, cursors that move, rows that are deleted, dead letters, and a kill."""
    async with workload.life(influx=True) as container:
        workload.device()
        await workload.changes(container, bursts=60, entities=4)
        await workload.drained(container, "influxdb")
        await asyncio.sleep(1.1)  # housekeeping once a second
        await container.dead_letters().retry(container.append())
        await workload.changes(container, bursts=10, entities=4)
        os._exit(0)


async def start(workload: Workload) -> None:
    """A start on files that are there, some changes, and an orderly stop."""
    async with workload.life(influx=True) as container:
        await workload.changes(container, bursts=6, entities=3)


_SCENARIOS: dict[str, Callable[[Workload], Coroutine[None, None, None]]] = {
    "first_start": first_start,
    "busy": busy,
    "start": start,
}


def main() -> None:
    """Run a scenario."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", choices=_SCENARIOS)
    parser.add_argument("acknowledgements", type=Path)
    parser.add_argument("--synchronous", help="another value of the pragma, for the journal")
    chosen = parser.parse_args()
    instrument_statements(failpoint=None, synchronous=chosen.synchronous, ledger=None)
    ledger = os.open(chosen.acknowledgements, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    asyncio.run(_SCENARIOS[chosen.scenario](Workload(ledger)))


if __name__ == "__main__":
    main()
