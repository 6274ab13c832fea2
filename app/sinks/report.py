"""What `/health` and the log report about the delivery to a sink."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from app.health import SinkState, SinkStatus
from app.model import Pending
from app.runtime.logging import RateLimitedLog
from app.runtime.metrics import Telemetry
from app.runtime.retry import BreakerState
from app.runtime.text import duration
from app.sinks.outcomes import (
    Accepted,
    Busy,
    Failure,
    Held,
    Outcome,
    OutOfBounds,
    Refused,
    RefusedLine,
    ServerFailed,
)

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

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
        subject, lasted = title(self.sink), duration(now_s - self.since_s)
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


class DrainRate:
    """Rate at which a backlog shrinks, smoothed over some seconds."""

    def __init__(self) -> None:
        self._mark: tuple[float, int] | None = None
        self._per_s: float | None = None

    def reset(self) -> None:
        """Forget the rate: nothing is being written."""
        self._mark = self._per_s = None

    def sample(self, now_s: float, *, held: int) -> None:
        """Record how many points are buffered after a batch was accepted."""
        if self._mark is not None and now_s > self._mark[0]:
            elapsed_s = now_s - self._mark[0]
            now_per_s = (self._mark[1] - held) / elapsed_s
            before = now_per_s if self._per_s is None else self._per_s
            weight = math.exp(-elapsed_s / _SMOOTHED_OVER_S)
            self._per_s = weight * before + (1 - weight) * now_per_s
        self._mark = (now_s, held)

    def drained_in_s(self, held: int) -> float | None:
        """Return the seconds until nothing is buffered; None when unknown or not shrinking."""
        if not held or self._per_s is None or self._per_s <= 0:
            return None
        return round(held / self._per_s, 3)


class DeliveryReport:
    """Status of one delivery for `/health`, and its log messages."""

    def __init__(
        self,
        sink: str,
        *,
        telemetry: Telemetry,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        retention_s: Callable[[], Awaitable[float | None]] | None,
    ) -> None:
        """`retention_s` returns how long the database retains points; None when unknown."""
        self.held_at_start = 0
        """Points buffered for the sink when the process started."""
        self.drain_rate = DrainRate()
        self._sink = sink
        self._telemetry = telemetry
        self._clock = clock
        self._wall_clock = wall_clock
        self._problem: SinkProblem | None = None
        self._last_error: str | None = None
        self._find_retention_s = retention_s
        self._retention_s: float | None = None
        self._expired_points = 0
        self._expired_s = -math.inf
        """When the last one was refused."""

    def status(
        self,
        *,
        condition: SinkState,
        pending: Pending,
        held: int,
        breaker: BreakerState,
        has_backlog: bool,
    ) -> SinkStatus:
        """Return the sink's part of the snapshot; `held` counts unconfirmed points as well."""
        counts = self._telemetry.sink(self._sink)
        oldest_at, last_write_at = pending.oldest_at, counts.last_write_at
        lag_s = 0.0 if oldest_at is None else self._wall_clock() - oldest_at
        return SinkStatus(
            name=self._sink,
            state=condition,
            held_at_start=self.held_at_start,
            points_written=counts.written,
            points_dead_lettered=counts.dead_lettered,
            points_dropped=counts.dropped,
            points_expired=counts.expired,
            points_left_out=counts.left_out,
            held=held,
            lag_seconds=max(0.0, round(lag_s, 3)),
            last_delay_seconds=counts.last_delay_s,
            drained_in_seconds=(
                self.drain_rate.drained_in_s(pending.points) if has_backlog else None
            ),
            last_write=(
                None if last_write_at is None else datetime.fromtimestamp(last_write_at, UTC)
            ),
            last_error=self._last_error,
            breaker=breaker,
            reason=self._reason(),
        )

    def outcome(self, condition: SinkState, outcome: Outcome) -> None:
        """Report the sink's condition after a request; the log has each new problem, and its end.

        There is no problem when the condition is `ok`, whatever became of the request's points.
        """
        now_s, before = self._clock(), self._problem
        if not isinstance(outcome, Accepted):
            self._last_error = _with_status(outcome)
        if condition == "ok":
            self._problem = None
            if before:
                limited_log.resolved("%s takes writes again", title(self._sink), topic=self._sink)
            return
        self.drain_rate.reset()
        self._problem = SinkProblem(
            sink=self._sink,
            condition=condition,
            since_s=before.since_s if before else now_s,
            reason=self._last_error or "",
            advice=outcome.advice if isinstance(outcome, Held | Refused) else None,
        )
        level = logging.WARNING if condition == "waiting" else logging.ERROR
        sentence = self._problem.sentence(now_s)
        limited_log.log(level, "%s", sentence, kind=condition, topic=self._sink)

    async def expired(self, points: int, outcome: Outcome) -> None:
        """Report points that the database did not store because they are too old."""
        limited_log.warning(
            "%s did not store %d points that are older than its retention: %s",
            title(self._sink),
            points,
            impersonal(outcome.reason if isinstance(outcome, OutOfBounds) else ""),
            kind="retention",
            topic=f"{self._sink} losses",
        )
        is_first = not self._has_expired()
        self._expired_points += points
        self._expired_s = self._clock()
        if is_first and self._find_retention_s is not None:
            self._retention_s = await self._find_retention_s()

    def dead_letters(self, refused: Sequence[RefusedLine]) -> None:
        """Report lines that are dead letters now."""
        first, last = refused[0], refused[-1]
        which = f"Point {first.sequence} is a dead letter"
        if len(refused) > 1:
            points = f"{len(refused)} points between {first.sequence} and {last.sequence}"
            which = f"{points} are dead letters"
        limited_log.error(
            "%s of %s: %r",
            which,
            self._sink,
            impersonal(first.reason),
            kind="dead letter",
            topic=f"{self._sink} losses",
        )

    def damaged(self, points: int, cause: Exception) -> None:
        """Report points that could not be read from the journal."""
        limited_log.error(
            "Lost %d points for %s: %s",
            points,
            self._sink,
            cause,
            kind="damaged",
            topic=f"{self._sink} losses",
        )

    def restarted(self, points: int) -> None:
        """Report that the database may have lost points, which are sent again."""
        limited_log.warning(
            "%s may have restarted: %d points that it may have lost are sent again",
            title(self._sink),
            points,
            topic=f"{self._sink} restarts",
        )

    def _reason(self) -> str | None:
        if self._problem is not None:
            return self._problem.sentence(self._clock())
        if not self._has_expired():
            return None
        limit = f" of {duration(self._retention_s)}" if self._retention_s else ""
        return (
            f"{title(self._sink)} did not store {self._expired_points} points that are older than"
            f" its retention{limit}. Raise the retention of INFLUXDB_BUCKET, or lower"
            " BACKFILL_MAX_HOURS; if the points are new, check the database's clock."
        )

    def _has_expired(self) -> bool:
        return self._clock() - self._expired_s <= _EXPIRED_SHOWN_S


def _with_status(failure: Failure) -> str:
    match failure:
        case Refused() | Held() | Busy() | ServerFailed() if failure.status is not None:
            return impersonal(f"{failure.status} {failure.reason}")
        case _:
            return impersonal(failure.reason)
