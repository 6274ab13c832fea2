"""How often wrong keys came from where, so that nobody tries them all."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import math
import time
from collections.abc import Callable, Iterator

from app.api.problems import Problem
from app.logs import Repeats

logger = logging.getLogger(__name__)

_NOWHERE = "a UNIX socket"
_PREFIX_V6 = 64
"""What one household or server has at least: any address of it is the same guesser."""


class KeyAttempts:
    """Counts wrong keys by peer; who offered too many must wait, also with the right one.

    Otherwise the answer to the right one would tell it, however many were tried before.
    """

    def __init__(
        self,
        *,
        most: int = 10,
        per_s: float = 60.0,
        max_peers: int = 1_000,
        max_asking: int = 100,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Allow `most` wrong keys at once, and as many again over `per_s` seconds.

        Of more than `max_peers` peers, the one that has not failed for longest is forgotten.
        `max_asking` clients may be asked for their key at once.
        """
        self._most = most
        self._refill_per_s = most / per_s
        self._max_peers = max_peers
        self._max_asking = max_asking
        self._asking = 0
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}
        """By peer: how many wrong keys were allowed at a moment."""
        self._refusals = Repeats(logger, clock=clock)

    @property
    def full(self) -> bool:
        """Whether no more clients can be asked for their key now."""
        return self._asking >= self._max_asking

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Ask a client for its key for as long as the block lasts."""
        self._asking += 1
        try:
            yield
        finally:
            self._asking -= 1

    def wait_s(self, peer: str | None) -> float:
        """Return how long no key of this peer is looked at; 0 when the next one is."""
        return max(0.0, (1 - self._allowed(_household(peer))) / self._refill_per_s)

    def failed(self, peer: str | None) -> None:
        """Count a wrong key."""
        household = _household(peer)
        allowed = self._allowed(household) - 1
        self._left.pop(household, None)
        if len(self._left) >= self._max_peers:
            del self._left[next(iter(self._left))]
        self._left[household] = (allowed, self._clock())
        self._refusals.tell(logging.WARNING, "Refused a wrong API key from %s", peer)

    def _allowed(self, household: str) -> float:
        if household not in self._left:
            return float(self._most)
        allowed, at = self._left[household]
        return min(self._most, allowed + (self._clock() - at) * self._refill_per_s)


def too_many(wait_s: float) -> Problem:
    """Return the refusal of a peer that has to wait so many seconds."""
    seconds = math.ceil(wait_s)
    return Problem(
        status=429,
        code="too_many_wrong_keys",
        detail=f"Too many wrong keys came from this address; try again in {seconds} s.",
        headers={"Retry-After": str(seconds)},
    )


def _household(peer: str | None) -> str:
    try:
        address = ipaddress.ip_address(peer or "")
    except ValueError:
        return peer or _NOWHERE
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), _PREFIX_V6), strict=False))
