"""One world: the real service between a simulated Home Assistant and a simulated database.

Everything in it follows from its seed and its list of actions.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import logging
import os
import random
import shutil
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import aiohttp.connector
import httpx
import psutil
from dependency_injector import providers

from app.backfill.coverage import Coverage
from app.container import Container
from app.health_collector import ProcessUsage
from app.main import create_app, running
from app.model import Change, Gap, Lines, moment_of
from app.runtime.errors import StorageError
from app.runtime.supervisor import Supervisor
from app.schema.homeiq import identity_of
from app.settings import load_settings
from simulator.fake_home_assistant import FakeHomeAssistant
from tests.simulation import clocks
from tests.simulation.checks import check_end, check_meanwhile
from tests.simulation.database import DIALECTS, PORT, Database, Dialect, identity
from tests.simulation.disk import DiskError
from tests.simulation.faults import FAULTS
from tests.simulation.filters import FilterTruth
from tests.simulation.honesty import Watch
from tests.simulation.house import House, Identity
from tests.simulation.loop import PROCESS, Process, SimulatedLoop
from tests.simulation.network import Link, Socket
from tests.simulation.violation import Violation

_HOME_PORT = 8123
_TOKEN = "t" * 40
SINKS = frozenset({"influxdb", "embedded"})
_CALM_S = 600.0
_POLL_S = 60.0
_RESTART_S = 5.0
_QUIET_S = 12.0
"""How long nothing changes at the end, so that the recorder has committed everything."""
_HELD_S = 30.0
"""Of how many seconds points may wait for a sink when all is settled."""
_COMMIT_S = 5.0
_READ_BACK_WITHIN_S = 600.0
_RECORDER_COMMANDS = frozenset(
    {
        "recorder/info",
        "recorder/list_statistic_ids",
        "history/history_during_period",
        "logbook/get_events",
    }
)
"""What Home Assistant does not know without a recorder."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Action:
    """One fault and when it begins."""

    at: float
    kind: str
    arguments: Mapping[str, Any]

    def __str__(self) -> str:
        named = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.at:10.3f}  {self.kind}({named})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a world is made from."""

    seed: int
    seconds: float = 3600.0
    events_per_s: float = 0.7
    fault_every_s: float = 90.0
    kinds: tuple[str, ...] = ()
    """The kinds of faults to draw from; empty for all."""
    database: Dialect | None = None
    """The database; None to draw it from the seed."""
    sinks: frozenset[str] | None = None
    """The sinks of the first start; None for both, or one that is drawn if
    the other is added."""
    has_filter_file: bool | None = None
    """Whether the filter is in a file and not in a setting; None to draw it from the seed."""
    given: tuple[Action, ...] | None = None
    """The actions; None to draw them from the seed."""

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Return the plan in a file that `written` made."""
        kept = json.loads(path.read_text())
        actions = tuple(Action(*action) for action in kept["actions"])
        return cls(
            seed=kept["seed"],
            seconds=kept["seconds"],
            database=kept.get("database", "v2"),
            sinks=frozenset(kept.get("sinks", SINKS)),
            has_filter_file=kept.get("has_filter_file", False),
            given=actions,
        )

    def written(self, numbers: Sequence[int]) -> str:
        """Return the plan with these of its actions as JSON, for a file."""
        actions = self.actions()
        kept = [
            [action.at, action.kind, dict(action.arguments)]
            for action in map(actions.__getitem__, numbers)
        ]
        plan = {
            "seed": self.seed,
            "seconds": self.seconds,
            "database": self.dialect,
            "sinks": sorted(self.first_sinks),
            "has_filter_file": self.is_filter_in_file,
        }
        return json.dumps({**plan, "actions": kept}, indent=1)

    @property
    def dialect(self) -> Dialect:
        """The database of this world."""
        if self.database is not None:
            return self.database
        return random.Random(f"database {self.seed}").choice(DIALECTS)

    @property
    def first_sinks(self) -> frozenset[str]:
        """The sinks that the first start configures."""
        if self.sinks is not None:
            return self.sinks
        if not self._has("add_sink"):
            return SINKS
        return frozenset({random.Random(f"sinks {self.seed}").choice(sorted(SINKS))})

    @property
    def is_filter_in_file(self) -> bool:
        """Whether the filter is in a file, which is read again when it changes."""
        if self.has_filter_file is not None:
            return self.has_filter_file
        return self._has("change_filter") and random.Random(f"filter {self.seed}").random() < 0.5

    def _has(self, kind: str) -> bool:
        return any(action.kind == kind for action in self.actions())

    def actions(self) -> list[Action]:
        """Return the actions in the order of their times."""
        if self.given is not None:
            return list(self.given)
        chance = random.Random(f"actions {self.seed}")
        kinds = sorted(self.kinds or FAULTS)
        weights = [FAULTS[kind].weight or float(kind in self.kinds) for kind in kinds]
        actions, at = [], 30.0
        while (at := at + chance.expovariate(1 / self.fault_every_s)) < self.seconds:
            (kind,) = chance.choices(kinds, weights)
            actions.append(Action(round(at, 3), kind, FAULTS[kind].draw(chance)))
        return actions


