"""Limits on the number of client connections, and on how long they wait for their client.

A connection that waits for its client may be closed to make room for a new one; one that is being
served may not. So idle connections, however many, never block a health probe.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.api.clients import LOOPBACK, Network, is_in
from app.runtime.logging import RateLimitedLog

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

_MOST_CONNECTIONS = 512
_MOST_AT_ONCE, _FEWEST_AT_ONCE = 128, 8
_TURNS = 4
"""Of the event loop, from accepting a connection until it is counted, or closed and released."""
_OWN_DESCRIPTORS = 128
"""For databases, Home Assistant, logs and the loop itself."""
_FEWEST_CONNECTIONS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """How many connections clients may have."""

    total: int = _MOST_CONNECTIONS
    unread_bytes: int = 64_000_000
    """Of all responses that clients have not read yet."""
    at_once: int = _MOST_AT_ONCE
    """Connections that are accepted in one turn of the event loop, before they are counted."""
    shared: Sequence[Network] = LOOPBACK
    """Addresses that many clients share: this machine, and trusted proxies."""

    @classmethod
    def within(
        cls, max_descriptors: int, *, trusted_proxies: Sequence[Network] = ()
    ) -> ConnectionLimits:
        """Return limits that leave the service the descriptors it needs itself.

        Connections that are not counted yet, or not released yet, come on top of the total.
        """
        at_once = max(_FEWEST_AT_ONCE, min(max_descriptors // 16, _MOST_AT_ONCE))
        left = max_descriptors - _OWN_DESCRIPTORS - _TURNS * at_once
        total = min(_MOST_CONNECTIONS, max(left, max_descriptors // 4, _FEWEST_CONNECTIONS))
        return cls(total=total, at_once=at_once, shared=(*LOOPBACK, *trusted_proxies))

    def of(self, peer: str | None) -> int:
        """Return how many connections one address may have.

        A shared address leaves an eighth of the total to the others.
        """
        if is_in(peer, self.shared):
            return self.total - self.total // 8
        return max(1, self.total // 4)


class Connection(Protocol):
    """One connection of a client."""

    peer: str | None
    """Address of the client; None for a UNIX socket."""
    group: str
    """`client_group` of the peer."""

    def waiting_since(self) -> float | None:
        """Return since when it waits for its client; None while it is being served."""
        ...

    def is_overdue(self, now_s: float) -> bool:
        """Return whether it has waited too long for the client."""
        ...

    def unread_bytes(self) -> int:
        """Return how much of what was sent is still in memory."""
        ...

    def abort(self) -> None:
        """Close it at once."""
        ...


class Connections:
    """The open connections of clients, counted by address."""

    def __init__(
        self, limits: ConnectionLimits | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.clock = clock
        self.refused = 0
        """Connections closed at once, because nothing could make room for them."""
        self.displaced = 0
        """Waiting connections closed to make room for new ones."""
        self.timed_out = 0
        """Connections closed because the client was silent or too slow."""
        self.limits = limits or ConnectionLimits()
        self._open: dict[object, Connection] = {}
        self._by_group: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, key: object, connection: Connection) -> bool:
        """Count a new connection, or return False when there is no room for it.

        `key` stays the same when the connection changes its protocol.
        """
        if not self._has_room_for(connection):
            self.refused += 1
            limited_log.warning(
                "Refused a connection from %s: too many are open",
                connection.peer,
                kind="refused",
            )
            return False
        self._by_group[connection.group] += 1
        self._open[key] = connection
        return True

    def replace(self, key: object, connection: Connection) -> None:
        """Replace the protocol of an open connection."""
        if key in self._open:
            self._open[key] = connection

    def closed(self, key: object) -> None:
        """Forget a connection, if it was counted."""
        connection = self._open.pop(key, None)
        if connection is not None:
            self._by_group[connection.group] -= 1
            if not self._by_group[connection.group]:
                del self._by_group[connection.group]

    def close_overdue(self) -> None:
        """Close every connection whose client is silent or too slow; call it every second.

        Those with the most unread bytes are closed as well, until all together hold no more in
        memory than they may.
        """
        now_s = self.clock()
        unread = {key: connection.unread_bytes() for key, connection in self._open.items()}
        excess = sum(unread.values()) - self.limits.unread_bytes
        greedy = set()
        for key in sorted(unread, key=unread.__getitem__, reverse=True):
            if excess <= 0:
                break
            excess -= unread[key]
            greedy.add(key)
        for key, connection in list(self._open.items()):
            if key in greedy or connection.is_overdue(now_s):
                self.timed_out += 1
                limited_log.info(
                    "Closed a connection from %s: the client was silent or too slow",
                    connection.peer,
                    kind="timed out",
                )
                self._close(key, connection)

    def _has_room_for(self, new: Connection) -> bool:
        if self._by_group[new.group] >= self.limits.of(new.peer):
            return self._displace(
                (key, open_) for key, open_ in self._open.items() if open_.group == new.group
            )
        if len(self._open) >= self.limits.total:
            return self._displace(self._open.items())
        return True

    def _displace(self, candidates: Iterable[tuple[object, Connection]]) -> bool:
        """Close the connection that has waited longest, of the address with the most."""
        waiting = [
            (-self._by_group[connection.group], since_s, number, key)
            for number, (key, connection) in enumerate(candidates)
            if (since_s := connection.waiting_since()) is not None
        ]
        if not waiting:
            return False
        *_, key = min(waiting)
        self.displaced += 1
        limited_log.warning(
            "Closed an idle connection from %s to make room for a new one",
            self._open[key].peer,
            kind="displaced",
        )
        self._close(key, self._open[key])
        return True

    def _close(self, key: object, connection: Connection) -> None:
        self.closed(key)
        connection.abort()


class ConnectionsCollector(Collector):
    """Prometheus metrics of client connections."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def collect(self) -> Iterator[Metric]:
        """Return how many are open, and how many were closed, by cause."""
        open_ = self._connections
        yield GaugeMetricFamily("ingest_http_connections", "Connections of clients", len(open_))
        closed = CounterMetricFamily(
            "ingest_http_connections_closed",
            "Connections of clients closed by a limit",
            labels=["cause"],
        )
        closed.add_metric(["refused"], open_.refused)
        closed.add_metric(["displaced"], open_.displaced)
        closed.add_metric(["timed_out"], open_.timed_out)
        yield closed
