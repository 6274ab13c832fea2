"""Search for the points of a batch that are over a limit of the database.

A limit of series or tag values refuses whole series, and InfluxDB stores everything else in the
request, but it does not say which series. The batch is therefore sent again in pieces that keep
the lines of a series together and in order.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import chain

from app.sinks.batches import CutLines, Part, halves, picked
from app.sinks.outcomes import RefusedLine

_SERIES = re.compile(rb"(?:[^ \\]|\\.)+")


@dataclass(slots=True, kw_only=True)
class LimitSearch:
    """The pieces of one batch that are still to be sent, and the outcome of the others."""

    points: int
    """Points of the whole batch."""
    pieces: deque[Part]
    splits: int = 0
    """How often something was split; each costs two requests."""
    expired: int = 0
    refused: list[RefusedLine] = field(default_factory=list)


def series_in(part: Part) -> set[int]:
    """Return a hash of the measurement and tags of each series; blocks.

    Raises:
        StorageDamaged: the part cannot be taken apart.
    """
    return set(map(_series, part.lines()))


def by_series(part: Part, accepted: Collection[int]) -> tuple[CutLines, CutLines]:
    """Split a part of at least two points, without separating the lines of a series; blocks.

    Series that were accepted before come first. If all of them or none were, half of them do,
    those with the most lines first: a series over a limit is likely a new one, with few lines.
    Lines of a single series are halved.

    Raises:
        StorageDamaged: the part cannot be taken apart.
    """
    places: dict[int, list[int]] = {}
    for place, line in enumerate(part.lines()):
        places.setdefault(_series(line), []).append(place)
    if len(places) == 1:
        return halves(part)
    first = [series for series in places if series in accepted]
    if len(first) in (0, len(places)):
        first = sorted(places, key=lambda series: -len(places[series]))[: len(places) // 2]
    chosen = sorted(chain.from_iterable(places.pop(series) for series in first))
    return picked(part, chosen), picked(part, sorted(chain.from_iterable(places.values())))


def _series(line: bytes) -> int:
    found = _SERIES.match(line)
    return hash(found[0] if found else line)
