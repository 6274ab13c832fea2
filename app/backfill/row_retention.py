"""Which acked rows the journal retains, to compare live points with what is read back. Pure."""

from __future__ import annotations

import sys
from collections import deque

from app.model import SECOND_NS

_MAX_EDGES = 300


class RowRetention:
    """Retains the rows of the newest live points: those of the last seconds of their time."""

    def __init__(self, retained_s: float) -> None:
        """With a negative `retained_s` no row is retained."""
        self.keep_from = sys.maxsize
        """Sequence number from which rows are retained; beyond all rows without live points."""
        self._retained_s = retained_s
        # The number of a first point, and the newest time behind it.
        self._edges: deque[tuple[int, int]] = deque()

    @property
    def first(self) -> int:
        """Sequence number of the oldest row near the newest live point, or 0."""
        return self._edges[0][0] if self._edges else 0

    def add(self, first: int, newest_ns: int) -> None:
        """Add appended live points, about once per second of Home Assistant's time."""
        edges = self._edges
        if not edges or abs(newest_ns - edges[-1][1]) >= SECOND_NS:
            edges.append((first, newest_ns))
        oldest_ns = newest_ns - int(self._retained_s * SECOND_NS)
        while len(edges) > 1 and (edges[0][1] + SECOND_NS < oldest_ns or len(edges) > _MAX_EDGES):
            edges.popleft()
        if self._retained_s >= 0:
            self.keep_from = edges[0][0]
