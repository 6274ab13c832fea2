"""The routes of the catalog, and the door for rows of others."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from app.api.dependencies import Components
from app.discovery.catalog import Catalog
from app.discovery.registries import AreaRow, FloorRow, LabelRow, Registries
from app.discovery.store import CatalogStore
from app.runtime.errors import CommandFailed
from tests.fakes.discovery import Answers, discovery_of
from tests.fakes.service import api_client, components

DEVICES = [{"id": "d1", "name": "Lamp", "manufacturer": "Ikea", "labels": ["radio"]}, {"id": "d2"}]
ENTITIES = [{"entity_id": "light.lamp", "device_id": "d1", "capabilities": {"min": 1}}]


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Components]:
    """Return parts with a catalog on disk."""
    async with CatalogStore(tmp_path / "metadata.db", catalog=Catalog(), source="home") as metadata:
        yield components(metadata=metadata)


@pytest.fixture
async def client(parts: Components) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of the API."""
    async with api_client(parts) as asking:
        yield asking


async def test_upserted_rows_are_served(client: httpx.AsyncClient) -> None:
    """One instance can be the data API of another."""
    sent = await client.post("/internal/devices/bulk_upsert", json=DEVICES)
    await client.post("/internal/entities/bulk_upsert", json=ENTITIES)

    devices = (await client.get("/api/devices?limit=1")).json()
    entities = (await client.get("/api/entities", params={"domain": "light"})).json()
    device = (await client.get("/api/devices/d1")).json()
    entity = (await client.get("/api/entities/light.lamp")).json()

    assert sent.status_code == 200
    assert sent.json()["success"] is True
    assert sent.json()["upserted"] == 2
    assert sent.json()["timestamp"]
    assert (devices["count"], devices["limit"], devices["next_cursor"]) == (1, 1, "d1")
    assert (entities["count"], entities["limit"], entities["next_cursor"]) == (1, 100, None)
    assert devices["devices"] == [device]
    assert entities["entities"] == [entity]
    assert (device["name"], device["labels"], device["entity_count"]) == ("Lamp", ["radio"], 1)
    assert entity["capabilities"] == {"min": 1}
    assert entity["disabled"] is False


@pytest.mark.parametrize("path", ["/api/devices/none", "/api/entities/light.none"])
async def test_an_unknown_device_or_entity_is_a_404(client: httpx.AsyncClient, path: str) -> None:
    """The code distinguishes it from a wrong address."""
    answer = await client.get(path)

    assert answer.status_code == 404
    assert answer.json()["code"].startswith("unknown_")


@pytest.mark.parametrize("limit", ["0", "10001", "many"])
async def test_the_limit_of_a_catalog_page_has_bounds(
    client: httpx.AsyncClient, limit: str
) -> None:
    """A request without a limit does not return the whole home."""
    assert (await client.get(f"/api/devices?limit={limit}")).status_code == 422


@pytest.mark.parametrize("body", [b"{}", b"", b"[", b'"rows"', b"\xff"])
async def test_a_body_that_is_not_a_list_of_rows_is_refused(
    client: httpx.AsyncClient, body: bytes
) -> None:
    """A broken sender gets an error and not a silent success."""
    answer = await client.post("/internal/devices/bulk_upsert", content=body)

    assert answer.status_code == 422
    assert "array" in answer.json()["detail"]


async def test_a_whole_home_fits_into_one_request(client: httpx.AsyncClient) -> None:
    """The predecessor sends all entities at once: megabytes."""
    rows = [{"entity_id": f"sensor.s{number}", "name": "n" * 400} for number in range(5_000)]

    answer = await client.post("/internal/entities/bulk_upsert", json=rows)

    assert answer.json()["upserted"] == 5_000


async def test_only_bulk_upserts_accept_large_bodies(client: httpx.AsyncClient) -> None:
    """Only rows may be megabytes."""
    answer = await client.post("/api/v1/discovery/trigger", content=b"x" * 1_000_001)

    assert answer.status_code == 413


async def test_an_instance_that_sends_to_a_data_api_refuses_rows(parts: Components) -> None:
    """Two services that name each other would send the same rows indefinitely."""
    async with api_client(replace(parts, takes_rows=False)) as client:
        answer = await client.post("/internal/devices/bulk_upsert", json=DEVICES)

    assert answer.status_code == 409
    assert "DATA_API_URL" in answer.json()["detail"]


async def test_rows_that_cannot_be_stored_are_a_500(
    client: httpx.AsyncClient, tmp_path: Path
) -> None:
    """Status 500 and a `detail`, as senders know it."""
    connection = sqlite3.connect(tmp_path / "metadata.db")
    connection.execute("ALTER TABLE devices RENAME TO elsewhere")
    connection.close()

    answer = await client.post("/internal/devices/bulk_upsert", json=DEVICES)

    assert answer.status_code == 500
    assert answer.json()["detail"] == "The rows could not be stored."


async def test_areas_and_labels_are_those_of_this_home_assistant() -> None:
    """With the names of their floors."""
    catalog = Catalog()
    catalog.replace(
        Registries(
            areas=(
                AreaRow("hall", name="Hall", floor_id="ground", labels=("in",)),
                AreaRow("shed"),
            ),
            floors=(FloorRow("ground", name="Ground"),),
            labels=(LabelRow("in", name="Inside"),),
        )
    )
    async with api_client(components(catalog=catalog)) as client:
        areas = (await client.get("/api/areas")).json()
        labels = (await client.get("/api/labels")).json()

    assert areas["count"] == 2
    assert areas["areas"][0] == {
        "area_id": "hall",
        "name": "Hall",
        "floor_id": "ground",
        "floor_name": "Ground",
        "labels": ["in"],
    }
    assert areas["areas"][1]["floor_name"] is None
    assert labels == {"labels": [{"label_id": "in", "name": "Inside"}], "count": 1}


async def test_a_refresh_can_be_triggered_over_http() -> None:
    """The response has the counts and the duration."""
    discovery = discovery_of(Answers({"device": [{"id": "d1"}]}))
    running = asyncio.create_task(discovery.run(lambda: None))
    discovery.connected()
    async with api_client(components(discovery=discovery)) as client:
        answer = await client.post("/api/v1/discovery/trigger")
    running.cancel()

    found = answer.json()
    assert answer.status_code == 200
    assert (found["success"], found["devices"], found["entities"]) == (True, 1, 0)
    assert found["duration_seconds"] >= 0


async def test_a_triggered_refresh_that_fails_has_the_reason() -> None:
    """Home Assistant is away, or the token may not."""
    refusal = CommandFailed("list", code="unauthorized", message="No")
    discovery = discovery_of(Answers({"device": refusal}))
    running = asyncio.create_task(discovery.run(lambda: None))
    async with api_client(components(discovery=discovery)) as client:
        away = await client.post("/api/v1/discovery/trigger")
        discovery.connected()
        refused = await client.post("/api/v1/discovery/trigger")
    running.cancel()

    assert (away.status_code, refused.status_code) == (503, 503)
    assert "not connected" in away.json()["detail"]
    assert "unauthorized" in refused.json()["detail"]
