"""The catalog: devices, entities, areas and labels; and the data API for other senders."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, TypeAlias

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response

from app.api.bodies import RowsInvalid, RowsTooLarge, split_rows
from app.api.dependencies import Components, ComponentsDep
from app.api.models import (
    Area,
    AreaList,
    Device,
    DevicePage,
    DiscoveryFound,
    Entity,
    EntityName,
    EntityPage,
    Identity,
    IdentityChangeDocument,
    Label,
    LabelList,
    ProblemDocument,
    Upserted,
)
from app.api.problems import Problem, ProblemRaised
from app.discovery.store import TableName
from app.runtime.errors import SourceError, StorageError
from app.runtime.time import utc_now

router = APIRouter()

_Responses: TypeAlias = dict[int | str, dict[str, Any]]
"""The type of FastAPI's `responses`."""

_MAX_LIMIT = 10_000
_TAG = "catalog"
_FAILED: _Responses = {503: {"model": ProblemDocument, "description": "A local database failed"}}
_UNKNOWN: _Responses = {404: {"model": ProblemDocument, "description": "Unknown id"}}

Id = Annotated[str, Path(max_length=255)]
Text = Annotated[str | None, Query(max_length=255)]
Limit = Annotated[int, Query(ge=1, le=_MAX_LIMIT)]
Cursor = Annotated[
    str | None,
    Query(max_length=255, description="`next_cursor` of the page before; all else unchanged"),
]


@router.get(
    "/api/devices",
    tags=[_TAG],
    summary="Devices",
    response_class=Response,
    responses={200: {"model": DevicePage, "description": "By id"}, **_FAILED},
)
async def devices(
    components: ComponentsDep,
    *,
    manufacturer: Text = None,
    model: Text = None,
    area_id: Text = None,
    platform: Annotated[
        str | None,
        Query(max_length=255, description="Integration of the device or an entity of it"),
    ] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """Return a page of the current devices."""
    page = await components.metadata.devices(
        manufacturer=manufacturer,
        model=model,
        area_id=area_id,
        platform=platform,
        limit=limit,
        cursor=cursor,
    )
    return _page("devices", page.documents, limit=limit, next_cursor=page.next_cursor)


@router.get(
    "/api/devices/{device_id}",
    tags=[_TAG],
    summary="One device",
    response_class=Response,
    responses={200: {"model": Device, "description": "The device"}, **_UNKNOWN, **_FAILED},
)
async def device(components: ComponentsDep, device_id: Id) -> Response:
    """Return a device, including removed ones."""
    return _document(await components.metadata.device(device_id), "device")


@router.get(
    "/api/entities",
    tags=[_TAG],
    summary="Entities",
    response_class=Response,
    responses={200: {"model": EntityPage, "description": "By id"}, **_FAILED},
)
async def entities(
    components: ComponentsDep,
    *,
    domain: Text = None,
    platform: Text = None,
    device_id: Text = None,
    label: Annotated[
        str | None, Query(max_length=255, description="A label id of the entity itself")
    ] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """Return a page of the currently registered entities."""
    page = await components.metadata.entities(
        domain=domain,
        platform=platform,
        device_id=device_id,
        label=label,
        limit=limit,
        cursor=cursor,
    )
    return _page("entities", page.documents, limit=limit, next_cursor=page.next_cursor)


@router.get(
    "/api/entities/{entity_id}",
    tags=[_TAG],
    summary="One entity",
    response_class=Response,
    responses={200: {"model": Entity, "description": "The entity"}, **_UNKNOWN, **_FAILED},
)
async def entity(components: ComponentsDep, entity_id: Id) -> Response:
    """Return an entity, including removed ones."""
    return _document(await components.metadata.entity(entity_id), "entity")


@router.get(
    "/api/v1/identity",
    tags=[_TAG],
    summary="The ids that an entity has had",
    responses={**_UNKNOWN, **_FAILED},
)
async def identity(
    components: ComponentsDep,
    entity_id: Annotated[
        str, Query(max_length=255, description="Any id of it", examples=["sensor.kitchen"])
    ],
) -> Identity:
    """Return the names of an entity across renames, and the changes of its device and area.

    If several entities have had this id, it is the one that has it now, or else had it last.
    """
    found = await components.metadata.identity(entity_id)
    if found is None:
        raise ProblemRaised(_NO_ENTITY)
    return Identity(
        entity_id=found.names[-1].entity_id,
        names=[EntityName(**span._asdict()) for span in found.names],
        changes=[IdentityChangeDocument.model_validate(change) for change in found.changes],
    )


@router.get("/api/areas", tags=[_TAG], summary="Areas")
async def areas(components: ComponentsDep) -> AreaList:
    """Return all areas of this Home Assistant, with their floors."""
    registries = components.catalog.registries
    floors = {floor.floor_id: floor.name for floor in registries.floors}
    found = [
        Area(
            area_id=area.area_id,
            name=area.name,
            floor_id=area.floor_id,
            floor_name=floors.get(area.floor_id or ""),
            labels=list(area.labels),
        )
        for area in registries.areas
    ]
    return AreaList(areas=found, count=len(found))


@router.get("/api/labels", tags=[_TAG], summary="Labels")
async def labels(components: ComponentsDep) -> LabelList:
    """Return all labels of this Home Assistant."""
    found = [
        Label(label_id=label.label_id, name=label.name)
        for label in components.catalog.registries.labels
    ]
    return LabelList(labels=found, count=len(found))


@router.post(
    "/api/v1/discovery/trigger",
    tags=[_TAG],
    summary="Refresh the catalog now",
    responses={503: {"model": ProblemDocument, "description": "Home Assistant is unavailable"}},
)
async def trigger(components: ComponentsDep) -> DiscoveryFound:
    """Read Home Assistant's registries, and return once new events use them."""
    try:
        found = await components.discovery.trigger()
    except SourceError as exc:
        raise ProblemRaised(
            Problem(status=503, code="discovery_failed", detail=f"Refresh failed: {exc}.")
        ) from exc
    return DiscoveryFound(
        devices=found.devices,
        entities=found.entities,
        areas=found.areas,
        duration_seconds=round(found.took_s, 3),
        timestamp=utc_now(),
    )


_ROWS_SENT = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "array", "items": {"type": "object"}},
                "example": [{"id": "a1b2c3", "name": "Lamp", "integration": "mqtt"}],
            }
        },
    }
}
_REFUSALS: _Responses = {
    409: {"model": ProblemDocument, "description": "This service sends to another data API"},
    413: {"model": ProblemDocument, "description": "Too many rows, or a row that is too large"},
    500: {"model": ProblemDocument, "description": "The rows were not stored; retry"},
}


