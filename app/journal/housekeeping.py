"""Housekeeping of the journal: what is saved now and then, and rows that are deleted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial

from app.backfill.coverage import Coverage
from app.backfill.last_states import LastStates
from app.journal.cursors import Cursors, Span
from app.journal.rows import RecentRows
from app.journal.transactions import Metadata, tidy_block
from app.model import LastState
from app.runtime.errors import StorageError
from app.runtime.logging import RateLimitedLog
from app.runtime.sqlite import Database, Size

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)


class Housekeeping:
    """Saves cursors, coverage and last states, and deletes rows that are not needed any more."""

    def __init__(
        self,
        *,
        cursors: Cursors,
        recent: RecentRows,
        coverage: Coverage,
        last_states: LastStates,
        interval_s: float,
        save_states_s: float,
    ) -> None:
        self.saved: Mapping[str, int] = {}
        """The cursors in the file."""
        self.size = Size(live_bytes=0, free_bytes=0, wal_bytes=0, page_bytes=0)
        """Size of the file."""
        self._cursors = cursors
        self._recent = recent
        self._coverage = coverage
        self._last_states = last_states
        self._interval_s = interval_s
        self._save_states_s = save_states_s
        self._states_saved_at = time.monotonic()
        self._deleted_through = 0

    async def run(self, database: Database) -> None:
        """Tidy every `interval_s`, forever."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.tidy(database)
            except StorageError as exc:
                limited_log.warning(
                    "Housekeeping of the journal failed, it is tried again: %s",
                    exc,
                )
            else:
                limited_log.resolved("Housekeeping of the journal goes on")

    async def tidy(self, database: Database, *, closing: bool = False) -> None:
        """Save what changed since the last time, and delete rows that are not needed any more."""
        deletable = min(self._cursors.acked_by_all, self._coverage.keep_from - 1)
        states = self._states_to_save(closing=closing)
        unsaved = self._coverage.changes_to_save()
        if (
            self.saved == self._cursors.acked
            and self._deleted_through == deletable
            and not (states or unsaved.covered or unsaved.gaps or self._durable_holes())
        ):
            return
        more = True
        while more:  # each block is a transaction of its own, so that appends come between
            durable_through = self._recent.durable_through
            metadata = Metadata(
                # A cursor may be behind an uncommitted row; the tail on disk is before them.
                cursors={
                    sink: min(cursor, durable_through)
                    for sink, cursor in self._cursors.acked.items()
                },
                holes=self._durable_holes(),
                coverage=unsaved,
            )
            work = partial(
                tidy_block,
                metadata=metadata,
                states=states,
                # States of points that are not durable are read from the rows after this number.
                states_through=durable_through,
                deletable=deletable,
                path=database.path,
            )
            more, self.size = await database.write(work)
            self.saved = metadata.cursors
            self._coverage.mark_saved(unsaved)
            self._cursors.saved_holes(metadata.holes)
            self._last_states.mark_saved(states)
            unsaved, states = self._coverage.changes_to_save(), {}
        self._deleted_through = deletable

    def _durable_holes(self) -> Sequence[Span]:
        """Return the unsaved holes before the tail on disk.

        Numbers after it are given out again when the process is killed.
        """
        through = self._recent.durable_through
        return [hole for hole in self._cursors.unsaved_holes if hole.last <= through]

    def _states_to_save(self, *, closing: bool) -> Mapping[str, LastState]:
        now_s = time.monotonic()
        if not closing and now_s - self._states_saved_at < self._save_states_s:
            return {}
        self._states_saved_at = now_s
        return self._last_states.states_to_save()
