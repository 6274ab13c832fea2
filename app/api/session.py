"""`/api/v1/session`: who the client is."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel

from app.api.access import User

router = APIRouter(prefix="/api/v1", tags=["status"])


class ClientSession(BaseModel):
    """Who the client is."""

    user: User | None
    """Null unless the request came through Home Assistant's ingress."""


@router.get("/session", summary="Who you are")
async def session(request: Request) -> ClientSession:
    """Return the Home Assistant user of a request that came through ingress."""
    return ClientSession(user=request.scope.get("user"))