@router.post(
    "/internal/devices/bulk_upsert",
    tags=["data API"],
    summary="Upsert devices of another sender",
    openapi_extra=_ROWS_SENT,
    responses=_REFUSALS,
)
async def upsert_devices(components: ComponentsDep, request: Request) -> Upserted:
    """Insert or update rows of a device registry; columns that a row does not have stay."""
    return await _upsert(components, request, "devices")


@router.post(
    "/internal/entities/bulk_upsert",
    tags=["data API"],
    summary="Upsert entities of another sender",
    openapi_extra=_ROWS_SENT,
    responses=_REFUSALS,
)
async def upsert_entities(components: ComponentsDep, request: Request) -> Upserted:
    """Insert or update rows of an entity registry; columns that a row does not have stay."""
    return await _upsert(components, request, "entities")


async def _upsert(components: ComponentsDep, request: Request, table: TableName) -> Upserted:
    if not components.takes_rows:
        raise ProblemRaised(_NO_DATA_API)
    body = await request.body()
    # One request at a time: rows take more memory than the body.
    async with components.upserting:
        try:
            rows = await asyncio.to_thread(split_rows, body)
        except RowsInvalid as exc:
            raise ProblemRaised(_NO_ROWS) from exc
        except RowsTooLarge as exc:
            raise ProblemRaised(replace(_TOO_LARGE, detail=f"{_TOO_LARGE.detail} {exc}")) from exc
        return await _stored(components, table, rows)


async def _stored(components: Components, table: TableName, rows: Sequence[bytes]) -> Upserted:
    try:
        upserted = await components.metadata.upsert(table, rows)
    except StorageError as exc:
        # The contract requires 500, so that senders retry.
        raise ProblemRaised(
            Problem(status=500, code="storage_failed", detail="The rows could not be stored.")
        ) from exc
    return Upserted(upserted=upserted, timestamp=utc_now())


_TOO_LARGE = Problem(status=413, code="body_too_large", detail="The body is too large.")
_NO_DATA_API = Problem(
    status=409,
    code="has_data_api",
    detail="This instance sends its rows to another data API. Unset DATA_API_URL here, or send"
    " to that address.",
)
_NO_ENTITY = Problem(
    status=404, code="unknown_entity", detail="No registered entity has or had this id."
)
_NO_ROWS = Problem(
    status=422, code="invalid_request", detail="The body must be a JSON array of rows."
)


def _page(
    name: str, documents: Sequence[object], *, limit: int, next_cursor: str | None
) -> Response:
    return _json(
        {name: documents, "count": len(documents), "limit": limit, "next_cursor": next_cursor}
    )


def _document(document: object | None, what: str) -> Response:
    if document is None:
        raise ProblemRaised(
            Problem(status=404, code=f"unknown_{what}", detail=f"No {what} has this id.")
        )
    return _json(document)


def _json(body: object) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
