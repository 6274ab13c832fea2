"""An asyncio event loop in virtual time: waiting costs nothing, and a seed decides every order."""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextvars import Context, ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.simulation import disk
from tests.simulation.disk import Crash, Disk
from tests.simulation.network import Network, Server

PROCESS: ContextVar[Process | None] = ContextVar("PROCESS", default=None)
"""The simulated process that the running code belongs to; None for its surroundings."""

_PERMUTED = 0.2
"""How often tasks that are ready at the same moment change places."""
_WORK_S = 0.002
_LONG_WORK = 0.02


class Deadlock(Exception):
    """Nothing is ready and nothing is scheduled: the simulation would wait forever."""


class DiskUsage(NamedTuple):
    """What `shutil.disk_usage` returns."""

    total: int
    used: int
    free: int


class Process:
    """One life of the service: its tasks stop at a crash, without any clean-up."""

    def __init__(self) -> None:
        self.disk = Disk()
        self.is_dead = False
        self.tasks: set[SimulatedTask] = set()


@dataclass(slots=True)
class _Armed:
    """What happens at a later step of a process."""

    process: Process
    left: int
    """How many times its tasks continue before."""
    act: Callable[[], None]


class SimulatedTask(asyncio.Task[Any]):
    """A task with a hash of its own: sets of tasks then have the same order in every run."""

    def __init__(self, coro: Any, *, loop: SimulatedLoop, **options: Any) -> None:
        self.number = next(loop.numbers)
        super().__init__(coro, loop=loop, **options)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class SimulatedLoop(asyncio.BaseEventLoop):
    """Time advances only when nothing is ready."""

    # Of the base class, which the stubs do not show.
    _ready: deque[Any]
    _scheduled: list[Any]

    def __init__(self, chance: random.Random) -> None:
        self.numbers = iter(range(1, 10**12))
        self.chance = chance
        self.clock_offset_s = 0.0
        self.work_factor = 1.0
        """How much longer than usual the work of threads takes, as on a slow disk."""
        self.longest_work_s = 0.0
        """The longest time that any of it has taken."""
        self.steps = 0
        self.errors: list[str] = []
        """What reached the loop's exception handler."""
        self.network = Network(self)
        self._now = 0.0
        self._trace = hashlib.blake2b(digest_size=8)
        self._free_at: dict[Executor, float] = {}
        self._graveyard: list[object] = []
        self._armed: _Armed | None = None
        super().__init__()
        self._selector = self
        self.set_task_factory(_new_task)  # type: ignore[arg-type]
        self.set_exception_handler(_noted)

    # --- time, and the order of what is ready

    def time(self) -> float:
        """Return the virtual time in seconds since the start."""
        return self._now

    @property
    def trace(self) -> str:
        """A hash of what ran and when: the same for the same seed."""
        return self._trace.hexdigest()

    def note(self, *facts: object) -> None:
        """Add facts to the trace."""
        self._trace.update(repr(facts).encode())

    def select(self, timeout: float | None) -> list[object]:
        """Advance the time to the next timer, in place of waiting for sockets."""
        if timeout is None:
            raise Deadlock("nothing is ready and nothing is scheduled")
        if timeout > 0:
            self._now = max(self._now + timeout, min(h._when for h in self._scheduled[:1]))
        ready = self._ready
        self.steps += len(ready)
        if self._armed is not None:
            self._count_resumptions(self._armed)
        if len(ready) > 1 and self.chance.random() < _PERMUTED:
            self._permute()
        self._trace.update(b"%d %.9f;" % (len(ready), self._now))
        return []

    def arm(self, process: Process, resumption: int, act: Callable[[], None]) -> None:
        """Call `act` just before one of the next times that a task of this process continues."""
        self._armed = _Armed(process, resumption, act)

    def disarm(self) -> None:
        """Forget what `arm` was asked for."""
        self._armed = None

    def _count_resumptions(self, armed: _Armed) -> None:
        for place, handle in enumerate(self._ready):
            if handle._context.get(PROCESS) is armed.process and _task_of(handle) is not None:
                armed.left -= 1
                if armed.left <= 0:
                    self._armed = None
                    self._ready.insert(place, asyncio.Handle(armed.act, (), self, Context()))
                    return

    def _permute(self) -> None:
        """Let tasks change places; other callbacks keep theirs, as asyncio guarantees."""
        places = [place for place, handle in enumerate(self._ready) if _task_of(handle) is not None]
        handles = [self._ready[place] for place in places]
        self.chance.shuffle(handles)
        for place, handle in zip(places, handles, strict=True):
            self._ready[place] = handle

    def _process_events(self, event_list: list[object]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    # --- threads

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Run the work on the loop, after a while; the work of one thread in its order."""
        future = self.create_future()
        chance = self.chance
        wait_s = chance.random() * _WORK_S * self.work_factor
        if chance.random() < _LONG_WORK:
            wait_s *= 50
        self.longest_work_s = max(self.longest_work_s, wait_s)
        start = self._now
        if executor is not None:
            start = max(start, self._free_at.get(executor, 0.0))
            self._free_at[executor] = start + wait_s + 1e-6
        # What is cancelled before it starts never runs; later cancellation does not stop it.
        self.call_at(start + wait_s / 2, self._work, future, start + wait_s, func, args)
        return future

    def _work(
        self,
        future: asyncio.Future[Any],
        done_at: float,
        func: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> None:
        if future.cancelled():
            return
        try:
            result = func(*args)
        except Crash:
            return
        except Exception as exc:  # noqa: BLE001 - as an executor does
            self.call_at(done_at, _fail, future, exc)
        else:
            self.call_at(done_at, _finish, future, result)

    # --- the network

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> list[Any]:
        """Resolve a name to itself."""
        return [(2, 1, 6, "", (host, port))]

    async def create_connection(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str | None = None,
        port: int | None = None,
        *,
        sock: Any = None,
        **_: Any,
    ) -> Any:
        """Connect within the simulated network."""
        if sock is not None:
            host, port = sock.address
        assert host is not None
        assert port is not None
        return await self.network.connect(protocol_factory, host, port)

    async def create_server(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str | None = None,
        port: int | None = None,
        **_: Any,
    ) -> Server:
        """Listen within the simulated network."""
        assert host is not None
        return self.network.listen(protocol_factory, host, port or 0)

    def add_reader(self, *_: Any) -> None:  # type: ignore[override]
        """Ignore: there is no socket."""

    def remove_reader(self, *_: Any) -> bool:
        """Ignore: there is no socket."""
        return False

    # --- processes

    def disk_usage(self, path: object) -> DiskUsage:
        """Return the space on the disk of the process that asks."""
        process = PROCESS.get()
        return DiskUsage(*((10**12, 0, 10**12) if process is None else process.disk.usage))

    def connect(self, real: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Open a SQLite database, on the disk of the process that does."""
        process = PROCESS.get()
        if process is None:
            return real(*args, **options)
        return disk.connect(process.disk, real, *args, **options)

    def kill(self, process: Process) -> None:
        """End a process at once: nothing of it runs any more, and its connections break."""
        process.is_dead = True
        # Collecting a suspended coroutine would run its `finally` blocks.
        self._graveyard += [process, *process.tasks]
        for handle in [*self._ready, *self._scheduled]:
            if handle._context.get(PROCESS) is process and not handle._cancelled:
                self._graveyard.append(handle._args)
                handle.cancel()
        self.network.kill(process)

    def forget(self) -> None:
        """Drop what is left without running it."""
        self._graveyard += [*self._ready, *self._scheduled, *asyncio.all_tasks(self)]
        self._ready.clear()
        self._scheduled.clear()
        heapq.heapify(self._scheduled)


def _new_task(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any
) -> SimulatedTask:
    assert isinstance(loop, SimulatedLoop)
    task = SimulatedTask(coro, loop=loop, **options)
    context: Context | None = options.get("context")
    process = PROCESS.get() if context is None else context.get(PROCESS)
    if process is not None:
        process.tasks.add(task)
        task.add_done_callback(process.tasks.discard)
    return task


def _task_of(handle: asyncio.Handle) -> asyncio.Task[Any] | None:
    """Return the task that a handle resumes."""
    owner = getattr(handle._callback, "__self__", None)  # type: ignore[attr-defined]
    return owner if isinstance(owner, asyncio.Task) else None


def _noted(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    assert isinstance(loop, SimulatedLoop)
    loop.errors.append(f"{context.get('message')}: {context.get('exception')!r}")
    loop.default_exception_handler(context)


def _finish(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], exc: Exception) -> None:
    if not future.done():
        future.set_exception(exc)
