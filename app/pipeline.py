"""Where the packages meet: from Home Assistant's event to journal and watchers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence

from app.backfill.coverage import Coverage
from app.backfill.last_states import LastStates
from app.discovery.refresh import Discovery
from app.fanout.hub import Hub
from app.homeassistant.messages import Event
from app.journal.batcher import Batcher
from app.model import Change, Lines, Times
from app.normalize.changes import MalformedEvent, Normalizer
from app.normalize.entity_filter import EntityFilter
from app.normalize.transforms import Transforms
from app.runtime.logging import RateLimitedLog
from app.runtime.metrics import Telemetry
from app.schema.homeiq import HomeiqEncoder

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)


class Pipeline:
    """Takes events as they come and hands points to the intake, changes to the watchers.

    It is the source's listener: nothing here waits, because Home Assistant cuts off a
    client that reads too slowly.
    """

    def __init__(
        self,
        *,
        discovery: Discovery,
        normalizer: Normalizer,
        encoder: HomeiqEncoder,
        intake: Batcher,
        coverage: Coverage,
        last_states: LastStates,
        hub: Hub,
        telemetry: Telemetry,
        transforms: Transforms | None = None,
        entity_filter: EntityFilter | None = None,
        filter_fanout: bool = False,
        hold_s: float = 10.0,
        hold_events: int = 20_000,
    ) -> None:
        """Take the parts, and how long (seconds) and how many events may wait for the catalog.

        With `filter_fanout` what the filter holds back is still shown to the watchers.
        """
        self._discovery = discovery
        self._normalizer = normalizer
        self._encoder = encoder
        self._intake = intake
        self._coverage = coverage
        self._last_states = last_states
        self._hub = hub
        self._telemetry = telemetry
        self._transforms = transforms
        self._filter = entity_filter
        self._filter_fanout = filter_fanout
        self._hold_s = hold_s
        self._hold_events = hold_events
        self._is_live = self._has_streamed = False
        self.streaming = asyncio.Event()
        """Set while events stream and the registries were listed over this connection."""
        # On the very first start nothing is known of areas and devices, and tags are
        # identity in InfluxDB: events wait here until the registries were listed.
        self._held: deque[tuple[Sequence[Event], float]] | None = deque()
        self._held_count = 0
        self._release: asyncio.TimerHandle | None = None

    @property
    def held_events(self) -> int:
        """How many events wait for the catalog."""
        return self._held_count

    def changed(self, events: Sequence[Event]) -> None:
        """Take the state changes of one frame."""
        received_at = time.time()
        if self._held is None:
            self._take(events, received_at)
            return
        self._held.append((events, received_at))
        self._held_count += len(events)
        if self._held_count > self._hold_events:
            self._let_go()

    def registry_updated(self, event: Event) -> None:
        """Have the registry listed again."""
        logger.debug("Registry changed: %s", event.event_type)
        self._discovery.registry_updated(event)

    def connected(self, *, was_absent: bool) -> None:
        """Begin a span of the journal, and request the registries, now that events stream."""
        gap = self._coverage.began(
            reason="disconnect" if self._has_streamed else "restart", was_absent=was_absent
        )
        if gap is not None:
            self._last_states.freeze(gap)
        self._is_live = self._has_streamed = True
        self._discovery.connected()
        if self._discovery.known:
            self._let_go()
        elif self._held is not None and self._release is None:
            self._release = asyncio.get_running_loop().call_later(self._hold_s, self._let_go)

    def lost(self) -> None:
        """Stop asking for registries until the next connection."""
        self._is_live = False
        self.streaming.clear()
        self._discovery.lost()

    def placed(self) -> None:
        """Let go of what waits for the catalog: it is there."""
        if self._is_live:
            self.streaming.set()
        self._let_go()

    def kept(self, changes: Sequence[Change]) -> Sequence[Change]:
        """Return what of these is kept, as the transforms leave it."""
        return self._selected(changes)[1]

    def finish(self) -> None:
        """Let go of what still waits for the catalog: nothing more comes."""
        self._let_go()

    def _let_go(self) -> None:
        if self._release is not None:
            self._release.cancel()
            self._release = None
        held, self._held = self._held, None
        if not held:
            return
        if not self._discovery.known:
            logger.warning(
                "Wrote %d events without areas and devices: no registries within %.0fs",
                self._held_count,
                self._hold_s,
            )
            self._telemetry.events_unplaced(self._held_count)
        for events, received_at in held:
            self._held_count -= len(events)
            self._take(events, received_at)

    def _take(self, events: Sequence[Event], received_at: float) -> None:
        try:
            changes, malformed = self._normalizer.changes(events)
            shown, kept = self._selected(changes)
            lines = self._encoder.encode(kept)
        except Exception as exc:  # noqa: BLE001 - the per-event boundary: a bug costs one event
            if len(events) == 1:
                self._report_bug(exc)
                return
            for event in events:
                self._take((event,), received_at)
            return
        for problem in malformed:
            self._report_malformed(problem)
        if filtered := len(changes) - len(kept):
            self._telemetry.events_filtered(filtered)
        if kept:
            times_ns = [change.time_ns for change in kept]
            times = Times(min(times_ns), max(times_ns))
            self._coverage.received(times)
            self._last_states.update(changes)
            self._intake.put(Lines(lines.data, lines.points, times), received_at=received_at)
        if shown:
            self._hub.publish(shown)

    def _selected(self, changes: Sequence[Change]) -> tuple[Sequence[Change], Sequence[Change]]:
        """Return what watchers see, and what is kept."""
        shown = changes if self._transforms is None else self._transforms.apply(changes)
        if self._filter is None:
            return shown, shown
        kept = self._filter.selected(shown)
        return (shown if self._filter_fanout else kept), kept

    def _report_malformed(self, problem: MalformedEvent) -> None:
        self._telemetry.events_malformed(1, kind=problem.kind)
        limited_log.warning(
            "Malformed event (%s): %s",
            problem.kind,
            problem.excerpt,
            kind=problem.kind,
        )

    def _report_bug(self, exc: Exception) -> None:
        self._telemetry.events_malformed(1, kind="bug")
        limited_log.error("An event broke our own code", kind="bug", exc_info=exc)
