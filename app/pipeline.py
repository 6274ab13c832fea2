"""The pipeline: from Home Assistant's events to the journal and the subscribers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from app.backfill.coverage import Coverage
from app.backfill.last_states import LastStates
from app.discovery.refresh import Discovery
from app.fanout.hub import Hub
from app.homeassistant.messages import Event
from app.journal.batcher import Batcher
from app.model import Change, Lines, Times
from app.normalize.changes import Normalizer
from app.normalize.filter import EntityFilter
from app.normalize.transforms import Transforms
from app.runtime.logging import RateLimitedLog
from app.runtime.metrics import Telemetry

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)


class Encoder(Protocol):
    """Encodes changes for the journal."""

    def encode(self, changes: Sequence[Change]) -> Lines:
        """Return exactly one point for each change, in order."""
        ...


class Pipeline:
    """Normalizes, filters and encodes events; passes lines to the batcher and changes to the hub.

    It is the source's `Listener`, so nothing here waits: Home Assistant disconnects slow clients.
    """

    def __init__(
        self,
        *,
        discovery: Discovery,
        normalizer: Normalizer,
        encoder: Encoder,
        batcher: Batcher,
        coverage: Coverage,
        last_states: LastStates,
        hub: Hub,
        telemetry: Telemetry,
        transforms: Transforms | None = None,
        entity_filter: EntityFilter | None = None,
        filter_fanout: bool = False,
        is_left_out: Callable[[str], bool] | None = None,
        hold_s: float = 10.0,
        hold_events: int = 20_000,
    ) -> None:
        """Store the parts.

        `filter_fanout`: whether subscribers also get what the filter leaves out. `is_left_out`:
        whether an entity is excluded before the filter, for everyone. `hold_s` and `hold_events`
        bound how long, and how many, events wait for the catalog.
        """
        self._discovery = discovery
        self._normalizer = normalizer
        self._encoder = encoder
        self._batcher = batcher
        self._coverage = coverage
        self._last_states = last_states
        self._hub = hub
        self._telemetry = telemetry
        self._selector = _Selector(
            is_left_out=is_left_out,
            transforms=transforms,
            entity_filter=entity_filter,
            filter_fanout=filter_fanout,
        )
        self._is_live = self._has_streamed = False
        self.streaming = asyncio.Event()
        """Set while events stream and the registries were listed over this connection."""
        self._waiting = _WaitingEvents(max_s=hold_s, max_events=hold_events)

    @property
    def waiting_events(self) -> int:
        """The number of events that wait for the catalog."""
        return self._waiting.count

    def changed(self, events: Sequence[Event]) -> None:
        """Process the state changes of a frame."""
        received_at = time.time()
        if self._waiting.is_over:
            self._process(events, received_at)
        elif self._waiting.add(events, received_at):
            self._release()

    def registry_updated(self, event: Event) -> None:
        """Have the registry listed again."""
        logger.debug("Registry changed: %s", event.event_type)
        self._discovery.registry_updated(event)

    def connected(self, *, was_absent: bool) -> None:
        """Begin a covered span, and request the registries, now that events stream."""
        gap = self._coverage.connected(
            reason="disconnect" if self._has_streamed else "restart", was_absent=was_absent
        )
        if gap is not None:
            self._last_states.retain_before(gap)
        self._is_live = self._has_streamed = True
        self._discovery.connected()
        if self._discovery.known:
            self._release()
        else:
            self._waiting.start_timer(self._release)

    def lost(self) -> None:
        """Request no registries until the next connection."""
        self._is_live = False
        self.streaming.clear()
        self._discovery.lost()

    def placed(self) -> None:
        """Process the events that wait for the catalog: it is there."""
        if self._is_live:
            self.streaming.set()
        self._release()

    def finish(self) -> None:
        """Process the events that still wait for the catalog: no more will come."""
        self._release()

    def selected(self, changes: Sequence[Change]) -> Sequence[Change]:
        """Return the changes to write: transformed and filtered."""
        return self._selector.select(changes)[1]

    def _release(self) -> None:
        batches = self._waiting.end()
        count = sum(len(events) for events, _ in batches)
        if count and not self._discovery.known:
            logger.warning(
                "Wrote %d events without areas and devices: no registries within %.0fs",
                count,
                self._waiting.max_s,
            )
            self._telemetry.events_unplaced(count)
        for events, received_at in batches:
            self._process(events, received_at)

    def _process(self, events: Sequence[Event], received_at: float) -> None:
        try:
            changes, malformed = self._normalizer.changes(events)
            shown, selected = self._selector.select(changes)
            lines = self._encoder.encode(selected)
        except Exception as exc:  # noqa: BLE001 - the per-event boundary: a bug costs one event
            self._process_each(events, received_at, exc)
            return
        for event in malformed:
            self._telemetry.events_malformed(1, kind=event.kind)
            limited_log.warning(
                "Malformed event (%s): %s", event.kind, event.excerpt, kind=event.kind
            )
        if filtered := len(changes) - len(selected):
            self._telemetry.events_filtered(filtered)
        self._last_states.update(changes)  # also of what is excluded: the filter may change
        if selected:
            times_ns = [change.time_ns for change in selected]
            times = Times(min(times_ns), max(times_ns))
            self._coverage.received(times)
            self._batcher.put(replace(lines, times=times), received_at=received_at)
        if shown:
            self._hub.publish(shown)

    def _process_each(self, events: Sequence[Event], received_at: float, exc: Exception) -> None:
        """Process events one by one, to find the one that our code fails on."""
        if len(events) == 1:
            self._telemetry.events_malformed(1, kind="bug")
            limited_log.error("Unhandled error while processing an event", kind="bug", exc_info=exc)
            return
        for event in events:
            self._process((event,), received_at)


class _Selector:
    """Decides which changes go on, and in which form."""

    def __init__(
        self,
        *,
        is_left_out: Callable[[str], bool] | None,
        transforms: Transforms | None,
        entity_filter: EntityFilter | None,
        filter_fanout: bool,
    ) -> None:
        self._is_left_out = is_left_out
        self._transforms = transforms
        self._filter = entity_filter
        self._filter_fanout = filter_fanout

    def select(self, changes: Sequence[Change]) -> tuple[Sequence[Change], Sequence[Change]]:
        """Return the transformed changes for subscribers, and those to write."""
        if (is_left_out := self._is_left_out) is not None:
            changes = [change for change in changes if not is_left_out(change.entity_id)]
        shown = changes if self._transforms is None else self._transforms.apply(changes)
        if self._filter is None:
            return shown, shown
        selected = self._filter.selected(shown)
        return (shown if self._filter_fanout else selected), selected


class _WaitingEvents:
    """Events received before the catalog is known, on the very first start.

    Tags are identity in InfluxDB: without areas and devices these events would start other series.
    """

    def __init__(self, *, max_s: float, max_events: int) -> None:
        self.max_s = max_s
        self.count = 0
        self.is_over = False
        """Whether no more events need to wait."""
        self._max_events = max_events
        self._batches: list[tuple[Sequence[Event], float]] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, events: Sequence[Event], received_at: float) -> bool:
        """Add events; return whether there are too many now."""
        self._batches.append((events, received_at))
        self.count += len(events)
        return self.count > self._max_events

    def start_timer(self, release: Callable[[], None]) -> None:
        """Call `release` in `max_s` seconds; only the first call counts."""
        if not self.is_over and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.max_s, release)

    def end(self) -> Sequence[tuple[Sequence[Event], float]]:
        """Return all batches with the time of their receipt; from now on none wait."""
        if self._timer is not None:
            self._timer.cancel()
        batches, self._batches = self._batches, []
        self.count, self.is_over = 0, True
        return batches
