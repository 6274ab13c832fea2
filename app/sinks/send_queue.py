"""The front of the journal: the batch that is sent to a sink next.

Batches are whole rows of the journal. One that the sink does not accept as it is, is replaced by
pieces of it; `retry_policy` decides when.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from app.runtime.errors import StorageDamaged, StorageError
from app.sinks.batches import (
    Batch,
    FieldName,
    by_series,
    cut,
    halves,
    last_line,
    line_from,
    series_in,
    whole_rows,
)
from app.sinks.outcomes import RefusedLine
from app.sinks.progress import Log, Progress
from app.sinks.report import DeliveryReport
from app.sinks.retry_policy import DeliveryState, Limits, blamed, probed_index, refusing

Work = TypeVar("Work")

_MOST_SERIES = 100_000
"""Accepted series remembered at most; with more, all are forgotten and searched for again."""


class DeadLetterStore(Protocol):
    """Stores permanently rejected lines."""

    async def insert(self, sink: str, refused: Sequence[RefusedLine]) -> None:
        """Store lines durably, in one transaction; doing so twice stores them once."""
        ...


@dataclass(slots=True, kw_only=True)
class LimitSearch:
    """Search for the points of a batch that are over a limit of the database.

    A limit of series or tag values refuses whole series, and InfluxDB stores everything else in
    the request, but it does not say which series. The batch is therefore sent again in pieces
    that keep the lines of a series together and in order.
    """

    points: int
    """Points of the whole batch."""
    pieces: deque[Batch]
    """Still to be sent."""
    splits: int = 0
    """How often something was split; each costs two requests."""
    expired: int = 0
    refused: list[RefusedLine] = field(default_factory=list)


class SendQueue:
    """Batches read from the journal and not yet accepted, in order.

    A row that cannot be unpacked is found when a batch is cut: its points are counted as dropped.
    """

    def __init__(
        self,
        sink: str,
        *,
        journal: Log,
        progress: Progress,
        dead_letters: DeadLetterStore,
        report: DeliveryReport,
        limits: Limits,
    ) -> None:
        """`progress` is the sink's position, which moves as batches leave the queue."""
        self.batches: deque[Batch] = deque()
        self.search: LimitSearch | None = None
        """For the first batch, once a limit refused some of its points."""
        self._sink = sink
        self._journal = journal
        self._progress = progress
        self._dead_letters = dead_letters
        self._report = report
        self._limits = limits
        self._last_accepted: Batch | None = None
        self._accepted_series: set[int] = set()
        """Hashes; a wrong one costs a request and never a point."""

    def clear(self) -> None:
        """Forget what was read, because the position has moved back."""
        self.batches.clear()
        self.search = None

    async def next_batch(self, state: DeliveryState) -> Batch | None:
        """Return what to send now; None when nothing is left.

        Raises:
            StorageError: the journal cannot be read.
        """
        position = self._progress.position
        # At its bound the journal drops the oldest points, including those read here.
        while self.batches and self.batches[0].last <= position:
            self.batches.popleft()
            self.search = None
        if not self.batches:
            rows = await self._journal.read(
                self._sink, max_points=state.target, after=self._progress.unconfirmed_through
            )
            if not rows:
                if self._progress.pending().points:
                    raise StorageError("the journal counts pending points but returns none")
                return None
            self.batches.append(whole_rows(rows))
        return await self._fitting(state)

    async def _fitting(self, state: DeliveryState) -> Batch | None:
        """Return the first batch or piece of it, cut as the state demands."""
        position, is_refusing = self._progress.position, refusing(state, self._limits)
        head = self.batches[0]
        if head.first <= position or is_refusing:
            self.search = None
        if head.first <= position:
            unacked = range(position + 1 - head.first, head.points)
            if (rest := await self._run_on_front(partial(cut, indices=unacked))) is None:
                return None
            head = self.batches[0] = rest
        if is_refusing:
            return await self._probe(head, state)
        while self._front and self._front[0].points > state.target:
            await self.halve()
        return self._front[0] if self._front else None

    @property
    def _front(self) -> deque[Batch]:
        """What is sent next: the first batch, or the pieces of it."""
        return self.batches if self.search is None else self.search.pieces

    async def _probe(self, head: Batch, state: DeliveryState) -> Batch | None:
        """Return the line that shows whether a refusing database accepts any."""
        index = probed_index(state, max(1, self._progress.pending().points))
        first_line = await self._run_on_front(partial(cut, indices=[0]))
        if index == 0 or first_line is None:
            return first_line
        conflict = blamed(state, self._limits)
        return await self._line_from(head.first + index, conflict) or first_line

    async def other_line(self, state: DeliveryState) -> Batch | None:
        """Return a line other than the failing one; None when there is none.

        It is one that was accepted before, which keeps the order, else a later one.
        """
        if (known := self._last_accepted) is not None:
            try:
                return await asyncio.to_thread(last_line, known)
            except StorageDamaged:
                self._last_accepted = None
        behind = self._progress.pending().points - 1
        if not self.batches or behind < 1:
            return None
        return await self._line_from(self.batches[0].last + 1 + probed_index(state, behind))

    async def _line_from(self, number: int, conflict: FieldName | None = None) -> Batch | None:
        """Return the line with a number, or the next one that exists and has the field."""
        rows = await self._journal.read(self._sink, max_points=1, after=number - 1)
        if not rows:
            return None
        try:
            return await asyncio.to_thread(line_from, whole_rows(rows), number, conflict)
        except StorageDamaged:
            return None  # it is reported when it is sent

    async def halve(self) -> None:
        """Replace what is sent next by its halves."""
        await self._replace_front(halves)

    async def split_by_series(self) -> None:
        """Replace what is sent next by two pieces, accepted series first."""
        if self.search is None:
            await self._remember(self._last_accepted)
            head = self.batches[0]
            self.search = LimitSearch(points=head.points, pieces=deque([head]))
        self.search.splits += 1
        await self._replace_front(partial(by_series, accepted=self._accepted_series))

    async def _replace_front(self, split: Callable[[Batch], tuple[Batch, Batch]]) -> None:
        if (pair := await self._run_on_front(split)) is not None:
            self._front.popleft()
            self._front.extendleft(reversed(pair))

    async def _run_on_front(self, work: Callable[[Batch], Work]) -> Work | None:
        """Run `work` on what is sent next, in a thread; None when it is damaged."""
        head = self._front[0]
        try:
            return await asyncio.to_thread(work, head)
        except StorageDamaged as exc:
            self._drop_damaged(head, exc)
            return None

    def _drop_damaged(self, batch: Batch, exc: StorageDamaged) -> None:
        """Count a damaged row as dropped; of several rows, make each a batch to find it."""
        self.search = None
        self.batches.popleft()
        if len(batch.rows) > 1:
            self.batches.extendleft(whole_rows([row]) for row in reversed(batch.rows))
            return
        self._progress.done(batch, damaged=batch.points)
        self._report.damaged(batch.points, exc)

    async def accepted(self, batch: Batch, *, seconds: float, expired: int = 0) -> None:
        """Remove what was sent: the sink accepted it, but for points that are too old."""
        if not expired:
            self._last_accepted = batch
            if self.search is not None:
                await self._remember(batch)
        await self._remove(batch, seconds=seconds, expired=expired)

    async def skip(self, batch: Batch) -> None:
        """Remove what would be sent: the sink gets none of its points."""
        await self._remove(batch, seconds=0.0)

    async def _remember(self, batch: Batch | None) -> None:
        """Remember the series of an accepted batch."""
        with suppress(StorageDamaged):
            if batch is not None:
                self._accepted_series |= await asyncio.to_thread(series_in, batch)
        if len(self._accepted_series) > _MOST_SERIES:
            self._accepted_series.clear()

    async def reject(self, batch: Batch, reason: str, *, seconds: float) -> None:
        """Make what was sent dead letters, and remove it."""
        if (lines := await self._run_on_front(Batch.lines)) is None:
            return
        numbered = zip(batch.numbers, lines, strict=True)
        refused = [RefusedLine(number, line, reason) for number, line in numbered if line]
        if self.search is not None:
            self._accepted_series -= await asyncio.to_thread(series_in, batch)
        await self._remove(batch, seconds=seconds, refused=refused)

    async def _remove(
        self,
        batch: Batch,
        *,
        seconds: float,
        expired: int = 0,
        refused: Sequence[RefusedLine] = (),
    ) -> None:
        """Move the position behind a batch: after a search, with its last piece."""
        if (search := self.search) is not None:
            search.pieces.popleft()
            search.expired += expired
            search.refused += refused
            if search.pieces:
                return
            self.search = None
            batch, expired, refused = self.batches[0], search.expired, sorted(search.refused)
        # Durable first: if the process dies in between, the lines are refused again, and storing
        # them again changes nothing.
        if refused:
            await self._dead_letters.insert(self._sink, refused)
        dead = [line.sequence for line in refused]
        self._progress.done(batch, seconds=seconds, dead=dead, expired=expired)
        self.batches.popleft()
        if refused:
            self._report.dead_letters(refused)
