"""The event rate, and diagnostics to attach to a problem report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime

from fastapi import APIRouter
from fastapi.encoders import jsonable_encoder

from app.api.dependencies import ComponentsDep
from app.api.models import EventRate, Rate

router = APIRouter(prefix="/api/v1", tags=["status"])

_WINDOW_S = 15 * 60
_SECRET_NAME = re.compile(r"token|key|password|secret|authorization|credential", re.IGNORECASE)
_CREDENTIALS_IN_URL = re.compile(r"(?<=://)[^/\s]+@")
_LONG_TOKEN = re.compile(r"\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_REDACTED = "**REDACTED**"


@router.get("/event-rate", summary="Events received per second")
async def event_rate(components: ComponentsDep) -> EventRate:
    """Return the last 15 minutes."""
    telemetry = components.telemetry
    return EventRate(
        events_per_minute=telemetry.events_per_minute(),
        events_total=telemetry.received,
        window_seconds=_WINDOW_S,
        seconds=[
            Rate(time=datetime.fromtimestamp(second, UTC), events=count)
            for second, count in telemetry.event_rates()
        ],
    )


@router.get(
    "/diagnostics",
    summary="Versions and settings, without secrets",
    responses={
        200: {
            "content": {
                "application/json": {
                    "example": {
                        "version": "0.1.0",
                        "python": "3.13.1",
                        "settings": {"home_assistant": {"token": _REDACTED}},
                    }
                }
            }
        }
    },
)
async def diagnostics(components: ComponentsDep) -> dict[str, object]:
    """Return what helps to diagnose a problem; safe to share."""
    shown = redacted(jsonable_encoder(components.diagnostics()))
    assert isinstance(shown, dict)
    return shown


def redacted(value: object, name: str = "") -> object:
    """Return a copy of JSON-like data with everything that looks like a secret replaced."""
    match value:
        case str() if value and _SECRET_NAME.search(name):
            return _REDACTED
        case str():
            return _LONG_TOKEN.sub(_REDACTED, _CREDENTIALS_IN_URL.sub(f"{_REDACTED}@", value))
        case Mapping():
            return {str(key): redacted(each, str(key)) for key, each in value.items()}
        case list() | tuple():
            return [redacted(each, name) for each in value]
    return value
