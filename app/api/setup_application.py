"""The FastAPI application while the service waits for its set-up: nothing is captured yet."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Literal

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import RedirectResponse
from pydantic import BaseModel

from app import __version__
from app.api import health, openapi, pages, settings, setup
from app.api.access import AccessMiddleware, AccessRules
from app.api.middleware import GuardMiddleware, security_headers
from app.api.problems import (
    Problem,
    ProblemRaised,
    handle_problems,
    refuse_unknown_parameters,
)
from app.api.setup import Setup
from app.api.setup_access import COOKIE, SetupLink, decide_setup
from app.api.throttle import AuthThrottle
from app.settings_store import SettingsStore

_MAX_BODY_BYTES = 65_536
_REASON = (
    "The service is not set up: it captures nothing yet. Open /setup in a browser, as the log says,"
    " or set HOME_ASSISTANT_URL and HOME_ASSISTANT_TOKEN and restart it."
)

router = APIRouter()


class SetupNeeded(BaseModel):
    """The service works, and waits for its set-up."""

    status: Literal["setup"] = "setup"
    reasons: list[str] = [_REASON]
    service: Literal["websocket-ingestion"] = "websocket-ingestion"
    version: str = __version__
    uptime_seconds: float
    ready: Literal[False] = False


def build_setup_api(
    backend: Callable[[], Setup],
    *,
    store: SettingsStore,
    access: AccessRules,
    link: SetupLink,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
) -> FastAPI:
    """Return the application that asks for Home Assistant and a database."""
    app = FastAPI(
        title="websocket-ingestion",
        summary="Set-up: nothing is captured until it is done.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.setup = backend
    app.state.store = store
    app.state.link = link
    app.state.started = time.monotonic()
    app.openapi = partial(openapi.document, app)  # type: ignore[method-assign]
    app.include_router(router)
    for part in (setup, settings):
        app.include_router(part.router, dependencies=[Depends(refuse_unknown_parameters)])
    app.add_api_route("/health/live", health.live, tags=["health"])
    app.add_api_route("/docs", pages.docs, include_in_schema=False)
    pages.mount_files(app)
    handle_problems(app, headers=security_headers("/api"))
    app.add_middleware(
        AccessMiddleware,
        rules=access,
        attempts=AuthThrottle(),
        decision=partial(decide_setup, link=link),
    )
    app.add_middleware(
        GuardMiddleware, max_body_bytes=_MAX_BODY_BYTES, max_total_bytes=20 * _MAX_BODY_BYTES
    )
    return app


@router.get("/health", tags=["health"], summary="State of the service")
async def setup_health(request: Request) -> SetupNeeded:
    """Return that the set-up is needed."""
    return SetupNeeded(uptime_seconds=time.monotonic() - request.app.state.started)


@router.get("/health/ready", tags=["health"], summary="Readiness: not before the set-up")
async def not_ready() -> None:
    """Return 503: no event can be journaled."""
    raise ProblemRaised(Problem(status=503, code="not_ready", detail=_REASON))


@router.get("/", include_in_schema=False)
async def first_page() -> RedirectResponse:
    """Lead to the set-up, below whatever path the service is mounted at."""
    return RedirectResponse("setup")


@router.get("/setup", include_in_schema=False)
async def setup_page(request: Request, key: str | None = None) -> pages.ClosedFile:
    """Return the page; the first request with the right key opens a session.

    Not a redirect to an address without the key: after a click on another site the browser would
    not send a strict cookie with it.
    """
    page = pages.ClosedFile(pages.WEB / "setup.html")
    if session := request.app.state.link.redeem(key):
        # Without a path the cookie is for the folder of the page, also behind a proxy.
        page.set_cookie(COOKIE, session, path=None, httponly=True, samesite="strict")
    return page