@dataclass(slots=True)
class Result:
    """What one run showed."""

    seed: int
    trace: str = ""
    virtual_s: float = 0.0
    events: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    """How often each kind of fault began."""
    restarts: int = 0
    writes: int = 0
    gaps: int = 0
    backfilled: int = 0
    steps: int = 0
    error: str | None = None
    log: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ClockSet:
    """One time that Home Assistant's clock was set."""

    at_s: float
    """In seconds of the simulation."""
    from_ns: int
    to_ns: int


class Life:
    """One process of the service."""

    def __init__(self, folder: Path, sinks: Iterable[str]) -> None:
        self.folder = folder
        self.sinks = frozenset(sinks)
        self.process = Process()
        self.disk = self.process.disk
        self.container: Container | None = None
        self.client: httpx.AsyncClient | None = None
        self.is_up = False
        self.stop = asyncio.Event()
        self.is_stop_slow = False
        """Whether the disk was slow at SIGTERM, so that the stop may run out of time."""
        self.task: asyncio.Task[None] | None = None


class World:
    """The service and its surroundings."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.loop = SimulatedLoop(random.Random(f"loop {plan.seed}"))
        self.home_link = self.loop.network.link(("127.0.0.1", _HOME_PORT))
        self.database_link = self.loop.network.link(("127.0.0.1", PORT))
        self.home_clock_offset_s = 0.0
        self.acknowledged: dict[bytes, tuple[int, int]] = {}
        """Every line that the journal made durable, with its first and last place in the order."""
        self.captured: dict[Identity, float] = {}
        """When each change was journaled, or may have been by a process that was killed."""
        self.live: set[Identity] = set()
        """Those that came live."""
        self.uncommitted: set[Identity] = set()
        """Changes that were only in memory for a while: a sink may have them before the journal."""
        self.clock_sets: list[ClockSet] = []
        """When Home Assistant's clock was set."""
        self.given_up: dict[int, Gap] = {}
        """The gaps that could not be filled at first, by their ids."""
        self.closed_s: dict[int, float] = {}
        """When each gap was closed last, by its id."""
        self.verified_rows = 0
        """How many rows of the recorder were captured when health was good."""
        self._order = self._lives = self.calm_since = 0
        """The number of acknowledged lines and of processes, and of lines when all faults ended."""
        self.dead_letters: set[bytes] = set()
        """Lines that the database refused, and that were sent again."""
        self.log: list[str] = []
        self.restarts = self.gaps = self.backfilled = 0
        self.service_kills_ns: list[int] = []
        self.clocks_apart_s = 0.0
        """How far the clock of the service was from the true one, at most."""
        self.is_home_assistant_up, self.is_calm = True, False
        self.sinks = set(plan.first_sinks)
        """The sinks that the next start configures."""
        self.sinks_since: dict[str, int] = {}
        """How many lines the journal had acknowledged when each sink was configured first."""
        self.disk_faults = 0
        """How many faults of the disk have begun: only then may the service fail to start."""
        self.disk_error: DiskError | None = None
        """What every write fails with, in the running process and in those that follow."""
        self._folder = folder
        self._uncommitted: list[bytes] = []
        self._in_flight: list[list[bytes]] = []
        """What the journal is appending: a killed process may have made it durable."""
        self.watch = Watch()
        self._read_back = asyncio.Event()
        """Set for a moment when changes that were read back have become durable."""
        self.filter = FilterTruth("unrecorded" if plan.seed % 2 else "nothing")
        self._life: Life | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    def run(self, actions: Sequence[Action]) -> Result:
        """Run from the start to the end, and check everything."""
        result = Result(self.plan.seed, kinds=Counter(action.kind for action in actions))
        vars(aiohttp.connector)["aiohappyeyeballs"].start_connection = _socket_to
        clocks.use(self.loop)
        asyncio.set_event_loop(self.loop)
        handler = _Log(self)
        logging.getLogger().handlers[:] = [handler]
        logging.getLogger().setLevel(logging.INFO)
        for noisy in ("websockets", "aiohttp", "httpx"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        try:
            self.loop.run_until_complete(self._history(actions))
        except BaseException as exc:
            result.error = f"{type(exc).__name__}: {exc}"
            logger.exception("The run failed")
        result.trace = self.loop.trace
        result.virtual_s = self.loop.time()
        result.events = len(self.house.fired)
        result.restarts = self.restarts
        result.writes = self.database.writes
        result.steps = self.loop.steps
        result.log = self.log
        result.gaps, result.backfilled = self.gaps, self.backfilled
        self.loop.forget()
        clocks.use(None)
        return result

    # --- the course of events

    async def _history(self, actions: Sequence[Action]) -> None:
        self.house = House(
            random.Random(f"house {self.plan.seed}"), self.home_clock, monotonic=self.loop.time
        )
        self.database = Database(self.database_link, self.plan.dialect, token=_TOKEN)
        self.home_assistant = FakeHomeAssistant(self.house, token=_TOKEN, port=_HOME_PORT)
        self._write_filter()
        await self.database.start()
        await self.home_assistant.__aenter__()
        self.house.fire = self.home_assistant.fire
        self.house.start()
        self.spawn(self._changes())
        self.spawn(self._commits())
        self.start()
        await self._until_streaming()
        self.since_s = self.loop.time()
        self.spawn(self._polls())
        for action in actions:
            await asyncio.sleep(max(0.0, action.at - self.loop.time()))
            self._raise_failure()
            self.note(f"--- {action.kind} {dict(action.arguments)}")
            self.spawn(FAULTS[action.kind].apply(self, **action.arguments))
        await asyncio.sleep(max(0.0, self.plan.seconds - self.loop.time()))
        await self._calm()

    async def _calm(self) -> None:
        """End all faults, wait until everything is settled, and check the result."""
        self.note("--- calm")
        self.is_calm = True
        self.fail_disk(None)
        self.loop.disarm()
        self.home_assistant.token = _TOKEN
        await self._until(lambda: self.is_home_assistant_up and self._is_up(), 700, "be up again")
        self.calm_since = self._order
        self.sinks = set(SINKS)
        if self.life.sinks != SINKS:
            await self.terminate()
            await self.start_again(0.01)
            await self._until(self._is_up, 60, "start with all sinks")
        self.database.fault = None
        self.database.refuses = lambda _: None
        self.database.partial = False
        self.database.forget_types()
        await self.database.start()
        self.home_link.resume()
        self.database_link.resume()
        self.house.recorder_.is_locked = False
        self.house.recorder_.lag_s = 0.0
        self.house.purge_at_query(0, 0.0)
        self.house.unreadable = None
        self.home_assistant.unknown_commands.clear()
        self.house.has_recorder = True
        if not self.house.recorder_.is_present:
            await self.restart_home_assistant(down_s=3.0, starting_s=2.0, is_clean=True)
        self.loop.work_factor = 1.0
        life = self.life
        assert life.container is not None
        limit_s = _CALM_S + 300.0
        deadline = self.loop.time() + limit_s
        while (problem := self._unsettled()) is not None:
            self._raise_failure()
            await self._retry_dead_letters()
            await self._request_gaps()
            if self.loop.time() > deadline:
                raise Violation(
                    f"liveness: not settled {limit_s:g} s after the last fault: {problem}"
                )
            await asyncio.sleep(1.0)
        self.note("--- settled")
        self.are_changes_over = True
        await asyncio.sleep(_QUIET_S)
        await self._until(lambda: self._unsettled() is None, 120, "settle at the end")
        await check_end(self)
        self._raise_failure()
        gaps = life.container.coverage().gaps()
        self.gaps, self.backfilled = len(gaps), sum(gap.changes for gap in gaps)
        await self.terminate()

    async def _retry_dead_letters(self) -> None:
        """Do what a person does about lines that the database refused while it was faulty."""
        life = self.life
        if not life.is_up or life.container is None or not life.container.dead_letters().count:
            return
        assert life.client is not None
        exported = await life.client.get("/api/v1/dead-letters/export")
        lines = exported.content.splitlines()
        self.dead_letters.update(lines)
        if invented := {*lines} - self.database.in_refused_requests:
            raise Violation(f"conservation: dead letters were never refused: {[*invented][:3]}")
        await life.client.post("/api/v1/dead-letters/retry")

    async def _request_gaps(self) -> None:
        """Do what a person does about gaps that could not be filled, as `/health` says."""
        life = self.life
        if not life.is_up or life.client is None:
            return
        for gap in self.coverage.unacknowledged():
            times = {"since": moment_of(gap.start_ns), "until": moment_of(gap.end_ns)}
            span = {name: moment.isoformat() for name, moment in times.items()}
            response = await life.client.post("/api/v1/backfill", json=span)
            self.note(f"POST /api/v1/backfill: {response.status_code} {response.text}")

    def _unsettled(self) -> str | None:
        """Return what is not as it should be without faults.

        Only while events stream may points wait for a sink.
        """
        life = self._life
        if life is None or not life.is_up or life.container is None:
            return "the service is not up"
        snapshot = life.container.observer().snapshot()
        if snapshot.status != "healthy":
            return f"health is {snapshot.status}: {'; '.join(snapshot.reasons)}"
        if snapshot.gaps.open:
            return f"{snapshot.gaps.open} gaps are open"
        if not snapshot.connection.is_subscribed:
            return "not connected"
        breakers = [snapshot.circuit_breaker.state, *(sink.breaker for sink in snapshot.sinks)]
        if set(breakers) != {"closed"}:  # a connection must last for a while first
            return f"breakers are {breakers}"
        most = 0 if self.are_changes_over else _HELD_S * self.plan.events_per_s
        held = {sink.name: sink.held for sink in snapshot.sinks if sink.held > most}
        return f"points wait for {held}" if held else None

    async def _changes(self) -> None:
        """Change entities at random moments, often several at once."""
        self.are_changes_over = False
        chance = random.Random(f"changes {self.plan.seed}")
        while not self.are_changes_over:
            await asyncio.sleep(chance.expovariate(self.plan.events_per_s / 2))
            for _ in range(chance.choice((1, 1, 1, 2, 5))):
                if self.is_home_assistant_up and not self.are_changes_over:
                    self.house.change()

    async def _commits(self) -> None:
        """Let the recorder commit in its interval."""
        while True:
            await asyncio.sleep(_COMMIT_S)
            self.house.commit()

    async def _polls(self) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            if self._is_up():
                health = await check_meanwhile(self)
                apart = datetime.fromisoformat(health["timestamp"]).timestamp() - self.home_clock()
                self.clocks_apart_s = max(self.clocks_apart_s, abs(apart))

    # --- the service

    def start(self) -> None:
        """Start the service on the folder that the last process left."""
        folder = self._folder / f"life-{self._lives}"
        self._lives += 1
        life = self._life = Life(folder, self.sinks)
        for sink in sorted(life.sinks):
            self.sinks_since.setdefault(sink, self._order)
        life.disk.error = self.disk_error
        self.filter.changed(self.loop.time(), is_certain=True)
        self.database.not_before = 0.0
        self._uncommitted.clear()
        context = contextvars.copy_context()
        context.run(PROCESS.set, life.process)
        life.task = context.run(self.loop.create_task, self._live(life), name="service")

    async def start_again(self, after_s: float) -> None:
        """Start the service after a while, unless something else did."""
        lives = self._lives
        await asyncio.sleep(0.01 if self.is_calm else after_s)
        if lives == self._lives and self._life is None:
            self.restarts += 1
            self.start()

    def crash(self, where: str = "") -> None:
        """Kill the service; its files stay as they are on disk."""
        life = self._life
        if life is None:
            return
        self._life = None
        stage = ""
        if life.stop.is_set():
            stage = " while it stops"
        elif not life.is_up:
            stage = " while it starts"
        self.note(f"the service is killed{where}{stage}")
        self.service_kills_ns.append(int(self.home_clock() * 1e9))
        self.loop.kill(life.process)
        for lines in self._in_flight:
            self._capture(lines)
        self._in_flight.clear()
        if life.folder.exists():
            shutil.copytree(life.folder, self._folder / f"life-{self._lives}", dirs_exist_ok=True)

    async def crash_in_statement(self, number: int) -> bool:
        """Kill the service inside the statement with this number from now; False if none came."""
        life = self._life
        if life is None:
            return False
        life.disk.killed = partial(self.crash, " inside a statement")
        life.disk.kill_at = life.disk.statements + number
        for _ in range(60):
            await asyncio.sleep(1.0)
            if life.process.is_dead:
                return True
        life.disk.kill_at = None
        return life.process.is_dead

    async def crash_between_steps(self, resumption: int) -> None:
        """Kill the service just before so many times that one of its tasks continues."""
        if self._life is None:
            return
        process = self.life.process
        self.loop.arm(process, resumption, partial(self.crash, " between two steps"))
        for _ in range(600):
            await asyncio.sleep(0.1)
            if process.is_dead or self.is_calm:
                break
        self.loop.disarm()

    def change_filter(self, name: str) -> None:
        """Change the rules: in their file at once, in their setting at the next start."""
        self.filter.wanted = name
        if self.plan.is_filter_in_file:
            self._write_filter()
            self.filter.changed(self.loop.time(), is_certain=False)

    def _write_filter(self) -> None:
        path = self._folder / "filter.json"
        path.write_text(self.filter.config)
        moment_ns = int(self.loop.time() * 1e9)
        os.utime(path, ns=(moment_ns, moment_ns))  # the service sees a change by the time

    def fail_disk(self, error: DiskError | None) -> None:
        """Let every statement that writes fail with this error; None ends that."""
        self.disk_faults += error is not None
        self.disk_error = error
        if self._life is not None:
            self._life.disk.error = error

    async def terminate(self) -> None:
        """Stop the service in order, as after SIGTERM."""
        life = self._life
        if life is None or life.task is None:
            return
        self.note("SIGTERM")
        life.is_stop_slow = self.loop.work_factor > 1.0
        life.stop.set()
        await self._until_ended(life.task)
        if life.process.is_dead:
            return
        if not life.task.done():
            raise Violation("liveness: the service does not stop within 30 s of SIGTERM")
        self._life = None
        shutil.copytree(life.folder, self._folder / f"life-{self._lives}", dirs_exist_ok=True)

    async def _until_ended(self, task: asyncio.Task[None]) -> None:
        """Wait 30 s for the end of a process, not counting the time while the disk is slow.

        What a thread writes cannot be interrupted, and a statement may then take many seconds.
        """
        left_s = 30.0
        while left_s > 0 and not task.done():
            await asyncio.wait([task], timeout=1.0)
            left_s -= self.loop.work_factor == 1.0

    async def _live(self, life: Life) -> None:
        try:
            container = Container(settings=self._settings_of(life))
            supervisor = providers.Singleton(
                Supervisor,
                grace_s=container.settings().resilience.shutdown_timeout_s,
                on_failure=life.stop.set,
            )
            container.supervisor.override(supervisor)
            self._observe_gaps(container.coverage())
            self._observe(container)  # first: others may keep its bound methods
            container.observer().usage = ProcessUsage(
                cast("psutil.Process", _Idle()), times=lambda: (0.0, 0.0)
            )
            life.container = container
            async with running(container):
                life.is_up = True
                app = create_app(container)
                life.client = httpx.AsyncClient(
                    transport=httpx.ASGITransport(app, client=("127.0.0.1", 50_000)),
                    base_url="http://localhost:8001",
                )
                await life.stop.wait()
                flushes = self._flushes(container)
                container.supervisor().begin_stop()
                container.supervisor().cancel("source")
            life.is_up = False
            if failures := dict(container.supervisor().failures):
                self.fail(Violation(f"a loop of the service ended: {failures}"))
            left = container.batcher().pending_points
            is_slow = life.is_stop_slow or self.loop.work_factor > 1.0
            if left and not is_slow and not self.disk_faults:
                self.fail(Violation(f"conservation: {left} events were not committed at SIGTERM"))
            if flushes and flushes == self._flushes(container) and not is_slow:
                self._check_flushed()
        except StorageError as exc:
            life.is_up = False
            if not self.disk_faults:
                self.fail(exc)
                return
            self.note(f"the service cannot start: {exc}")
            self._life = None
            shutil.copytree(life.folder, self._folder / f"life-{self._lives}", dirs_exist_ok=True)
            self.spawn(self.start_again(_RESTART_S))
        except Exception as exc:  # noqa: BLE001 - the service must not end with any other
            life.is_up = False
            self.fail(exc)

    def _flushes(self, container: Container) -> tuple[int, ...]:
        """Return what must stay the same during a stop that sends everything; empty if one may not.

        That is the number of faults on the way to the database, which takes writes.
        """
        database, link = self.database, self.database_link
        sinks = {sink.name: sink for sink in container.observer().snapshot().sinks}
        sink = sinks.get("influxdb")
        is_well = sink is not None and (sink.state, sink.breaker) == ("ok", "closed")
        is_disturbed = link.is_disturbed or not database.takes_writes or self.disk_faults
        return (1, link.resets, link.halves) if is_well and not is_disturbed else ()

    def _check_flushed(self) -> None:
        """An orderly stop sends what is journaled to a database that takes it."""
        stored, refused = self.database.stored, self.database.in_refused_requests
        since = self.sinks_since["influxdb"]
        late = [line for line, (_, last) in self.acknowledged.items() if last > since]
        left = [line for line in late if identity(line) not in stored]
        if left := [line for line in left if line not in refused]:
            self.fail(
                Violation(f"delivery: {len(left)} lines were not sent at SIGTERM: {left[:2]}")
            )

    def _observe(self, container: Container) -> None:
        """Note which points the journal makes durable, in their order."""
        self._observe_filter(container)
        journal = container.journal()
        append, append_uncommitted, commit = (
            journal.append,
            journal.append_uncommitted,
            journal.commit,
        )

        async def observed_append(lines: Lines, **options: Any) -> None:
            split = lines.split()
            self._in_flight.append(split)
            try:
                await append(lines, **options)
                self._acknowledge(split)
            except asyncio.CancelledError:
                self._capture(split)  # a stop that ran out of time; a thread may still commit them
                raise
            finally:
                self._in_flight.remove(split)

        async def observed_append_uncommitted(lines: Lines, **options: Any) -> None:
            await append_uncommitted(lines, **options)
            split = lines.split()
            self._uncommitted += split
            self.uncommitted.update(filter(None, map(identity_of, split)))

        async def observed_commit() -> None:
            await commit()
            self._acknowledge(self._uncommitted)
            self._uncommitted.clear()

        for name, observed in {
            "append": observed_append,
            "append_uncommitted": observed_append_uncommitted,
            "commit": observed_commit,
        }.items():
            setattr(journal, name, observed)

    def _observe_gaps(self, coverage: Coverage) -> None:
        """Note when gaps are closed."""
        close = coverage.close

        def observed_close(gap: Gap, state: Any, *, detail: str | None) -> Gap:
            self.closed_s[gap.id] = self.loop.time()
            if state == "unfillable":
                self.given_up[gap.id] = gap
            return close(gap, state, detail=detail)

        vars(coverage)["close"] = observed_close

    def _observe_filter(self, container: Container) -> None:
        """Note which changes the filter is asked about, and compare its answers with the rules."""
        entity_filter = container.entity_filter()
        assert entity_filter is not None
        selected = entity_filter.selected

        def observed_selected(changes: Sequence[Change]) -> list[Change]:
            passed = selected(changes)
            if (wrong := self.filter.judge(changes, passed, self.loop.time())) is not None:
                self.fail(Violation(f"filter: {wrong}"))
            return passed

        vars(entity_filter)["selected"] = observed_selected

    def _capture(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            if (identity := identity_of(line)) is not None:
                self.captured.setdefault(identity, self.loop.time())
                if b"backfilled=true" not in line:
                    self.live.add(identity)

    def _acknowledge(self, lines: Sequence[bytes]) -> None:
        self._capture(lines)
        if any(b"backfilled=true" in line for line in lines):
            self._read_back.set()
            self._read_back.clear()
        for line in lines:
            self._order += 1
            first, _ = self.acknowledged.get(line, (self._order, 0))
            self.acknowledged[line] = (first, self._order)

    # --- Home Assistant

    async def restart_home_assistant(
        self, *, down_s: float, starting_s: float, is_clean: bool
    ) -> None:
        """Stop or kill Home Assistant, and start it again."""
        is_starting = self.house.state != "RUNNING"
        if not self.is_home_assistant_up or (is_starting and not is_clean):
            return  # a start that is killed before it is complete leaves no mark at all
        self.is_home_assistant_up = False
        self.house.stop(is_clean=is_clean)
        if is_clean:
            await self.home_assistant.__aexit__()
        else:
            self.home_assistant.abort()
            self.home_link.cut()
            await self.home_assistant.__aexit__()
        self.house.fire = None
        await asyncio.sleep(min(down_s, 5.0) if self.is_calm else down_s)
        await self.home_assistant.__aenter__()
        self.house.fire = self.home_assistant.fire
        self.house.begin()
        if self.house.recorder_.is_present:
            self.home_assistant.unknown_commands -= _RECORDER_COMMANDS
        else:
            self.home_assistant.unknown_commands |= _RECORDER_COMMANDS
        self.is_home_assistant_up = True
        await asyncio.sleep(min(starting_s, 5.0) if self.is_calm else starting_s)
        if self.is_home_assistant_up and self.house.state != "RUNNING":
            self.house.started()

    # --- parts

    def link(self, name: str) -> Link:
        """Return the link to Home Assistant (`home`) or to the database."""
        return self.home_link if name == "home" else self.database_link

    def note(self, text: str) -> None:
        """Add a line to the log of this run."""
        self.log.append(f"{self.loop.time():10.3f}  {text}")

    def fail(self, exc: BaseException) -> None:
        """End the run with this error."""
        self._failure = self._failure or exc

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run something beside the rest; its failure ends the run."""
        task = self.loop.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            self.fail(exc)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _is_up(self) -> bool:
        return self._life is not None and self._life.is_up

    async def until_gap_is_open(self) -> None:
        """Wait for an open gap, but not for long."""
        for _ in range(600):
            if self.is_calm or self.coverage.open_gaps():
                return
            await asyncio.sleep(1.0)

    async def until_read_back(self, appends: int) -> bool:
        """Wait until the journal has so many more appends of what was read back.

        Not for long; return whether it has.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_READ_BACK_WITHIN_S):
                for _ in range(appends):
                    await self._read_back.wait()
                return not self.is_calm
        return False

    def set_home_clock(self, jump_s: float) -> None:
        """Set the clock of Home Assistant."""
        from_ns = int(self.home_clock() * 1e9)
        self.home_clock_offset_s += jump_s
        to_ns = int(self.home_clock() * 1e9)
        self.clock_sets.append(ClockSet(self.loop.time(), from_ns, to_ns))

    @property
    def coverage(self) -> Coverage:
        """That of the running process, or an empty one."""
        life = self._life
        if life is None or life.container is None:
            return Coverage()
        return life.container.coverage()

    async def _until_streaming(self) -> None:
        await self._until(
            lambda: self._is_up() and self.home_assistant.subscribers > 0, 60, "stream events"
        )

    async def _until(self, condition: Any, within_s: float, what: str) -> None:
        deadline = self.loop.time() + within_s
        while not condition():
            self._raise_failure()
            if self.loop.time() > deadline:
                raise Violation(f"liveness: did not {what} within {within_s:g} s")
            await asyncio.sleep(0.5)

    @property
    def lives(self) -> int:
        """How many processes of the service there were."""
        return self._lives

    @property
    def life(self) -> Life:
        """The running process."""
        assert self._life is not None
        return self._life

    def home_clock(self) -> float:
        """Return the time of day on the clock of Home Assistant."""
        return clocks.EPOCH_S + self.loop.time() + self.home_clock_offset_s

    def _settings_of(self, life: Life) -> Any:
        os.environ.update(self._settings(life))
        return load_settings(None)

    def _settings(self, life: Life) -> Mapping[str, str]:
        in_file = self.plan.is_filter_in_file
        return {
            "DATA_DIR": str(life.folder),
            "ENTITY_FILTER_CONFIG": "" if in_file else self.filter.config,
            "ENTITY_FILTER_CONFIG_FILE": str(self._folder / "filter.json") if in_file else "",
            "HOME_ASSISTANT_URL": f"http://127.0.0.1:{_HOME_PORT}",
            "HOME_ASSISTANT_TOKEN": _TOKEN,
            "INFLUXDB_URL": f"http://127.0.0.1:{PORT}" if "influxdb" in life.sinks else "",
            "INFLUXDB_API": self.database.version,
            "INFLUXDB_TOKEN": self.database.token,
            "EMBEDDED_STORE": "on" if "embedded" in life.sinks else "off",
            "JOURNAL_MIN_FREE_MB": "0",
            "MAX_MEMORY_MB": "100000",
        }


async def _socket_to(addr_infos: Sequence[Any], **_: Any) -> Socket:
    """Stand for aiohttp's way to connect a real socket; the loop connects it."""
    return Socket(addr_infos[0][4][:2])


class _Idle:
    """Stands for this process, whose memory is of no interest."""

    def memory_info(self) -> _Idle:
        """Return something with `rss`."""
        return self

    rss = 0


class _Log(logging.Handler):
    """Collects log records with their virtual time."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        """Note a record; an unhandled error of the product fails the run."""
        text = record.getMessage()
        self._world.note(f"{record.levelname:8} {record.name.removeprefix('app.')}: {text}")
        if record.exc_info:
            formatter = logging.Formatter()
            self._world.log.append(formatter.formatException(record.exc_info))
        if "Unhandled error" in text or "failed while stopping" in text:
            self._world.fail(Violation(f"the service logged: {text}"))
