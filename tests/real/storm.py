"""A storm: faults of the service and everything around it, in an order drawn from a seed.

The service runs between a real Home Assistant and a real InfluxDB, behind a TCP proxy on each
side. Every fault leaves all of them running again, except for those that continue in the
background for some seconds: a locked recorder, a slow or a silent link. Those overlap the faults
that follow.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from dataclasses import dataclass
from datetime import UTC, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from typing import Any

from tests.fakes.tcp_proxy import TcpProxy
from tests.real.reconcile import History, clock
from tests.real.servers import HomeAssistant, Server
from tests.service.process import Service, service

Fault = Callable[[], Awaitable[None]]

_PREFIX = "sensor.registered_"
_FEW_ROWS = 20
_COMMITS_S = 4.0
"""A few commit intervals of the recorder."""
_REGISTRY_SAVED_S = 12.0
"""Home Assistant saves its registries 10 s after a change."""


@dataclass(frozen=True, slots=True)
class Action:
    """One action of the storm."""

    time_ns: int
    what: str

    def __str__(self) -> str:
        return f"{clock(self.time_ns)} {self.what}"


class Storm:
    """The service, its two dependencies, the links between them, and their faults."""

    def __init__(
        self,
        folder: Path,
        home_assistant: HomeAssistant,
        influx: Server,
        *,
        seed: int,
        longest_lock_s: float,
    ) -> None:
        self.actions: list[Action] = []
        self.done: Counter[str] = Counter()
        self.kills_ns: list[int] = []
        self._service_kills_ns: list[int] = []
        self.since_ns = 0
        """Start of the time range in which every change must be captured."""
        self.until_ns = 0
        """End of that time range: everything is captured, and committed by the recorder."""
        self.renames: dict[str, str] = {}
        self._renamed_at = -math.inf
        self.present: list[str] = []
        self._folder = folder
        self._home_assistant = home_assistant
        self._influx = influx
        self._chance = random.Random(seed)
        self._longest_lock_s = longest_lock_s
        self._life = contextlib.AsyncExitStack()
        self._running: Service | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._recorder_lock = asyncio.Lock()
        """Held while the recorder's database is locked: Home Assistant could not stop cleanly."""
        self._home_link = TcpProxy(_port(home_assistant.url))
        self._database_link = TcpProxy(_port(influx.url))

    @contextlib.asynccontextmanager
    async def ready(self) -> AsyncIterator[None]:
        """Run the links and the service; the block begins once events stream.

        At its first start the service finds no Home Assistant; everything that happens after the
        start of Home Assistant must be captured.
        """
        async with self._home_link, self._database_link:
            await asyncio.to_thread(self._home_assistant.server.stop)
            self.since_ns = time.time_ns()
            await self._start_service()
            await asyncio.to_thread(self._home_assistant.start)
            await self._until(_streams)
            try:
                yield
            finally:
                for task in self._background:
                    task.cancel()
                await asyncio.gather(*self._background, return_exceptions=True)
                await self._life.aclose()

    async def rage(self, seconds: float) -> None:
        """Inject faults until the time is up and each occurred at least once."""
        deadline = time.monotonic() + seconds
        deck: list[Fault] = []
        while deck or time.monotonic() < deadline:
            if not deck:
                deck = self._faults()
                self._chance.shuffle(deck)
            await asyncio.sleep(self._chance.uniform(0.3, 2.5))
            fault = deck.pop()
            self.done[fault.__name__] += 1
            await fault()
            if time.monotonic() > deadline and len(self.done) == len(self._faults()):
                break

    async def calm(self) -> Any:
        """End the storm, let everything settle, stop the service; return its last health."""
        await asyncio.gather(*self._background)
        self._home_link.restore()
        self._database_link.restore()
        self._note("calm")
        await asyncio.to_thread(self._home_assistant.act, "load_generator", "pause")
        self.until_ns = time.time_ns()
        await self._until_recorded()
        await asyncio.sleep(_COMMITS_S)
        states = await self._call("get_states")
        assert isinstance(states, list)
        self.present = [state["entity_id"] for state in states]
        health = await self._until(_settled, timeout_s=300 + 2 * self._longest_lock_s)
        await self._end_service(signal.SIGTERM)
        return health

    def history(self) -> History:
        """Return what the comparison needs to know about the storm."""
        return History(
            renames=self.renames,
            present=self.present,
            kills_ns=self.kills_ns,
            service_kills_ns=self._service_kills_ns,
        )

    def _faults(self) -> list[Fault]:
        return [
            self.kill_service,
            self.stop_service,
            self.suspend_service,
            self.suspend_service_while_it_reconnects,
            self.kill_home_assistant,
            self.restart_home_assistant,
            self.restart_home_assistant_without_service,
            self.kill_influxdb,
            self.restart_influxdb,
            self.suspend_influxdb,
            self.cut_home_link,
            self.freeze_home_link,
            self.delay_home_handshake,
            self.skew_date_header,
            self.slow_home_link,
            self.cut_database_link,
            self.freeze_database_link,
            self.slow_database_link,
            self.lock_recorder_from_outside,
            self.lock_recorder_as_a_backup_does,
            self.lock_recorder_and_cut_home_link,
            self.rename_entity,
            self.rename_entity_without_service,
            self.move_area,
            self.remove_entity,
        ]

    # --- the service

    async def kill_service(self) -> None:
        """Kill it, like a power cut, and start it again."""
        await self._without_service(signal.SIGKILL, self._chance.uniform(0, 6))

    async def stop_service(self) -> None:
        """Stop it gracefully, and start it again."""
        await self._without_service(signal.SIGTERM, self._chance.uniform(0, 6))

    async def suspend_service(self) -> None:
        """Suspend the whole process for a while, like a busy host or a VM snapshot."""
        seconds = self._chance.uniform(2, 8)
        self._note(f"suspend the service for {seconds:.1f} s")
        assert self._running is not None
        self._running.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        self._running.process.send_signal(signal.SIGCONT)

    async def suspend_service_while_it_reconnects(self) -> None:
        """Cut its connection and suspend the process a moment later."""
        await self.cut_home_link()
        await asyncio.sleep(self._chance.uniform(0, 2))
        await self.suspend_service()

    async def _without_service(
        self, number: signal.Signals, seconds: float, meanwhile: Fault | None = None
    ) -> None:
        self._note(f"{number.name} to the service, for {seconds:.1f} s")
        await self._end_service(number)
        if meanwhile is not None:
            await meanwhile()
        await asyncio.sleep(seconds)
        await self._start_service()
        self._note("the service runs")

    async def _start_service(self) -> None:
        settings = {
            "HOME_ASSISTANT_URL": f"http://127.0.0.1:{self._home_link.port}",
            "HOME_ASSISTANT_TOKEN": self._home_assistant.read_only_token,
            "INFLUXDB_URL": f"http://127.0.0.1:{self._database_link.port}",
            "INFLUXDB_API": "v1",
            "INFLUXDB_TIMEOUT": "5",
            "BATCH_TIMEOUT": "0.5",
            "WEBSOCKET_MAX_RETRY_DELAY": "3",
            "CIRCUIT_BREAKER_RESET_SECONDS": "2",
        }
        self._running = await self._life.enter_async_context(service(self._folder, settings))

    async def _end_service(self, number: signal.Signals) -> None:
        assert self._running is not None
        await self._running.stop(number)
        if number == signal.SIGKILL:
            self._service_kills_ns.append(time.time_ns())
        await self._life.aclose()

    async def _until(self, condition: Callable[[Any], bool], *, timeout_s: float = 300) -> Any:
        assert self._running is not None
        return await self._running.until("/health", condition, timeout_s=timeout_s)

    # --- Home Assistant and its recorder

    async def kill_home_assistant(self) -> None:
        """Kill it, like a power cut, and start it again."""
        # A kill would undo a rename in the unsaved registry, but not in the recorder.
        await asyncio.sleep(self._renamed_at + _REGISTRY_SAVED_S - time.monotonic())
        async with self._recorder_lock:
            self._note("kill Home Assistant")
            await asyncio.to_thread(self._home_assistant.server.kill)
            self.kills_ns.append(time.time_ns())
            await asyncio.to_thread(self._home_assistant.start)
            self._note("Home Assistant runs")

    async def restart_home_assistant(self) -> None:
        """Stop it gracefully, and start it again."""
        async with self._recorder_lock:
            self._note("restart Home Assistant")
            if await asyncio.to_thread(self._home_assistant.server.stop) == -signal.SIGKILL:
                self.kills_ns.append(time.time_ns())  # it did not stop in time
            await asyncio.to_thread(self._home_assistant.start)
            self._note("Home Assistant runs")

    async def restart_home_assistant_without_service(self) -> None:
        """Restart it while the service is down."""
        await self._without_service(
            self._signal(), self._chance.uniform(0, 3), self.restart_home_assistant
        )

    async def lock_recorder_from_outside(self) -> None:
        """Hold an exclusive lock on the recorder's database, as another program may."""
        # After more than 30 s of retries Home Assistant gives up and loses rows.
        seconds = self._chance.uniform(8, min(30, self._longest_lock_s))

        def hold() -> None:
            with contextlib.closing(
                sqlite3.connect(self._home_assistant.recorder_database, timeout=20)
            ) as database:
                database.execute("BEGIN EXCLUSIVE")
                time.sleep(seconds)
                database.rollback()

        await self._lock_recorder(lambda: asyncio.to_thread(hold), seconds, "from outside")

    async def lock_recorder_as_a_backup_does(self) -> None:
        """Have Home Assistant itself pause its recorder, for longer."""
        seconds = self._chance.uniform(10, self._longest_lock_s)

        async def hold() -> None:
            await asyncio.to_thread(
                self._home_assistant.act,
                "load_generator",
                "lock_recorder",
                timeout_s=seconds + 60,
                seconds=seconds,
            )

        await self._lock_recorder(hold, seconds, "as a backup does")

    async def lock_recorder_and_cut_home_link(self) -> None:
        """Open a gap that the recorder cannot fill yet."""
        await self.lock_recorder_as_a_backup_does()
        await asyncio.sleep(self._chance.uniform(2, 5))
        await self.cut_home_link()

    async def _lock_recorder(self, hold: Fault, seconds: float, how: str) -> None:
        await self._recorder_lock.acquire()

        async def locked() -> None:
            try:
                await hold()
                self._note("the recorder is unlocked")
                await self._until_recorded()
                self._note("the recorder has caught up")
            finally:
                self._recorder_lock.release()

        self._note(f"lock the recorder {how} for {seconds:.0f} s")
        self._in_background(locked(), "storm.lock")

    async def _until_recorded(self) -> None:
        """Wait until the recorder has written nearly all of its backlog."""
        async with asyncio.timeout(120 + self._longest_lock_s):
            while await self._backlog() > _FEW_ROWS:
                await asyncio.sleep(0.5)

    async def _backlog(self) -> int:
        info = await self._call("recorder/info")
        assert isinstance(info, dict)
        return int(info["backlog"])

    # --- InfluxDB

    async def kill_influxdb(self) -> None:
        """Kill it, like a power cut, and start it again."""
        self._note("kill InfluxDB")
        await asyncio.to_thread(self._influx.kill)
        await asyncio.sleep(self._chance.uniform(0, 4))
        await asyncio.to_thread(self._influx.start)

    async def restart_influxdb(self) -> None:
        """Stop it gracefully, and start it again."""
        self._note("restart InfluxDB")
        await asyncio.to_thread(self._influx.stop)
        await asyncio.sleep(self._chance.uniform(0, 4))
        await asyncio.to_thread(self._influx.start)

    async def suspend_influxdb(self) -> None:
        """Suspend it: it accepts connections and answers nothing for a while."""
        seconds = self._chance.uniform(3, 9)
        self._note(f"suspend InfluxDB for {seconds:.1f} s")
        self._influx.signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        self._influx.signal(signal.SIGCONT)

    # --- the links

    async def cut_home_link(self) -> None:
        """Reset the connections to Home Assistant."""
        self._note("cut the link to Home Assistant")
        self._home_link.cut()

    async def freeze_home_link(self) -> None:
        """Stop all traffic without closing, sometimes for longer than the ping timeout."""
        await self._freeze(self._home_link, "Home Assistant", self._chance.uniform(3, 28))

    async def delay_home_handshake(self) -> None:
        """Cut the link, and delay the answers to the next handshakes."""
        seconds = self._chance.uniform(1, 8)
        self._note(f"cut the link to Home Assistant, handshakes take {seconds:.1f} s")
        self._home_link.delay_s = seconds
        self._home_link.cut()
        self._in_background(self._restored(self._home_link, 2 * seconds), "storm.handshake")

    async def skew_date_header(self) -> None:
        """Cut the link, and change the `Date` header of the next handshakes, as a proxy may."""
        seconds = self._chance.choice([-3600, -30, -5, 5, 30, 3600])
        self._note(f"cut the link to Home Assistant, the Date header is {seconds:+d} s off")
        self._home_link.rewrite = lambda chunk: _skewed(chunk, seconds)
        self._home_link.cut()
        self._in_background(self._restored(self._home_link, 10), "storm.skew")

    async def slow_home_link(self) -> None:
        """Delay all traffic from and to Home Assistant."""
        await self._slow(self._home_link, "Home Assistant")

    async def cut_database_link(self) -> None:
        """Reset the connections to InfluxDB."""
        self._note("cut the link to InfluxDB")
        self._database_link.cut()

    async def freeze_database_link(self) -> None:
        """Stop all traffic without closing."""
        await self._freeze(self._database_link, "InfluxDB", self._chance.uniform(3, 12))

    async def slow_database_link(self) -> None:
        """Delay all traffic from and to InfluxDB."""
        await self._slow(self._database_link, "InfluxDB")

    async def _freeze(self, link: TcpProxy, name: str, seconds: float) -> None:
        ends_cut = self._chance.random() < 0.5
        self._note(f"freeze the link to {name} for {seconds:.1f} s" + ", then cut it" * ends_cut)
        link.freeze()
        await asyncio.sleep(seconds)
        if ends_cut:
            link.cut()
        link.thaw()

    async def _slow(self, link: TcpProxy, name: str) -> None:
        seconds = self._chance.uniform(5, 15)
        link.chunk_delay_s = self._chance.uniform(0.02, 0.5)
        link.bytes_per_s = self._chance.choice([None, 500_000])
        self._note(
            f"each chunk on the link to {name} takes {link.chunk_delay_s:.2f} s for {seconds:.0f} s"
        )
        self._in_background(self._restored(link, seconds), "storm.slow")

    async def _restored(self, link: TcpProxy, seconds: float) -> None:
        await asyncio.sleep(seconds)
        link.restore()

    # --- the registries

    async def rename_entity(self) -> None:
        """Give an entity another id, as a user does."""
        # An entity removed from the registry may come back under an earlier id.
        entity_id = await self._registered(besides=self.renames)
        renamed = f"{_PREFIX}renamed_{len(self.renames)}"
        self._note(f"rename {entity_id} to {renamed}")
        self.renames[entity_id] = renamed
        await self._call(
            "config/entity_registry/update", entity_id=entity_id, new_entity_id=renamed
        )
        self._renamed_at = time.monotonic()

    async def rename_entity_without_service(self) -> None:
        """Rename an entity while the service is down."""
        await self._without_service(self._signal(), self._chance.uniform(1, 4), self.rename_entity)

    async def move_area(self) -> None:
        """Move an entity to a new area."""
        entity_id = await self._registered()
        area = await self._call("config/area_registry/create", name=f"Area {time.time_ns()}")
        assert isinstance(area, dict)
        self._note(f"move {entity_id} to {area['area_id']}")
        await self._call(
            "config/entity_registry/update", entity_id=entity_id, area_id=area["area_id"]
        )

    async def remove_entity(self) -> None:
        """Remove an entity from the registry; it returns when Home Assistant starts."""
        entity_id = await self._registered()
        self._note(f"remove {entity_id}")
        await self._call("config/entity_registry/remove", entity_id=entity_id)

    async def _registered(self, *, besides: Container[str] = ()) -> str:
        rows = await self._call("config/entity_registry/list")
        assert isinstance(rows, list)
        names = sorted(
            name
            for row in rows
            if (name := row["entity_id"]).startswith(_PREFIX) and name not in besides
        )
        assert names, "no entity of the load generator is registered"
        return str(self._chance.choice(names))

    async def _call(self, command: str, **parameters: object) -> object:
        return await asyncio.to_thread(
            self._home_assistant.call, command, token=self._home_assistant.token, **parameters
        )

    # --- the log

    def _signal(self) -> signal.Signals:
        return self._chance.choice([signal.SIGTERM, signal.SIGKILL])

    def _in_background(self, work: Any, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _note(self, what: str) -> None:
        self.actions.append(Action(time.time_ns(), what))


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


def _streams(health: Any) -> bool:
    return bool(health["subscription"]["is_subscribed"] and health["discovery"]["last_refresh"])


def _settled(health: Any) -> bool:
    held = sum(sink["held"] for sink in health["sinks"])
    pending = health["accounting"]["events"]["pending"]
    return _streams(health) and not held and not pending and not health["gaps"]["open"]


def _skewed(chunk: bytes, seconds: int) -> bytes:
    """Return an answer whose `Date` header is off by this many seconds."""
    head, separator, rest = chunk.partition(b"\r\n\r\n")
    lines = [
        _skewed_line(line, seconds) if line.lower().startswith(b"date:") else line
        for line in head.split(b"\r\n")
    ]
    return b"\r\n".join(lines) + separator + rest


def _skewed_line(line: bytes, seconds: int) -> bytes:
    moment = parsedate_to_datetime(line.partition(b":")[2].decode().strip())
    shifted = moment.astimezone(UTC) + timedelta(seconds=seconds)
    return b"Date: " + format_datetime(shifted, usegmt=True).encode()
