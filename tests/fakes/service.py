"""The API with fake components, and a real server for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import httpx
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from websockets.asyncio.client import ClientConnection, connect

from app.api.access import AccessRules
from app.api.application import build_api
from app.api.dependencies import Components
from app.api.server import Server
from app.backfill.coverage import Coverage
from app.discovery.catalog import Catalog
from app.discovery.refresh import Discovery
from app.discovery.store import CatalogStore
from app.fanout.hub import Hub
from app.model import Lines
from app.runtime.errors import SourceUnavailable, StorageError
from app.runtime.metrics import Telemetry
from app.runtime.retry import Backoff
from app.sinks.dead_letters import DeadLetters
from tests.fakes.snapshots import HEALTHY, NOON


async def _no_journal(_: Lines) -> None:
    raise StorageError("no journal takes these points")


def _no_home_assistant() -> AbstractAsyncContextManager[NoReturn]:
    raise SourceUnavailable("no Home Assistant is there")


def components(**changes: object) -> Components:
    """Return healthy components; `changes` replaces some."""
    registry = CollectorRegistry()
    catalog = Catalog()
    parts = Components(
        snapshot=lambda: HEALTHY,
        hub=Hub(),
        telemetry=Telemetry(registry, clock=NOON.timestamp),
        registry=registry,
        event_store=None,
        dead_letters=DeadLetters(Path("never-opened.db")),
        coverage=Coverage(),
        access=AccessRules(),
        catalog=catalog,
        metadata=CatalogStore(Path("never-opened.db"), catalog=catalog, source="home"),
        discovery=Discovery(
            commands=_no_home_assistant, catalog=catalog, backoff=Backoff(max_s=1), interval_s=1_800
        ),
        entity_filter=None,
        takes_rows=True,
        diagnostics=dict,
        append=_no_journal,
    )
    return replace(parts, **changes)  # type: ignore[arg-type]


def client_of(app: FastAPI, *, peer: str = "127.0.0.1") -> httpx.AsyncClient:
    """Return a client for the application without a socket; `peer` is its address."""
    transport = httpx.ASGITransport(app, client=(peer, 50_000), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost:8001")


def api_client(parts: Components | None = None, *, peer: str = "127.0.0.1") -> httpx.AsyncClient:
    """Return a client of a new application."""
    return client_of(build_api(parts or components()), peer=peer)


@dataclass(frozen=True)
class Running:
    """A listening server."""

    server: uvicorn.Server
    task: asyncio.Task[None]
    port: int

    @property
    def url(self) -> str:
        """Where HTTP is served."""
        return f"http://127.0.0.1:{self.port}"

    def watching(
        self, query: str = "", *, headers: Mapping[str, str] | None = None, **options: object
    ) -> connect:
        """Connect a subscriber to `/ws`."""
        return connect(
            f"ws://127.0.0.1:{self.port}/ws{query}",
            additional_headers=headers,
            compression=None,
            **options,  # type: ignore[arg-type]
        )

    async def stop(self) -> None:
        """Stop as after a signal, and wait for the exit."""
        self.server.should_exit = True
        await self.task


@contextlib.asynccontextmanager
async def serving(parts: Components) -> AsyncIterator[Running]:
    """Serve the components on a free port of this machine."""
    server = Server(build_api(parts), parts.connections)
    server.config.port = 0
    server.config.timeout_graceful_shutdown = 2
    task = asyncio.create_task(server.serve(), name="uvicorn")
    async with asyncio.timeout(5):
        while not server.started:
            await asyncio.sleep(0.005)
    running = Running(server, task, server.servers[0].sockets[0].getsockname()[1])
    try:
        yield running
    finally:
        await running.stop()


async def received(socket: ClientConnection) -> dict[str, object]:
    """Return the next frame, which must be one message."""
    async with asyncio.timeout(5):
        message = json.loads(await socket.recv())
    assert isinstance(message, dict)
    return message
