"""Connections in memory: bytes arrive in order, after a seeded delay, unless a link has a fault."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import itertools
import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from tests.simulation.loop import Process, SimulatedLoop

_LATENCY_S = (0.0002, 0.004)
_HIGH_WATER = 65_536
_EOF = b""


class Link:
    """The way to one server, and its faults."""

    def __init__(self) -> None:
        self.is_refusing = False
        """New connections are refused."""
        self.is_silent = False
        """Nothing arrives, in either direction; it is delivered once the silence ends."""
        self.delay_factor = 1.0
        self.largest_piece: int | None = None
        """What is written arrives in pieces of at most so many bytes, each with its own delay."""
        self.cut_after: int | None = None
        """All connections are reset once so many more bytes have arrived."""
        self.resets = self.pieces = self.torn = self.halves = 0
        """Connections reset, writes that were split or torn, and ends that came from one side."""
        self.longest_s = 0.0
        """The longest time that anything has travelled."""
        self.ends: dict[Transport, None] = {}
        """Both ends of every open connection."""

    @property
    def is_disturbed(self) -> bool:
        """Whether anything may fail or take long."""
        is_cut = self.largest_piece is not None or self.cut_after is not None
        return self.is_refusing or self.is_silent or is_cut or self.delay_factor > 1.0

    def resume(self) -> None:
        """End all faults, and deliver what was held back."""
        self.is_refusing = self.is_silent = False
        self.delay_factor = 1.0
        self.largest_piece = self.cut_after = None
        for end in [*self.ends]:
            end.wake()

    def half_close(self, *, by_server: bool) -> None:
        """Let one side of every connection send its end while it still reads."""
        for end in [*self.ends]:
            if end.is_server is by_server:
                end.write_eof()

    def cut(self) -> None:
        """Reset every connection; both ends notice."""
        for end in [*self.ends]:
            end.reset()


class Server:
    """What `loop.create_server` returns."""

    def __init__(
        self, network: Network, factory: Callable[[], asyncio.BaseProtocol], address: Address
    ) -> None:
        self.factory = factory
        self.address = address
        self.context = contextvars.copy_context()
        self._network = network

    @property
    def sockets(self) -> tuple[Socket, ...]:
        """One that knows its address."""
        return (Socket(self.address),) if self.is_serving() else ()

    def is_serving(self) -> bool:
        """Whether it accepts connections."""
        return self._network.servers.get(self.address) is self

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop."""
        return self._network.loop

    async def start_serving(self) -> None:
        """Do nothing: it listens from the start."""

    def close(self) -> None:
        """Stop accepting connections."""
        if self.is_serving():
            del self._network.servers[self.address]

    async def wait_closed(self) -> None:
        """Do nothing."""


Address = tuple[str, int]


class Socket:
    """Stands for a socket where only its address is used."""

    family = socket.AF_INET

    def __init__(self, address: Address) -> None:
        self.address = address

    def getsockname(self) -> Address:
        """Return the address."""
        return self.address

    def fileno(self) -> int:
        """Return a number that no file has."""
        return -1

    def close(self) -> None:
        """Do nothing."""


