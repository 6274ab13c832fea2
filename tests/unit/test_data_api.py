"""Sending rows to a data API: what is sent, and what each answer means."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import respx

from app.discovery.data_api import DataApi, verdict_on
from app.discovery.refresh import RegistryUpdate
from app.discovery.registries import Registries, list_registries
from app.runtime.retry import Backoff, Breaker
from tests.fakes.discovery import Answers

URL = "http://data-api:8006"
DEVICES = f"{URL}/internal/devices/bulk_upsert"
ENTITIES = f"{URL}/internal/entities/bulk_upsert"
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
EMPTY = Registries()


class Rig:
    """A data API client whose waits are noted and not waited for."""

    def __init__(self, *, key: str = "secret", chunk_rows: int = 500, threshold: int = 100) -> None:
        self.waits: list[float] = []
        self.breaker = Breaker("data API", threshold=threshold, reset_s=30.0)
        self.client = DataApi(
            URL,
            key=key,
            source="home",
            backoff=Backoff(max_s=300, chance=lambda: 0.5),
            breaker=self.breaker,
            chunk_rows=chunk_rows,
            sleep=self._sleep,
        )

    async def _sleep(self, wait_s: float) -> None:
        self.waits.append(wait_s)
        await asyncio.sleep(0)

    async def refresh(
        self, now: Registries, *, former: Registries = EMPTY, is_full: bool = True
    ) -> None:
        """Report a refresh to the client."""
        await self.client.refreshed(
            RegistryUpdate(former=former, now=now, at=NOON, is_full=is_full)
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Let it send for as long as the block lasts."""
        task = asyncio.create_task(self.client.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def settle(self) -> None:
        """Wait until nothing waits to be sent."""
        async with self.running():
            await until(lambda: not self.client.status().rows_waiting)


async def until(met: Callable[[], object]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(5):
        while not met():
            await asyncio.sleep(0.001)


async def home(devices: Iterable[Any] = (), entities: Iterable[Any] = ()) -> Registries:
    """Return registries with these rows, and one config entry."""
    return await list_registries(
        Answers(
            {
                "config_entry": [{"entry_id": "e1", "domain": "mqtt"}],
                "device": list(devices),
                "entity": list(entities),
            }
        ).call
    )


def rows_of(route: respx.Route) -> list[list[Any]]:
    """Return the rows of each request."""
    return [json.loads(call.request.content) for call in route.calls]


def taken(request: httpx.Request) -> httpx.Response:
    """Answer as the contract requires."""
    rows = len(json.loads(request.content))
    return httpx.Response(200, json={"success": True, "upserted": rows, "timestamp": "now"})


@respx.mock
async def test_rows_are_sent_to_the_data_api_as_its_contract_requires() -> None:
    """Arrays of Home Assistant's rows, devices first and with two members more, with the key."""
    devices = respx.post(DEVICES).mock(side_effect=taken)
    entities = respx.post(ENTITIES).mock(side_effect=taken)
    rig = Rig()
    device = {"id": "d1", "config_entries": ["e1"], "identifiers": [["mqtt", "x"]], "odd": None}
    entity = {"entity_id": "light.a", "device_id": "d1", "options": {}}

    await rig.refresh(await home([device], [entity]))
    await rig.settle()

    assert rows_of(devices) == [[{**device, "integration": "mqtt", "source": "home"}]]
    assert rows_of(entities) == [[entity]]
    request = devices.calls[0].request
    assert request.headers["Authorization"] == "Bearer secret"
    assert request.headers["Content-Type"] == "application/json"
    assert rig.client.status().rows_sent == 2
    assert rig.client.status().last_sent is not None


@respx.mock
async def test_without_an_api_key_rows_are_sent_without_authorization() -> None:
    """An empty bearer token would be refused by some."""
    devices = respx.post(DEVICES).mock(side_effect=taken)
    rig = Rig(key="")

    await rig.refresh(await home([{"id": "d1"}]))
    await rig.settle()

    assert "Authorization" not in devices.calls[0].request.headers


@respx.mock
async def test_many_rows_are_sent_to_the_data_api_in_chunks() -> None:
    """Each answer then comes in time."""
    devices = respx.post(DEVICES).mock(side_effect=taken)
    rig = Rig(chunk_rows=2)

    await rig.refresh(await home([{"id": f"d{number}"} for number in range(5)]))
    await rig.settle()

    assert [len(rows) for rows in rows_of(devices)] == [2, 2, 1]


@respx.mock
async def test_after_a_registry_event_only_changed_rows_are_sent() -> None:
    """And what is gone, once, with its last row and a mark."""
    devices = respx.post(DEVICES).mock(side_effect=taken)
    former = await home([{"id": "d1", "name": "a"}, {"id": "d2"}, {"id": "d3"}])
    now = await home([{"id": "d1", "name": "b"}, {"id": "d2"}])
    rig = Rig()

    await rig.refresh(now, former=former, is_full=False)
    await rig.settle()

    (rows,) = rows_of(devices)
    assert [(row["id"], row.get("removed", False)) for row in rows] == [
        ("d1", False),
        ("d3", True),
    ]


@respx.mock
async def test_a_refresh_without_changes_sends_no_rows() -> None:
    """A label that was renamed is none of its business."""
    registries = await home([{"id": "d1"}])
    rig = Rig()

    await rig.refresh(registries, former=registries, is_full=False)
    async with rig.running():
        await asyncio.sleep(0)

    assert rig.client.status().rows_waiting == 0
    assert not respx.calls


@respx.mock
async def test_rows_that_could_not_be_sent_to_the_data_api_are_sent_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With growing waits, and one line for each reason and for the end."""
    answers: list[httpx.Response | Exception] = [
        httpx.ConnectTimeout("late"),
        httpx.Response(503),
        httpx.Response(401),
        httpx.Response(200),
    ]
    devices = respx.post(DEVICES).mock(side_effect=answers)
    rig = Rig()
    caplog.set_level("INFO")

    await rig.refresh(await home([{"id": "d1"}]))
    await rig.settle()

    assert rig.waits == [1.0, 2.0, 4.0]
    assert devices.call_count == 4
    said = [record.message for record in caplog.records if "data API" in record.message]
    assert said == [
        "The data API at http://data-api:8006 does not take rows: no answer in time",
        "The data API at http://data-api:8006 does not take rows: 503 Service Unavailable",
        "The data API at http://data-api:8006 does not take rows: 401 Unauthorized",
        "The data API takes rows again (failed 3 times in 0 s)",
    ]
    assert rig.client.status().reason is None


@respx.mock
async def test_after_an_outage_only_the_newest_version_of_a_row_is_sent() -> None:
    """An outage of a week is caught up in one go: the newest row of each, once."""
    gate = asyncio.Event()

    async def down_at_first(request: httpx.Request) -> httpx.Response:
        return taken(request) if gate.is_set() else httpx.Response(503)

    devices = respx.post(DEVICES).mock(side_effect=down_at_first)
    rig = Rig()
    before, after = await home([{"id": "d1", "name": "a"}]), await home([{"id": "d1", "name": "b"}])
    await rig.refresh(before)

    async with rig.running():
        await until(lambda: devices.call_count)
        await rig.refresh(after, former=before, is_full=False)
        gate.set()
        await until(lambda: not rig.client.status().rows_waiting)

    assert rows_of(devices)[-1][0]["name"] == "b"


@respx.mock
async def test_a_row_that_changes_while_being_sent_is_sent_again() -> None:
    """The answer was to the older one."""
    before, after = await home([{"id": "d1", "name": "a"}]), await home([{"id": "d1", "name": "b"}])
    rig = Rig()

    async def change_meanwhile(request: httpx.Request) -> httpx.Response:
        if devices.call_count == 0:
            await rig.refresh(after, former=before, is_full=False)
        return taken(request)

    devices = respx.post(DEVICES).mock(side_effect=change_meanwhile)
    await rig.refresh(before)
    await rig.settle()

    assert [rows[0]["name"] for rows in rows_of(devices)] == ["a", "b"]


@respx.mock
@pytest.mark.parametrize("status", [400, 413, 422, 500])
async def test_one_row_that_a_data_api_refuses_costs_only_itself(
    caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """A chunk that is refused is halved until the row is found; the other rows are sent."""

    def choosy(request: httpx.Request) -> httpx.Response:
        rows = json.loads(request.content)
        if any(row["id"] == "bad" for row in rows):
            return httpx.Response(status, json={"detail": "cannot read bad"})
        seen.extend(row["id"] for row in rows)
        return taken(request)

    seen: list[str] = []
    respx.post(DEVICES).mock(side_effect=choosy)
    rig = Rig()

    await rig.refresh(await home([{"id": row_id} for row_id in ("a", "b", "bad", "c", "d")]))
    await rig.settle()

    assert sorted(seen) == ["a", "b", "c", "d"]
    assert rig.client.status().rows_refused == 1
    assert f"The data API refused device 'bad': {status} cannot read bad" in caplog.text


@respx.mock
async def test_the_breaker_of_the_data_api_opens(caplog: pytest.LogCaptureFixture) -> None:
    """The client waits for it, and only the client."""
    respx.post(DEVICES).mock(return_value=httpx.Response(503))
    rig = Rig(threshold=2)
    await rig.refresh(await home([{"id": "d1"}]))

    async with rig.running():
        await until(lambda: len(rig.waits) >= 2)
        status = rig.client.status()

    assert status.breaker.state == "open"
    assert rig.waits[1] == pytest.approx(30, abs=1)
    assert "Circuit breaker open: data API failed 2 times in a row" in caplog.text
    assert status.reason is not None
    assert "1 rows wait" in status.reason
    assert "DATA_API_KEY" in status.reason


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (200, "accepted"),
        (201, "accepted"),
        (302, "retry"),
        (400, "halve"),
        (401, "retry"),
        (404, "retry"),
        (413, "halve"),
        (422, "halve"),
        (429, "retry"),
        (500, "retry"),
        (503, "retry"),
    ],
)
def test_each_status_of_a_data_api_has_its_verdict(status: int, verdict: str) -> None:
    """A redirect is no success: the rows went nowhere."""
    assert verdict == verdict_on(status)
