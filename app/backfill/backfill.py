"""Backfill: decides which gap is filled next, waits and retries, and reports why gaps stay open.

One gap at a time, the oldest first, while events stream; one that fails waits, and the others get
their turn. `filler.py` fills it. A gap that is partly filled when the connection or the process
ends continues from there: it is a row of the journal, and a point written twice is the same point.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager

from app.backfill.coverage import Coverage
from app.backfill.filler import NO_RECORDER, GapFiller
from app.backfill.reader import unknown_to
from app.backfill.retries import GapRetries
from app.backfill.spans import span_text
from app.health import GapsStatus
from app.homeassistant.recorder import Recorder
from app.model import Gap
from app.runtime.errors import SourceError, SourceProtocolError, StorageError
from app.runtime.logging import RateLimitedLog
from app.runtime.metrics import Telemetry
from app.runtime.retry import Backoff, contained

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

_MAX_ATTEMPTS = 10
_RETRY_POLL_S = 1.0
_START_POLLS = 600
_START_POLL_S = 1.0
_RECORDER_CHECK_S = 60.0
_LATE_S = 10.0
"""How long the recorder may be behind before health reports it: a busy home always has a
backlog."""
_DROPPED = frozenset({"journal_stalled", "journal_full"})


class Backfill:
    """Fills open gaps, one after the other."""

    def __init__(
        self,
        *,
        filler: GapFiller,
        recorder: Callable[[], AbstractAsyncContextManager[Recorder]],
        streaming: asyncio.Event,
        is_running: Callable[[], bool],
        missing_component: Callable[[], str | None] = lambda: None,
        coverage: Coverage,
        telemetry: Telemetry,
        backoffs: Callable[[], Backoff],
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Store the parts.

        `recorder` opens a connection to Home Assistant's recorder. `streaming` is set while events
        stream and the registries are known; `is_running` returns whether Home Assistant has
        started, `missing_component` which integration that history needs it lacks. `clock` gives
        seconds since the epoch.
        """
        self._filler = filler
        self._recorder = recorder
        self._streaming = streaming
        self._is_running = is_running
        self._missing_component = missing_component
        self._coverage = coverage
        self._telemetry = telemetry
        self._backoff = backoffs()
        self._retries = GapRetries(backoffs, clock)
        self._clock = clock
        self._sleep = sleep
        self._obstacle: tuple[str, float] | None = None
        """Why the recorder is behind, and since when."""

    async def run(self) -> None:
        """Fill the open gaps, forever; retry each that fails at growing intervals."""
        while True:
            await self._streaming.wait()
            gap = self._retries.next(self._fillable_gaps())
            try:
                with contained("filling a gap", error=SourceProtocolError):
                    if gap is None:
                        await self._wait_for_gap()
                        continue
                    await self._fill(gap)
            except (SourceError, StorageError) as exc:
                await self._failed(gap, exc)
            else:
                self._backoff.reset()
                self._retries.forget(gap)
                if self._retries.reason(self._fillable_gaps()) is None:
                    limited_log.resolved("Missed changes are read back again")

    def _fillable_gaps(self) -> list[Gap]:
        return list(filter(self._coverage.will_be_filled, self._coverage.open_gaps()))

    async def _wait_for_gap(self) -> None:
        """Wait for a gap; meanwhile check whether Home Assistant has a recorder again."""
        if self._fillable_gaps():
            await self._sleep(_RETRY_POLL_S)
            return
        self._coverage.opened.clear()
        if self._coverage.is_unbounded and not await self._set_bounds():
            return
        without_recorder = [gap for gap in self._coverage.gaps() if _lacks_recorder(gap)]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RECORDER_CHECK_S if without_recorder else None):
                await self._coverage.opened.wait()
            return
        if not self._streaming.is_set():
            return
        async with self._recorder() as recorder:
            missing = await recorder.missing_component()
        if missing is None:
            for gap in without_recorder:
                self._coverage.reopen(gap)

    async def _set_bounds(self) -> bool:
        """Bound gaps that are not filled now, and the first span; return whether it succeeded."""
        try:
            async with self._recorder() as recorder:
                self._filler.set_bounds(await recorder.newest_states())
        except SourceError as exc:
            logger.debug("Home Assistant's states cannot be listed: %s", exc)
            await self._sleep(self._backoff.next_s())
            return False
        self._backoff.reset()
        return True

    async def _fill(self, gap: Gap) -> None:
        self._coverage.start_filling(gap)
        try:
            await self._wait_for_home_assistant()
            async with self._recorder() as recorder:
                await self._filler.fill(
                    gap,
                    recorder,
                    is_last_attempt=self._retries.attempts(gap) >= _MAX_ATTEMPTS,
                    report_obstacle=self._report_obstacle,
                )
        finally:
            self._coverage.stop_filling()

    async def _wait_for_home_assistant(self) -> None:
        """Wait until Home Assistant has started: before that its history is not available."""
        for _ in range(_START_POLLS):
            if self._is_running() or not self._streaming.is_set():
                return
            await self._sleep(_START_POLL_S)

    def _report_obstacle(self, obstacle: str | None) -> None:
        """Store why the recorder is behind; None when it is not."""
        if obstacle is None:
            self._obstacle = None
        else:
            self._obstacle = (obstacle, self._obstacle[1] if self._obstacle else self._clock())

    async def _failed(self, gap: Gap | None, exc: SourceError | StorageError) -> None:
        self._obstacle = None
        if not self._streaming.is_set():
            return  # the connection was lost, which is reported elsewhere
        if gap is None:
            await self._sleep(self._backoff.next_s())
            return
        gap = self._coverage.gap(gap.id) or gap  # with the bounds and the progress of now
        wait_s = self._retries.failed(gap, exc)
        limited_log.warning(
            "Backfill of %s failed, next attempt in %.1fs: %s",
            span_text(gap),
            wait_s,
            exc,
            kind=type(exc).__name__,
        )
        # Many gaps may fail for one reason, so even the next one waits.
        await self._sleep(_RETRY_POLL_S)

    async def unknown_entities(self, entity_ids: Collection[str]) -> list[str]:
        """Return which of these ids nothing knows: no store of ours, and no Home Assistant.

        Without a connection to Home Assistant all may be known.
        """
        known = await self._filler.known_entities()
        unknown = {*entity_ids}.difference(*known.values())
        if not unknown or not self._streaming.is_set():
            return []
        try:
            async with self._recorder() as recorder:
                return await unknown_to(recorder, unknown)
        except SourceError:
            return []

    def status(self) -> GapsStatus:
        """Return this part of the snapshot."""
        nothing_recorded = self._coverage.count("nothing_recorded")
        return GapsStatus(
            open=self._coverage.count("open"),
            filled=self._coverage.count("filled") + nothing_recorded,
            nothing_recorded=nothing_recorded,
            unfillable=self._coverage.count("unfillable"),
            backfilled=self._telemetry.backfilled,
            reason=self._retries.reason(self._fillable_gaps())
            or self._recorder_behind()
            or self._events_dropped()
            or self._recorder_missing()
            or self._gaps_unfillable(),
        )

    def _recorder_behind(self) -> str | None:
        if self._obstacle is None or self._clock() - self._obstacle[1] < _LATE_S:
            return None
        return (
            f"Missed changes cannot be read back from Home Assistant yet: {self._obstacle[0]}."
            " The gap stays open until it has caught up; see /api/v1/gaps."
        )

    def _events_dropped(self) -> str | None:
        if not any(gap.reason in _DROPPED for gap in self._coverage.open_gaps()):
            return None
        return (
            "Events were dropped before they were durable, because the disk or this machine did not"
            " keep up; what Home Assistant recorded of them is read back, see /api/v1/gaps."
        )

    def _recorder_missing(self) -> str | None:
        missing = self._missing_component()
        if missing is None or not self._coverage.fills:
            return None
        return (
            f"{NO_RECORDER} {missing!r}, so what is missed while this service or the connection is"
            f" down cannot be read back. Add `default_config:` or `{missing}:` to Home Assistant's"
            " configuration.yaml and restart it, or set BACKFILL_ENABLED=false."
        )

    def _gaps_unfillable(self) -> str | None:
        """Return what is known to be missing, until a person acknowledges it."""
        gaps = self._coverage.unacknowledged()
        if not gaps:
            return None
        return (
            f"{len(gaps)} gaps cannot be filled, so changes are missing; the newest is"
            f" {span_text(gaps[0])}: {gaps[0].detail}. See /api/v1/gaps. Request them again with"
            " `python -m app backfill`, or acknowledge them with POST /api/v1/gaps/acknowledge."
        )


def _lacks_recorder(gap: Gap) -> bool:
    return gap.state == "unfillable" and (gap.detail or "").startswith(NO_RECORDER)
