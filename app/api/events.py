"""History: events of the past, from the embedded store."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from datetime import datetime
from typing import Annotated

import msgspec
from fastapi import APIRouter, Path, Query, Response
from msgspec import Meta
from pydantic import AwareDatetime

from app.api.dependencies import Components, ComponentsDep
from app.api.models import ProblemDocument
from app.api.problems import Problem, ProblemRaised
from app.model import nanoseconds
from app.sinks.embedded import EmbeddedStore, Page, StoredEvent


class EventPage(msgspec.Struct):
    """A page of history, newest first."""

    events: Sequence[StoredEvent]
    count: int
    next_cursor: Annotated[
        str | None, Meta(description="Cursor of the next page; null after the last")
    ]


_PAGE = {"application/json": {"schema": {"$ref": "#/components/schemas/EventPage"}}}

router = APIRouter(
    prefix="/api/v1/events",
    tags=["events"],
    responses={
        200: {"content": _PAGE, "description": "Newest first"},
        409: {"model": ProblemDocument, "description": "EMBEDDED_STORE is off"},
    },
)

_MAX_LIMIT = 1_000
_MAX_INT64 = 2**63 - 1
_STORE_OFF = Problem(
    status=409,
    code="embedded_store_off",
    detail="History is served from the embedded store, which is off. Set EMBEDDED_STORE=on, or"
    " query InfluxDB.",
)

_NO_CURSOR = Problem(
    status=422,
    code="invalid_cursor",
    detail="The cursor is invalid; start again without one.",
)

Start = Annotated[
    AwareDatetime | None,
    Query(description="First moment, ISO 8601 with an offset", examples=["2026-11-23T00:00:00Z"]),
]
End = Annotated[
    AwareDatetime | None,
    Query(description="First moment after, ISO 8601", examples=["2026-11-24T00:00:00Z"]),
]
Domain = Annotated[str | None, Query(max_length=255, examples=["sensor"])]
Area = Annotated[str | None, Query(max_length=255, examples=["kitchen"])]
Limit = Annotated[int, Query(ge=1, le=_MAX_LIMIT)]
Cursor = Annotated[
    str | None,
    Query(max_length=255, description="`next_cursor` of the page before; all else unchanged"),
]


@router.get("", summary="Events of all entities", response_class=Response)
async def events(
    components: ComponentsDep,
    *,
    start: Start = None,
    end: End = None,
    domain: Domain = None,
    area: Area = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """Return a page of events, newest first."""
    return await _page(
        _store_of(components).events(
            start_ns=_ns(start),
            end_ns=_ns(end),
            domain=domain,
            area_id=area,
            limit=limit,
            cursor=cursor,
        )
    )


@router.get("/{entity_id}", summary="Events of one entity", response_class=Response)
async def events_of_entity(
    components: ComponentsDep,
    entity_id: Annotated[str, Path(max_length=255, examples=["sensor.kitchen_temperature"])],
    *,
    start: Start = None,
    end: End = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """Return a page of events, newest first; an unknown entity has none."""
    return await _page(
        _store_of(components).events(
            entity_id=entity_id,
            start_ns=_ns(start),
            end_ns=_ns(end),
            limit=limit,
            cursor=cursor,
        )
    )


def _store_of(components: Components) -> EmbeddedStore:
    if components.event_store is None:
        raise ProblemRaised(_STORE_OFF)
    return components.event_store


async def _page(query: Awaitable[Page]) -> Response:
    try:
        page = await query
    except ValueError as exc:
        raise ProblemRaised(_NO_CURSOR) from exc
    body = EventPage(page.events, count=len(page.events), next_cursor=page.next_cursor)
    return Response(msgspec.json.encode(body), media_type="application/json")


def _ns(moment: datetime | None) -> int | None:
    if moment is None:
        return None
    return max(-_MAX_INT64, min(nanoseconds(moment), _MAX_INT64))
