"""Dead letters: points a database refused for good, and what to do with them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from app.api.dependencies import ComponentsDep
from app.api.models import DeadLetter, DeadLetterPage, Deleted, ProblemDocument, Retried
from app.api.stores import RefusedPoint
from app.model import moment_at

router = APIRouter(
    prefix="/api/v1/dead-letters",
    tags=["dead letters"],
    responses={503: {"model": ProblemDocument, "description": "A local database failed"}},
)

_MAX_LIMIT = 1_000
_MAX_ID = 2**63 - 1

Sink = Annotated[
    str | None, Query(max_length=255, examples=["influxdb"], description="Of this sink only")
]


@router.get("", summary="Points that were refused")
async def dead_letters(
    components: ComponentsDep,
    *,
    sink: Sink = None,
    limit: Annotated[int, Query(ge=1, le=_MAX_LIMIT)] = 100,
    cursor: Annotated[
        int | None, Query(ge=1, le=_MAX_ID, description="`next_cursor` of the page before")
    ] = None,
) -> DeadLetterPage:
    """Return a page of them, newest first, with the reason of the database."""
    letters = await components.dead_letters.newest(limit=limit, before_id=cursor, sink=sink)
    return DeadLetterPage(
        dead_letters=[_told(letter) for letter in letters],
        count=components.dead_letters.count,
        next_cursor=letters[-1].id if len(letters) == limit else None,
    )


@router.get(
    "/export",
    summary="All of them as line protocol",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {
                "text/plain": {
                    "example": 'home_assistant_events,entity_id=sensor.a value="x" 1795435200\n'
                }
            },
            "description": "A line each, oldest first",
        }
    },
)
async def export(components: ComponentsDep, *, sink: Sink = None) -> StreamingResponse:
    """Return what any tool that writes to InfluxDB understands, once it is mended."""
    blocks = components.dead_letters.export(sink=sink)
    # The first is read before the answer begins, while a failure can still be told.
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


@router.post("/retry", summary="Send them again")
async def retry(components: ComponentsDep, *, sink: Sink = None) -> Retried:
    """Put them back into the journal; what is refused again comes back as a new one."""
    return Retried(retried=await components.dead_letters.retry(components.append, sink=sink))


@router.delete("", summary="Delete them")
async def delete(
    components: ComponentsDep,
    *,
    sink: Sink = None,
    id: Annotated[  # noqa: A002 - the name clients use
        list[Annotated[int, Query(ge=1, le=_MAX_ID)]] | None,
        Query(max_length=_MAX_LIMIT, description="Only these; without one, all"),
    ] = None,
) -> Deleted:
    """Delete some, all of one sink, or all; they cannot be had back."""
    box = components.dead_letters
    return Deleted(deleted=await (box.clear(sink=sink) if id is None else box.delete(id)))


def _told(letter: RefusedPoint) -> DeadLetter:
    return DeadLetter(
        id=letter.id,
        sink=letter.sink,
        sequence=letter.sequence,
        line=letter.line.decode(errors="replace"),
        reason=letter.reason,
        refused_at=moment_at(letter.refused_at),
    )
