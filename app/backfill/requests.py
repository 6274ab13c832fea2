"""What a person's request for history opens, and what was requested before. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from app.model import Gap, Times

_READ = frozenset({"filled", "nothing_recorded"})


def overlaps(gap: Gap, times: Times) -> bool:
    """Whether a gap and a span have a moment in common."""
    return gap.start_ns <= times.newest_ns and gap.end_ns >= times.oldest_ns


def waits_for_request(gap: Gap, *, fills: bool) -> bool:
    """Whether a gap is filled only on request; `fills`: gaps are filled automatically."""
    is_automatic = fills and gap.reason != "requested"
    return gap.state == "unfillable" or (gap.state == "open" and not is_automatic)


def spans_read(gaps: Iterable[Gap], times: Times) -> list[Times]:
    """Return the parts of a span that were gaps of the journal and have been read."""
    return [
        Times(max(gap.start_ns + 1, times.oldest_ns), min(gap.end_ns, times.newest_ns))
        for gap in gaps
        if gap.state in _READ
        and gap.reason != "requested"
        and gap.start_ns < times.newest_ns
        and gap.end_ns >= times.oldest_ns
    ]


def includes(gap: Gap, times: Times, entity_ids: Sequence[str]) -> bool:
    """Whether a gap is a request that reads, or has read, a span for entities; none means all."""
    return (
        gap.reason == "requested"
        and gap.state in {"open", "filled"}
        and gap.start_ns <= times.oldest_ns
        and gap.end_ns >= times.newest_ns
        and _reads(gap, entity_ids)
    )


def _reads(gap: Gap, entity_ids: Sequence[str]) -> bool:
    """Whether a request reads these entities; none means all."""
    if gap.entity_ids:
        return bool(entity_ids) and {*entity_ids} <= {*gap.entity_ids}
    # A request for all read those that were known then.
    return gap.state == "open" or not entity_ids
