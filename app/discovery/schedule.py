"""Decides which registries are listed again, and when. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable

from app.discovery.registries import KINDS, Kind


class RefreshSchedule:
    """Lists everything on a connection and every interval, and what events report as changed."""

    def __init__(self, *, interval_s: float, clock: Callable[[], float]) -> None:
        """`clock` is monotonic."""
        self.is_connected = False
        self._interval_s = interval_s
        self._clock = clock
        self._requested: set[Kind] = set()
        self._due_s = 0.0
        """When the requested ones are listed."""
        self._paused_until_s = 0.0
        self._full_refresh_s = clock()
        """When all registries were last listed, or the start."""
        self._was_listed = False

    def request(self, kinds: Iterable[Kind], *, within_s: float = 0.0) -> None:
        """Request some registries."""
        due_s = self._clock() + within_s
        self._due_s = min(self._due_s, due_s) if self._requested else due_s
        self._requested.update(kinds)

    def request_all(self) -> None:
        """Request all registries without a pause."""
        self._paused_until_s = 0.0
        self.request(KINDS)

    def take(self) -> tuple[Collection[Kind], bool]:
        """Return which registries to list, and whether only the interval makes them due."""
        requested, self._requested = self._requested, set()
        is_over = self._clock() >= self._full_refresh_s + self._interval_s
        is_periodic = is_over and len(requested) < len(KINDS)
        return KINDS if is_periodic else requested, is_periodic

    def all_listed(self, at_s: float) -> None:
        """Count the interval from a time on."""
        self._full_refresh_s = at_s
        self._was_listed = True

    def age_s(self) -> float | None:
        """Return the seconds since this process listed everything; None if it has not yet."""
        return self._clock() - self._full_refresh_s if self._was_listed else None

    def pause(self, wait_s: float) -> None:
        """Let nothing be due before so many seconds have passed."""
        self._paused_until_s = self._clock() + wait_s

    def wait_s(self) -> float:
        """Return the seconds until the next refresh; 0 or less for now."""
        if not self.is_connected:
            return math.inf
        due_s = self._full_refresh_s + self._interval_s
        if self._requested:
            due_s = min(due_s, self._due_s)
        return max(due_s, self._paused_until_s) - self._clock()
