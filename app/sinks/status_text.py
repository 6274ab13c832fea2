"""Status texts of a sink: its problem, since when, and when the backlog will be gone."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from app.runtime.text import duration

_TITLES = {"influxdb": "InfluxDB", "embedded": "The embedded store"}
_SMOOTHED_OVER_S = 10.0
_EXPIRED_SHOWN_S = 3600.0
_QUOTED_POINT = re.compile(r""",\w+=.*|\b\w+=".*""", re.DOTALL)
"""From the first tag or text field to the end, because values may hold any text."""


def impersonal(words: str) -> str:
    """Remove the point that a database quotes, which the log and `/health` must not show.

    The dead letter keeps the whole reason.
    """
    return _QUOTED_POINT.sub("…", words)


def title(sink: str) -> str:
    """Return the displayed name of a sink."""
    return _TITLES.get(sink, f"Sink {sink}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkProblem:
    """Why a sink accepts no points."""

    sink: str
    condition: Literal["waiting", "holding", "refusing"]
    since_s: float
    """When it began, on the caller's clock, in whatever condition."""
    reason: str
    """Why the last request failed."""
    advice: str | None = None

    def sentence(self, now_s: float) -> str:
        """Return what is wrong, for how long, and what a person can do."""
        subject, lasted = self._title, duration(now_s - self.since_s)
        reason = self.reason.rstrip(". ")
        match self.condition:
            case "waiting":
                verb = "has not been taking writes"
                advice = self.advice or "Points wait in the journal and are sent by themselves."
            case "holding":
                verb = "has been refusing writes"
                advice = self.advice or "Points wait in the journal."
            case _:
                verb = "has been refusing every point"
                advice = (
                    f"{self.advice or 'Fix what the reason names.'} Points wait in the journal;"
                    " the first ones refused wait as dead letters to be retried."
                )
        return f"{subject} {verb} for {lasted}: {reason}. {advice}"

    def ended(self) -> str:
        """Return the message for its end."""
        return f"{self._title} takes writes again"

    @property
    def _title(self) -> str:
        return title(self.sink)


class Expired:
    """Points that the database did not store because they are older than its retention."""

    def __init__(self) -> None:
        self.retention_s: float | None = None
        """How long the database retains points; None when unknown."""
        self._points = 0
        self._last_s = -math.inf

    def add(self, points: int, now_s: float) -> None:
        """Count points at a time on the caller's clock."""
        self._points += points
        self._last_s = now_s

    def is_over(self, now_s: float) -> bool:
        """Whether there was none in the last hour."""
        return now_s - self._last_s > _EXPIRED_SHOWN_S

    def sentence(self, sink: str, now_s: float) -> str | None:
        """Return the warning, for an hour after the last of them."""
        if self.is_over(now_s):
            return None
        limit = f" of {duration(self.retention_s)}" if self.retention_s else ""
        return (
            f"{title(sink)} did not store {self._points} points that are older than its"
            f" retention{limit}. Raise the retention of INFLUXDB_BUCKET, or lower"
            " BACKFILL_MAX_HOURS; if the points are new, check the database's clock."
        )


class DrainRate:
    """Rate at which a backlog shrinks, smoothed over some seconds."""

    def __init__(self) -> None:
        self._mark: tuple[float, int] | None = None
        self._per_s: float | None = None

    def reset(self) -> None:
        """Forget the rate: nothing is being written."""
        self._mark = self._per_s = None

    def sample(self, now_s: float, *, held: int) -> None:
        """Note how many points are held after a batch was acked."""
        if self._mark is not None and now_s > self._mark[0]:
            elapsed_s = now_s - self._mark[0]
            now_per_s = (self._mark[1] - held) / elapsed_s
            before = now_per_s if self._per_s is None else self._per_s
            weight = math.exp(-elapsed_s / _SMOOTHED_OVER_S)
            self._per_s = weight * before + (1 - weight) * now_per_s
        self._mark = (now_s, held)

    def drained_in_s(self, held: int) -> float | None:
        """Return the seconds until nothing is held; None when unknown or it is not shrinking."""
        if not held or self._per_s is None or self._per_s <= 0:
            return None
        return round(held / self._per_s, 3)
