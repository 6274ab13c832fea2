"""Which span of time is requested for a gap. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from app.model import MAX_TIME_NS, SECOND_NS, Gap, Times, moment_of

_REQUESTED_BEYOND_NS = 30 * SECOND_NS
"""How far beyond the bounds of a gap changes are requested: events are not strictly in the order
of their times, and a clock may be corrected by seconds. What is there twice has one identity."""


def still_to_fill(gap: Gap) -> Times:
    """Return the part of a gap that was not filled yet."""
    start_ns = gap.start_ns if gap.filled_ns is None else gap.filled_ns + 1
    return Times(start_ns, max(start_ns, gap.end_ns))


def attempted(gap: Gap, sources: tuple[str, ...], limitations: Sequence[str]) -> Gap:
    """Return a gap at the beginning of an attempt to fill it.

    It goes on where an earlier attempt ended, unless that one lacked a source: then it begins
    again, for the entities that only this source names.
    """
    if gap.sources and not {*sources} <= {*gap.sources}:
        gap = replace(gap, filled_ns=None)
    former = () if gap.filled_ns is None else gap.limitations
    return replace(gap, sources=sources, limitations=tuple(dict.fromkeys((*former, *limitations))))


def requested_times(gap: Gap, open_gaps: Sequence[Gap]) -> Times:
    """Return the span that is requested for what is still to fill.

    It goes beyond the bounds, but not into another gap that is filled automatically: that one
    counts its own changes, and the recorder may have yet to write a later one.
    """
    times = still_to_fill(gap)
    if gap.reason == "requested":
        return times  # a person decided on the bounds
    others = [one for one in open_gaps if one.id != gap.id and one.reason != "requested"]
    earlier_ns = [one.end_ns for one in others if one.end_ns <= times.oldest_ns]
    later_ns = [one.start_ns for one in others if one.start_ns >= times.newest_ns]
    start_ns = times.oldest_ns if gap.filled_ns else times.oldest_ns - _REQUESTED_BEYOND_NS
    end_ns = times.newest_ns + _REQUESTED_BEYOND_NS if gap.end_known else MAX_TIME_NS
    return Times(max(0, start_ns, *earlier_ns), min(end_ns, MAX_TIME_NS, *later_ns))


def span_text(gap: Gap) -> str:
    """Return the bounds for a person: hours only when both are of the same day."""
    start, end = moment_of(gap.start_ns), moment_of(gap.end_ns)
    form = "%H:%M:%S" if start.date() == end.date() else "%Y-%m-%d %H:%M:%S"
    return f"{start:{form}}\N{EN DASH}{end:{form}}"