class Network:
    """All servers by address, and the links to them."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self.loop = loop
        self.servers: dict[Address, Server] = {}
        self.links: dict[Address, Link] = {}
        self._ports = itertools.count(50_000)

    def link(self, address: Address) -> Link:
        """Return the link to an address."""
        return self.links.setdefault(address, Link())

    def listen(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> Server:
        """Accept connections at an address."""
        address = (host, port or next(self._ports))
        if address in self.servers:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        server = self.servers[address] = Server(self, factory, address)
        return server

    async def connect(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int
    ) -> tuple[Transport, asyncio.BaseProtocol]:
        """Open a connection, or fail as the link and the server decide."""
        link = self.link((host, port))
        await asyncio.sleep(self.delay_s(link))
        while link.is_silent:
            await asyncio.sleep(1.0)
        server = self.servers.get((host, port))
        if server is None or link.is_refusing:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"Connect call failed {(host, port)}")
        names = ("client", next(self._ports)), (host, port)
        near = Transport(self, link, contextvars.copy_context(), names)
        far = Transport(self, link, server.context.copy(), names[::-1])
        near.peer, far.peer = far, near
        far.set_protocol(far.context.run(server.factory))
        self.loop.call_soon(far.begin, context=far.context)
        near.set_protocol(factory())
        near.begin()
        return near, near.get_protocol()

    def delay_s(self, link: Link) -> float:
        """Return how long the next bytes travel."""
        delay_s = self.loop.chance.uniform(*_LATENCY_S) * link.delay_factor
        link.longest_s = max(link.longest_s, delay_s)
        return delay_s

    def kill(self, process: Process) -> None:
        """Break the connections of a process: what was written arrives, then the end."""
        from tests.simulation.loop import PROCESS  # noqa: PLC0415 - they know each other

        for link in self.links.values():
            for end in [*link.ends]:
                if end.context.get(PROCESS) is process:
                    end.die()


class Transport(asyncio.Transport):
    """One end of a connection."""

    peer: Transport

    def __init__(
        self,
        network: Network,
        link: Link,
        context: contextvars.Context,
        names: tuple[Address, Address],
    ) -> None:
        super().__init__({"sockname": names[0], "peername": names[1]})
        self.context = context
        self.is_server = names[0][0] != "client"
        self._network = network
        self._link = link
        self._protocol: Any = None
        self._incoming: deque[bytes] = deque()
        """What the peer has sent and the protocol has not received; the last may be the end."""
        self._due: deque[float] = deque()
        """When each of them arrives."""
        self._unread = 0
        self._limit = _HIGH_WATER
        self._is_paused = False
        self._is_blocked = False
        """Whether our own protocol was asked to pause writing."""
        self._has_ended = False
        """Whether the end has been sent, although reading goes on."""
        self._is_closing = False
        self._is_gone = False
        """Whether the protocol has been told that the connection is lost."""
        self._timer: asyncio.TimerHandle | None = None
        link.ends[self] = None

    # --- what protocols call

    def begin(self) -> None:
        """Tell the protocol that it is connected."""
        if not self._is_gone:
            self._protocol.connection_made(self)
            self.pump()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Set who receives."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return who receives."""
        return cast("asyncio.BaseProtocol", self._protocol)

    def is_closing(self) -> bool:
        """Whether it is closing or closed."""
        return self._is_closing

    def is_reading(self) -> bool:
        """Whether reading is not paused."""
        return not self._is_paused

    def pause_reading(self) -> None:
        """Hold back what arrives."""
        self._is_paused = True

    def resume_reading(self) -> None:
        """Deliver again."""
        self._is_paused = False
        self.wake()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set how much the peer may leave unread."""
        self._limit = _HIGH_WATER if high is None else max(high, _HIGH_WATER)

    def get_write_buffer_size(self) -> int:
        """Return how much the peer has not read."""
        return self.peer._unread if self._is_blocked else 0

    def write(self, data: Any) -> None:
        """Send bytes."""
        if self._is_closing or self._has_ended or not data:
            return
        size = self._link.largest_piece or len(data)
        self._link.pieces += len(data) > size
        for start in range(0, len(data), size):
            self._send(bytes(data[start : start + size]))
        peer = self.peer
        if peer._unread > self._limit and not self._is_blocked:
            self._is_blocked = True
            self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        """Half-closing works as with TCP."""
        return True

    def write_eof(self) -> None:
        """Say that no more bytes come."""
        if not (self._is_closing or self._has_ended):
            self._has_ended = True
            self._send(_EOF)

    def close(self) -> None:
        """Close after what was written has been sent."""
        if self._is_closing:
            return
        self._is_closing = True
        if not self._has_ended:
            self._send(_EOF)
        self._network.loop.call_soon(self._lose, None, context=self.context)

    def abort(self) -> None:
        """Reset the connection."""
        if self._is_gone:
            return
        self._is_closing = True
        self._network.loop.call_soon(self._lose, None, context=self.context)
        self.peer._reset_later()

    # --- what the network does

    def reset(self) -> None:
        """Lose the connection."""
        self._link.resets += 1
        self._is_closing = True
        error = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        self._network.loop.call_soon(self._lose, error, context=self.context)

    def wake(self) -> None:
        """Deliver what was held back."""
        self._schedule(self._network.loop.time())

    def die(self) -> None:
        """End without telling the protocol, because its process is dead."""
        if not self._is_gone:
            self._is_gone = self._is_closing = True
            self._link.ends.pop(self, None)
            if not self._has_ended:
                self._send(_EOF)
            self._timer = None  # it was cancelled with the process
            self.wake()

    def pump(self) -> None:
        """Deliver what is due."""
        self._timer = None
        loop = self._network.loop
        while self._incoming and not (self._is_paused or self._link.is_silent):
            if self._due[0] > loop.time() + 1e-9:
                self._schedule(self._due[0])
                return
            data = self._incoming.popleft()
            self._due.popleft()
            if self._is_gone:
                if data:
                    self.peer._reset_later()
                continue
            self._deliver(data)

    def _deliver(self, data: bytes) -> None:
        left = self._link.cut_after
        if data and left is not None:
            self._link.cut_after = left - len(data)
            if left <= len(data):
                self._link.cut_after = None
                self._link.torn += left < len(data)
                self._protocol.data_received(data[:left])
                self._link.cut()
                return
        if data:
            self._unread -= len(data)
            if self.peer._is_blocked and self._unread <= self.peer._limit // 4:
                self.peer._is_blocked = False
                self._network.loop.call_soon(self.peer._resume_writing, context=self.peer.context)
            self._protocol.data_received(data)
            return
        self._link.halves += not self.peer._is_closing
        if not self._protocol.eof_received():
            self.close()

    def _send(self, data: bytes) -> None:
        peer = self.peer
        peer._unread += len(data)
        at = self._network.loop.time() + self._network.delay_s(self._link)
        at = max(at, peer._due[-1] if peer._due else 0.0)
        peer._incoming.append(data)
        peer._due.append(at)
        peer._schedule(at)

    def _schedule(self, at: float) -> None:
        if self._timer is None and self._incoming:
            self._timer = self._network.loop.call_at(
                max(at, self._due[0]), self.pump, context=self.context
            )

    def _resume_writing(self) -> None:
        if not self._is_gone:
            self._protocol.resume_writing()

    def _reset_later(self) -> None:
        if not self._is_gone and not self._link.is_silent:
            self._network.loop.call_later(
                self._network.delay_s(self._link), self.reset, context=self.context
            )

    def _lose(self, exc: Exception | None) -> None:
        if self._is_gone:
            return
        self._is_gone = True
        self._link.ends.pop(self, None)
        self._protocol.connection_lost(exc)
