"""What routes need, and how they ask for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends
from prometheus_client import CollectorRegistry
from starlette.requests import HTTPConnection

from app.api.access import AccessRules
from app.api.connections import Connections
from app.api.stores import DeadLetterBox, EventStore
from app.api.throttle import AuthThrottle, Challenges
from app.backfill.coverage import Coverage
from app.discovery.catalog import Catalog
from app.discovery.refresh import Discovery
from app.discovery.store import CatalogStore
from app.fanout.hub import Hub
from app.health import Snapshot
from app.model import Lines
from app.normalize.entity_filter import EntityFilter
from app.runtime.metrics import Telemetry


async def _no_entities(_: Collection[str]) -> Sequence[str]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """The parts of the service that the API shows."""

    snapshot: Callable[[], Snapshot]
    hub: Hub
    telemetry: Telemetry
    registry: CollectorRegistry
    event_store: EventStore | None
    """None when EMBEDDED_STORE is off."""
    dead_letters: DeadLetterBox
    coverage: Coverage
    access: AccessRules
    catalog: Catalog
    metadata: CatalogStore
    discovery: Discovery
    entity_filter: EntityFilter | None
    """None when there is no filter."""
    takes_rows: bool
    """Whether this instance is a data API: it is not while it has one itself."""
    diagnostics: Callable[[], Mapping[str, object]]
    append: Callable[[Lines], Awaitable[None]]
    """Journals lines again; durable when it returns."""
    unknown_entities: Callable[[Collection[str]], Awaitable[Sequence[str]]] = _no_entities
    """Returns which of some entity ids nothing knows."""
    key_attempts: AuthThrottle = field(default_factory=AuthThrottle)
    challenges: Challenges = field(default_factory=Challenges)
    upserting: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the rows of one request are processed."""
    connections: Connections = field(default_factory=Connections)
    """Connections of clients, for /metrics."""


async def components_of(connection: HTTPConnection) -> Components:
    """Return the components that the application was built with.

    Not a plain function: FastAPI would run it in a thread, at a third of the request's time.
    """
    components: Components = connection.app.state.components
    return components


ComponentsDep = Annotated[Components, Depends(components_of)]
