"""Decides which values to publish when. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class Schedule(Generic[T]):
    """Selects what changed, each value at most once per `interval_s`, and at once if urgent.

    What did not change is selected again after `refresh_s`.
    """

    def __init__(self, *, interval_s: float, refresh_s: float) -> None:
        self._interval_s = interval_s
        self._refresh_s = refresh_s
        self._published: dict[str, tuple[T, float]] = {}
        self._urgency: object = None
        self._session: object = None

    def due(
        self, values: Mapping[str, T], *, urgency: object, session: object, now_s: float
    ) -> Mapping[str, T]:
        """Return the values to publish now, which count as published.

        Args:
            values: the current ones.
            urgency: when it changes, everything that has changed is due at once.
            session: when it changes, whatever was published is forgotten by the receiver.
            now_s: the time on a clock that never jumps.
        """
        if session != self._session:
            self._published.clear()
        is_urgent = urgency != self._urgency
        self._session, self._urgency = session, urgency
        found = {
            key: value
            for key, value in values.items()
            if self._is_due(key, value, now_s, is_urgent=is_urgent)
        }
        self._published |= {key: (value, now_s) for key, value in found.items()}
        return found

    def _is_due(self, key: str, value: T, now_s: float, *, is_urgent: bool) -> bool:
        if key not in self._published:
            return True
        published, at_s = self._published[key]
        age_s = now_s - at_s
        changed = published != value and (is_urgent or age_s >= self._interval_s)
        return changed or age_s >= self._refresh_s
