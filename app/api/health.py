"""`/health`, and the probes of orchestrators: `/health/live` and `/health/ready`."""

from __future__ import annotations

from fastapi import APIRouter, Response

from app.api.dependencies import ComponentsDep
from app.api.models import Alive, ProblemDocument, Ready
from app.api.problems import Problem, ProblemRaised
from app.health import Snapshot

router = APIRouter(tags=["health"])


@router.get(
    "/health",
    summary="State of the service and its dependencies",
    responses={503: {"model": Snapshot, "description": "This process itself is broken"}},
)
async def health(components: ComponentsDep, response: Response) -> Snapshot:
    """Return 200 while this process works, even when Home Assistant or a database is down."""
    snapshot = components.snapshot()
    if snapshot.status == "unhealthy":
        response.status_code = 503
    return snapshot


@router.get("/health/live", summary="Liveness: whether the process responds")
async def live() -> Alive:
    """Check nothing else: a database that is down is no reason to restart this process."""
    return Alive()


@router.get(
    "/health/ready",
    summary="Readiness: whether events can be journaled",
    responses={503: {"model": ProblemDocument, "description": "They cannot; `detail` says why"}},
)
async def ready(components: ComponentsDep) -> Ready:
    """Return 503 with the reason when events cannot be journaled."""
    snapshot = components.snapshot()
    if not snapshot.ready:
        raise ProblemRaised(
            Problem(status=503, code="not_ready", detail=" ".join(snapshot.reasons))
        )
    return Ready()
