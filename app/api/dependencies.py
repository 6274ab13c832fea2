"""The components that routes use, as FastAPI dependencies."""

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
from app.api.setup import Setup
from app.api.throttle import AuthThrottle, Challenges
from app.backfill.coverage import Coverage
from app.discovery.catalog import Catalog
from app.discovery.refresh import Discovery
from app.discovery.store import CatalogStore
from app.fanout.hub import Hub
from app.health import Snapshot
from app.model import Lines
from app.normalize.filter import EntityFilter
from app.runtime.metrics import Telemetry
from app.settings_store import SettingsStore
from app.sinks.dead_letters import DeadLetters
from app.sinks.embedded import EmbeddedStore


async def _no_entities(_: Collection[str]) -> Sequence[str]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """The components of the service that the API uses."""

    snapshot: Callable[[], Snapshot]
    hub: Hub
    telemetry: Telemetry
    registry: CollectorRegistry
    event_store: EmbeddedStore | None
    """None when EMBEDDED_STORE is off."""
    dead_letters: DeadLetters
    coverage: Coverage
    access: AccessRules
    catalog: Catalog
    metadata: CatalogStore
    discovery: Discovery
    entity_filter: EntityFilter | None
    """None when there is no filter."""
    takes_rows: bool
    """Whether this instance is a data API: not while it sends to one itself."""
    diagnostics: Callable[[], Mapping[str, object]]
    append: Callable[[Lines], Awaitable[None]]
    """Journals lines again; durable when it returns."""
    unknown_entities: Callable[[Collection[str]], Awaitable[Sequence[str]]] = _no_entities
    """Returns those of some entity ids that are unknown."""
    key_attempts: AuthThrottle = field(default_factory=AuthThrottle)
    challenges: Challenges = field(default_factory=Challenges)
    upserting: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the rows of one request are processed."""
    store: SettingsStore = field(default_factory=SettingsStore)
    setup: Callable[[], Setup] | None = None
    """None only where nothing requests it."""
    connections: Connections = field(default_factory=Connections)
    """Client connections, for `/metrics`."""


async def components_of(connection: HTTPConnection) -> Components:
    """Return the components that the application was built with.

    Not a plain function: FastAPI would run it in a thread, at a third of the request's time.
    """
    components: Components = connection.app.state.components
    return components


ComponentsDep = Annotated[Components, Depends(components_of)]
