"""Gaps: list and acknowledge them, and request history from the recorder."""

from __future__ import annotations

from fastapi import APIRouter

from app.api.dependencies import ComponentsDep
from app.api.models import BackfillRequest, BackfillStarted, GapDocument, GapList, GapsAcknowledged
from app.api.problems import Problem, ProblemRaised
from app.model import Gap, Times, moment_at, moment_of, nanoseconds

router = APIRouter(prefix="/api/v1", tags=["gaps"])

_NO_SPAN = Problem(
    status=422,
    code="empty_span",
    detail="`since` must lie before `until`, and in the past.",
)


@router.get("/gaps", summary="List gaps: times when nothing was captured")
async def gaps(components: ComponentsDep) -> GapList:
    """Return all known gaps, newest first, with their state and reason."""
    found = [document_of(gap) for gap in components.coverage.gaps()]
    return GapList(gaps=found, count=len(found))


@router.post("/gaps/acknowledge", summary="Acknowledge gaps that cannot be filled")
async def acknowledge(components: ComponentsDep) -> GapsAcknowledged:
    """Remove their message from `/health`. They stay listed and can still be requested."""
    return GapsAcknowledged(acknowledged=components.coverage.acknowledge())


@router.post("/backfill", summary="Fill a time span from Home Assistant's recorder")
async def backfill(components: ComponentsDep, wanted: BackfillRequest) -> BackfillStarted:
    """Open gaps for what was not captured in this span; `/api/v1/gaps` shows the progress.

    Includes the time before the service first ran and gaps that were given up; for named
    entities also gaps filled earlier, from which these may have been missing.
    """
    times = requested_span(wanted, now_ns=components.coverage.now_ns)
    if times.oldest_ns >= times.newest_ns:
        raise ProblemRaised(_NO_SPAN)
    if unknown := await components.unknown_entities(wanted.entity_ids):
        raise ProblemRaised(
            Problem(
                status=422,
                code="unknown_entities",
                detail=f"Unknown entities: {', '.join(map(repr, unknown))}. Neither Home Assistant"
                " nor its recorder nor this service knows them.",
            )
        )
    opened = components.coverage.request(times, entity_ids=wanted.entity_ids)
    return BackfillStarted(gaps=[document_of(gap) for gap in opened])


def requested_span(wanted: BackfillRequest, *, now_ns: int) -> Times:
    """Return the requested span up to now; empty when it does not begin before it ends."""
    until_ns = now_ns if wanted.until is None else min(nanoseconds(wanted.until), now_ns)
    return Times(nanoseconds(wanted.since), until_ns)


def document_of(gap: Gap) -> GapDocument:
    """Return a gap as the API returns it."""
    return GapDocument(
        id=gap.id,
        start=moment_of(gap.start_ns),
        end=moment_of(gap.end_ns),
        reason=gap.reason,
        state=gap.state,
        filled_through=None if gap.filled_ns is None else moment_of(gap.filled_ns),
        changes=gap.changes,
        entities=gap.entities,
        unrecorded=list(gap.unrecorded),
        entity_ids=list(gap.entity_ids),
        sources=list(gap.sources),
        limitations=list(gap.limitations),
        detail=gap.detail,
        found_at=moment_at(gap.found_at),
        closed_at=None if gap.closed_at is None else moment_at(gap.closed_at),
    )
