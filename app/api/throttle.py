"""Limits on wrong API keys per client, and on clients that have not sent a key yet.

A correct key is always accepted, however many wrong ones came from the same address: many clients
share one address, and no client may lock out the others. A key's length protects it from
being guessed (docs/decisions/0017).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from app.api.clients import LOOPBACK, Network, client_group, is_in
from app.api.problems import Problem
from app.runtime.logging import RateLimitedLog

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

_ALL_OTHERS = "all other addresses"


class AuthThrottle:
    """Allows each client `most` wrong keys at once, and as many again over `per_s` seconds.

    More than `max_peers` clients at a time share one count.
    """

    def __init__(
        self,
        *,
        most: int = 10,
        per_s: float = 60.0,
        max_peers: int = 1_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._per_s = per_s
        self._refill_per_s = most / per_s
        self._max_peers = max_peers
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}
        """By client: wrong keys left at a time. The oldest failure is first."""

    def wait_s(self, peer: str | None) -> float:
        """Return the seconds until this client may send another wrong key."""
        group = self._counted_as(client_group(peer))
        return max(0.0, (1 - self._allowed(group)) / self._refill_per_s)

    def failed(self, peer: str | None) -> None:
        """Count a wrong key."""
        group = self._counted_as(client_group(peer))
        allowed = self._allowed(group) - 1
        self._left.pop(group, None)
        self._left[group] = (allowed, self._clock())
        limited_log.warning("Refused a wrong API key from %s", peer)

    def refusal(self, peer: str | None) -> Problem | None:
        """Count a wrong key; return a problem instead when there were too many before."""
        if wait_s := self.wait_s(peer):
            return too_many(wait_s)
        self.failed(peer)
        return None

    def _counted_as(self, group: str) -> str:
        self._forget_refilled()
        if group in self._left or len(self._left) < self._max_peers:
            return group
        # No client is forgotten to make room: guessing from many addresses gains nothing.
        return _ALL_OTHERS

    def _forget_refilled(self) -> None:
        now_s = self._clock()
        while self._left:
            group = next(iter(self._left))
            if now_s - self._left[group][1] < self._per_s:
                return
            del self._left[group]

    def _allowed(self, group: str) -> float:
        if group not in self._left:
            return float(self._most)
        allowed, at = self._left[group]
        return min(self._most, allowed + (self._clock() - at) * self._refill_per_s)


class Challenges:
    """WebSocket clients that have not sent their key yet: a bound on how many wait.

    At most `total` clients wait, and `per_client` of one address that is not shared. Beyond that
    a new client replaces the one that has waited longest: a client with the key sends it at once.
    """

    def __init__(
        self,
        *,
        total: int = 100,
        per_client: int = 10,
        shared: Sequence[Network] = LOOPBACK,
    ) -> None:
        self._total = total
        self._per_client = per_client
        self._shared = shared
        self._waiting: dict[asyncio.Timeout, str] = {}
        """Client by deadline, the longest wait first."""

    @property
    def waiting(self) -> int:
        """Number of clients that have not sent their key yet."""
        return len(self._waiting)

    @asynccontextmanager
    async def waiting_for_key(self, peer: str | None, *, timeout_s: float) -> AsyncIterator[None]:
        """Bound the time that the block waits for the key of a client.

        Raises:
            TimeoutError: it took too long, or newer clients replaced it.
        """
        group = client_group(peer)
        of_client = [deadline for deadline, other in self._waiting.items() if other == group]
        if len(of_client) >= self._per_client and not is_in(peer, self._shared):
            self._end(of_client[0])
        elif len(self._waiting) >= self._total:
            self._end(next(iter(self._waiting)))
        async with asyncio.timeout(timeout_s) as deadline:
            self._waiting[deadline] = group
            try:
                yield
            finally:
                self._waiting.pop(deadline, None)

    def _end(self, deadline: asyncio.Timeout) -> None:
        del self._waiting[deadline]
        deadline.reschedule(0)


def too_many(wait_s: float) -> Problem:
    """Return the problem for a client that must wait this many seconds."""
    seconds = math.ceil(wait_s)
    return Problem(
        status=429,
        code="too_many_wrong_keys",
        detail=f"Too many wrong keys came from this address; try again in {seconds} s.",
        headers={"Retry-After": str(seconds)},
    )
