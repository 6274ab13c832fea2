"""The FastAPI application: routes, error handlers and middleware."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

from fastapi import Depends, FastAPI
from prometheus_fastapi_instrumentator import Instrumentator
from starlette.middleware.cors import CORSMiddleware

from app import __version__
from app.api import (
    catalog,
    dead_letters,
    diagnostics,
    events,
    filter_stats,
    gaps,
    health,
    live,
    metrics,
    openapi,
    pages,
    session,
    settings,
    setup,
)
from app.api.access import METHODS, AccessMiddleware
from app.api.connections import ConnectionsCollector
from app.api.dependencies import Components
from app.api.middleware import GuardMiddleware, security_headers
from app.api.problems import handle_problems, refuse_unknown_parameters

MAX_BODY_BYTES = 1_000_000
MAX_ROWS_BYTES = 32_000_000
"""HomeIQ sends all entities of a home in one request."""
MAX_TOTAL_BYTES = 64_000_000
"""Of all bodies that are being read or processed."""


def build_api(
    components: Components,
    *,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
) -> FastAPI:
    """Return the application that shows the components; `lifespan` opens and closes them."""
    app = FastAPI(
        title="websocket-ingestion",
        summary="Every state change of Home Assistant, written durably to InfluxDB.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        # A redirect would put the requested path, which may name an entity, into /metrics.
        redirect_slashes=False,
    )
    app.state.components = components
    app.state.setup, app.state.store = components.setup, components.store
    app.openapi = partial(openapi.document, app)  # type: ignore[method-assign]
    for part in (health, metrics, live, pages):
        app.include_router(part.router)
    for part in (
        events,
        gaps,
        catalog,
        filter_stats,
        dead_letters,
        diagnostics,
        session,
        setup,
        settings,
    ):
        app.include_router(part.router, dependencies=[Depends(refuse_unknown_parameters)])
    pages.mount_files(app)
    handle_problems(app, headers=security_headers("/api"))
    _add_middleware(app, components)
    components.registry.register(metrics.SnapshotCollector(components.snapshot))
    components.registry.register(ConnectionsCollector(components.connections))
    return app


def _add_middleware(app: FastAPI, components: Components) -> None:
    """Add the middleware, innermost first."""
    access = components.access
    app.add_middleware(AccessMiddleware, rules=access, attempts=components.key_attempts)
    Instrumentator(registry=components.registry).instrument(app)
    if access.cors_origins:
        # Outside of the access rules: a preflight request carries no key, and a page may only
        # read a refusal that names its origin.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=access.cors_origins,
            allow_methods=METHODS,
            allow_headers=("Authorization", "X-API-Key", "Content-Type"),
        )
    app.add_middleware(
        GuardMiddleware,
        max_body_bytes=MAX_BODY_BYTES,
        max_total_bytes=MAX_TOTAL_BYTES,
        larger={"/internal/": MAX_ROWS_BYTES},
    )
