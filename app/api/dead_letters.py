"""Dead letters: list, export, retry and delete points that a database rejected permanently."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from app.api.dependencies import ComponentsDep
from app.api.models import DeadLetterDocument, DeadLetterPage, Deleted, ProblemDocument, Retried
from app.api.problems import Problem, ProblemRaised
from app.model import moment_at
from app.sinks.dead_letters import RefusedPoint

router = APIRouter(
    prefix="/api/v1/dead-letters",
    tags=["dead letters"],
    responses={503: {"model": ProblemDocument, "description": "A local database failed"}},
)

_MAX_LIMIT = 1_000
_MAX_ID = 2**63 - 1

_NO_CRITERION = Problem(
    status=422,
    code="invalid_request",
    detail="Name the dead letters with `id` or `sink`, or set `all=true` to delete every one.",
)

Sink = Annotated[
    str | None, Query(max_length=255, examples=["influxdb"], description="Only those of this sink")
]


@router.get("", summary="List dead letters")
async def dead_letters(
    components: ComponentsDep,
    *,
    sink: Sink = None,
    limit: Annotated[int, Query(ge=1, le=_MAX_LIMIT)] = 100,
    cursor: Annotated[
        int | None, Query(ge=1, le=_MAX_ID, description="`next_cursor` of the page before")
    ] = None,
) -> DeadLetterPage:
    """Return a page, newest first, with the database's reason."""
    letters = await components.dead_letters.newest(limit=limit, before_id=cursor, sink=sink)
    return DeadLetterPage(
        dead_letters=[_document(letter) for letter in letters],
        count=components.dead_letters.count,
        next_cursor=letters[-1].id if len(letters) == limit else None,
    )


@router.get(
    "/export",
    summary="Export dead letters as line protocol",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {
                "text/plain": {
                    "example": 'home_assistant_events,entity_id=sensor.a value="x" 1795435200\n'
                }
            },
            "description": "One line per point, oldest first",
        }
    },
)
async def export(components: ComponentsDep, *, sink: Sink = None) -> StreamingResponse:
    """Return line protocol for any tool that writes to InfluxDB, once it is corrected."""
    blocks = components.dead_letters.export(sink=sink)
    # Read the first block before the response starts: only then can a failure set its status.
    first = await anext(blocks, b"")

    async def body() -> AsyncIterator[bytes]:
        yield first
        async for block in blocks:
            yield block

    return StreamingResponse(
        body(),
        media_type="text/plain; charset=utf-8",
        headers={"Content-Disposition": 'attachment; filename="dead-letters.lp"'},
    )


@router.post("/retry", summary="Retry dead letters")
async def retry(components: ComponentsDep, *, sink: Sink = None) -> Retried:
    """Append them to the journal again; one that is rejected again becomes a new dead letter."""
    return Retried(retried=await components.dead_letters.retry(components.append, sink=sink))


@router.delete("", summary="Delete dead letters")
async def delete(
    components: ComponentsDep,
    *,
    sink: Sink = None,
    id: Annotated[  # noqa: A002 - the name clients use
        list[Annotated[int, Query(ge=1, le=_MAX_ID)]] | None,
        Query(max_length=_MAX_LIMIT, description="Only these"),
    ] = None,
    all: Annotated[  # noqa: A002 - as above
        bool, Query(description="Every one; needed without `sink` and `id`")
    ] = False,
) -> Deleted:
    """Delete some, those of one sink, or all, permanently."""
    if id is None and sink is None and not all:
        raise ProblemRaised(_NO_CRITERION)
    box = components.dead_letters
    return Deleted(deleted=await (box.clear(sink=sink) if id is None else box.delete(id)))


def _document(letter: RefusedPoint) -> DeadLetterDocument:
    return DeadLetterDocument(
        id=letter.id,
        sink=letter.sink,
        sequence=letter.sequence,
        line=letter.line.decode(errors="replace"),
        reason=letter.reason,
        refused_at=moment_at(letter.refused_at),
    )
