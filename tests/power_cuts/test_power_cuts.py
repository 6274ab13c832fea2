"""After a power cut the service starts, has lost nothing acknowledged, and reports no damage."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TypeAlias

import pytest

from tests.fakes.influx import FakeInflux
from tests.power_cuts.checks import SETTINGS, problems, read, start
from tests.power_cuts.disk import Tree
from tests.power_cuts.scenarios import SCENARIOS, Recorded, Scenario, put_on_disk, recorded
from tests.service.process import service

pytestmark = [pytest.mark.timeout(1_200)]

Recording: TypeAlias = Callable[[str], Awaitable[Recorded]]

COUNT = int(os.environ.get("COUNT") or 200)
RUNS = max(4, COUNT // 50)
"""How many states are opened by `python -m app run`."""
MOST_TRIES = 300
"""How many states of a run that is not crash safe are tried; the first ones mostly suffice."""
POINTS = "acknowledged points are lost"
_SECOND_STARTS = 0.3


@pytest.fixture
async def influx() -> AsyncIterator[FakeInflux]:
    """Serve a healthy InfluxDB 2."""
    async with FakeInflux().serving() as fake:
        yield fake


@pytest.fixture(scope="session")
def recordings() -> dict[str, Recorded]:
    """Return the runs that this process has recorded, by name; nothing changes them."""
    return {}


@pytest.fixture
def recording(recordings: dict[str, Recorded], folder: Path, influx: FakeInflux) -> Recording:
    """Return what records a scenario, once for all tests."""

    async def run(name: str) -> Recorded:
        if name not in recordings:
            recordings[name] = await recorded(SCENARIOS[name], folder / "recording", influx)
        return recordings[name]

    return run


@pytest.fixture
def choices(request: pytest.FixtureRequest) -> Random:
    """Return the choices of a test: different for each test, repeated by the seed."""
    return Random(f"{os.environ['SEED']} {request.node.name}")


def digest(tree: Tree) -> str:
    """Identify a state of the disk."""
    return hashlib.sha256(repr(sorted(tree.items())).encode()).hexdigest()


async def faults(
    data: Path, cut: int, run: Recorded, influx: FakeInflux, *, again: bool = False
) -> list[str]:
    """Start the service once or twice on a state; return what is wrong afterwards."""
    try:
        found = await start(data, influx)
        wrong = problems(run.expected(cut), found)
        kept = {path.read_bytes() for path in data.iterdir() if path.is_file()}
        wrong += ["a damaged file was deleted" for each in run.originals if each not in kept]
        if again:
            second = await start(data, influx)
            wrong += [f"the second start reports {second.damage}"] if second.damage else []
            wrong += ["the second start lost events"] if second.events != found.events else []
    except Exception as exc:  # noqa: BLE001 - whatever ends a start is a finding
        wrong = [f"the service did not start: {exc!r}"]
    return wrong


async def finds(
    loss: str, run: Recorded, folder: Path, influx: FakeInflux, choices: Random
) -> bool:
    """Return whether the check reports this loss in one of many states."""
    for _ in range(MOST_TRIES):
        cut, tree = run.cut(choices)
        wrong = await faults(put_on_disk(tree, folder / "state"), cut, run, influx)
        if any(loss in each for each in wrong):
            return True
    return False


@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_start_after_a_power_cut_has_lost_nothing_and_reports_no_damage(
    *,
    choices: Random,
    recording: Recording,
    record_property: Callable[[str, object], None],
    folder: Path,
    tmp_path: Path,
    influx: FakeInflux,
    name: str,
) -> None:
    """Each state is opened by the container's own graph, and delivered to a database."""
    seen: set[str] = set()
    failed = []
    run = await recording(name)
    begun, wanted = time.perf_counter(), COUNT // len(SCENARIOS)
    for _ in range(wanted * 20):
        if len(seen) == wanted:
            break
        cut, tree = run.cut(choices)
        again = choices.random() < _SECOND_STARTS
        if digest(tree) in seen:
            continue
        seen.add(digest(tree))
        data = put_on_disk(tree, folder / "state")
        if wrong := await faults(data, cut, run, influx, again=again):
            kept = tmp_path / f"state-{cut}"
            put_on_disk(tree, kept)
            failed.append(f"cut at {cut}, kept in {kept}: {wrong}")
    took_s = time.perf_counter() - begun
    record_property(
        f"{name}", f"{len(seen)} states of {len(run.history.operations)} operations, {took_s:.0f} s"
    )
    assert seen
    if failed:
        pytest.fail("\n".join(failed), pytrace=False)


async def test_python_m_app_run_starts_after_a_power_cut(
    choices: Random,
    recording: Recording,
    folder: Path,
    influx: FakeInflux,
) -> None:
    """The same through the command: it serves, delivers, reports no damage and stops in order."""
    run = await recording("busy")
    for _ in range(RUNS):
        cut, tree = run.cut(choices)
        data = put_on_disk(tree, folder / "state")
        influx.lines.clear()
        environment = SETTINGS | {
            "HOME_ASSISTANT_URL": "http://127.0.0.1:9",
            "INFLUXDB_URL": influx.url,
            "INFLUXDB_TOKEN": influx.token,
            "DATA_DIR": str(data),
        }
        async with service(folder, environment) as running:
            health = await running.until(
                "/health", lambda health: not any(sink["held"] for sink in health["sinks"])
            )
            assert await running.stop() == 0
        dropped = sum(sink["points_dropped"] for sink in health["sinks"])
        found = read(data, lines=influx.lines, reasons=health["reasons"], dropped=dropped)
        assert problems(run.expected(cut), found) == [], cut


@pytest.mark.parametrize(
    ("scenario", "unsynced", "loss"),
    [
        ("first start", (".", "new", "new/folder"), POINTS),
        ("first start", ("new/folder/data/journal.db.new",), POINTS),
        ("busy", ("new/folder/data/journal.db-wal",), POINTS),
        ("busy", ("new/folder/data/events.db-wal",), "events are missing"),
        ("busy", ("new/folder/data/dead_letters.db-wal",), "dead letters are lost"),
        ("busy", ("new/folder/data/metadata.db-wal",), "devices are lost"),
        ("damaged files", ("new/folder/data",), POINTS),
    ],
    ids=["parents", "checkpoint", "log", "events", "dead-letters", "devices", "renames"],
)
async def test_the_check_reports_a_loss_where_a_sync_is_missing(
    *,
    choices: Random,
    recording: Recording,
    folder: Path,
    influx: FakeInflux,
    scenario: str,
    unsynced: tuple[str, ...],
    loss: str,
) -> None:
    """The control: the recorded run, as if it had not synced these files and folders."""
    run = await recording(scenario)
    careless = replace(run, history=run.history.without_syncs(unsynced.__contains__))

    assert await finds(loss, careless, folder, influx, choices)


async def test_the_check_reports_a_loss_where_commits_are_not_synced(
    choices: Random, folder: Path, influx: FakeInflux
) -> None:
    """The control: the service with `synchronous = NORMAL`."""
    careless = Scenario(("busy",), options=["--synchronous", "NORMAL"])
    run = await recorded(careless, folder, influx)

    assert await finds(POINTS, run, folder, influx, choices)
