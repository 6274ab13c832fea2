"""Gaps over HTTP: listing them, acknowledging them, and requesting history."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from app.api.access import AccessRules
from app.api.application import build_api
from app.backfill.coverage import Coverage
from app.model import Gap, Times, nanoseconds
from tests.fakes.service import api_client, components

BEGAN = datetime(2026, 11, 23, 10, 2, 11, 123456, UTC)
KEY = "k" * 32


def noted(*, fills: bool = True) -> tuple[Coverage, Gap]:
    """Return what a service has noted that was restarted once."""
    coverage = Coverage(fills=fills, clock=(BEGAN + timedelta(minutes=5)).timestamp)
    streamed(coverage, BEGAN)
    gap = streamed(coverage, BEGAN + timedelta(minutes=5))
    assert gap is not None
    return coverage, gap


def streamed(coverage: Coverage, at: datetime) -> Gap | None:
    """Begin a span with an event, and return the gap before it."""
    gap = coverage.connected(reason="restart")
    times = Times(nanoseconds(at), nanoseconds(at))
    coverage.received(times)
    coverage.mark_saved(coverage.changes_to_save(times, received_at=at.timestamp(), first=1))
    return gap


async def test_without_gaps_the_list_of_gaps_is_empty() -> None:
    """A list all the same."""
    async with api_client() as client:
        answer = await client.get("/api/v1/gaps")

    assert (answer.status_code, answer.json()) == (200, {"gaps": [], "count": 0})


async def test_a_listed_gap_has_its_times_reason_and_counts() -> None:
    """Times to the microsecond, and what became of it."""
    coverage, gap = noted()
    gap = coverage.update(
        replace(gap, filled_ns=gap.start_ns, changes=7, entities=2, unrecorded=("sensor.secret",))
    )
    coverage.close(gap, "filled", detail=None)

    async with api_client(components(coverage=coverage)) as client:
        answer = await client.get("/api/v1/gaps")

    assert answer.json() == {
        "gaps": [
            {
                "id": 1,
                "start": "2026-11-23T10:02:11.123456Z",
                "end": "2026-11-23T10:07:11.123456Z",
                "reason": "restart",
                "state": "filled",
                "filled_through": "2026-11-23T10:02:11.123456Z",
                "changes": 7,
                "entities": 2,
                "unrecorded": ["sensor.secret"],
                "entity_ids": [],
                "sources": [],
                "limitations": [],
                "detail": None,
                "found_at": "2026-11-23T10:07:11.123456Z",
                "closed_at": "2026-11-23T10:07:11.123456Z",
            }
        ],
        "count": 1,
    }


async def test_the_newest_gap_is_listed_first() -> None:
    """It is the one that somebody looks for."""
    coverage, _ = noted()
    streamed(coverage, BEGAN + timedelta(hours=1))

    async with api_client(components(coverage=coverage)) as client:
        answer = await client.get("/api/v1/gaps")

    assert [gap["id"] for gap in answer.json()["gaps"]] == [2, 1]


async def test_history_from_before_the_first_start_can_be_requested() -> None:
    """Up to the moment from which on everything was captured."""
    coverage, _ = noted()

    async with api_client(components(coverage=coverage)) as client:
        answer = await client.post(
            "/api/v1/backfill",
            json={"since": "2026-11-01T01:00:00+01:00", "entity_ids": ["sensor.a", "sensor.a"]},
        )

    (gap,) = answer.json()["gaps"]
    assert answer.status_code == 200
    assert (gap["start"], gap["end"]) == ("2026-11-01T00:00:00Z", "2026-11-23T10:02:11.123456Z")
    assert (gap["reason"], gap["state"]) == ("requested", "open")
    assert gap["entity_ids"] == ["sensor.a"]
    assert coverage.opened.is_set()


async def test_history_can_be_requested_while_our_clock_is_wrong() -> None:
    """A machine that started in 1970 knows from the journal what time it is at least."""
    coverage = Coverage(clock=lambda: 5.0)
    streamed(coverage, BEGAN)

    async with api_client(components(coverage=coverage)) as client:
        answer = await client.post("/api/v1/backfill", json={"since": "2026-11-01T00:00:00Z"})

    (gap,) = answer.json()["gaps"]
    assert (gap["start"], gap["end"]) == ("2026-11-01T00:00:00Z", "2026-11-23T10:02:11.123456Z")


async def test_an_entity_that_nothing_knows_is_refused_by_name() -> None:
    """A misspelt id would else look like an entity without history."""
    coverage, _ = noted()

    async def unknown(entity_ids: Collection[str]) -> list[str]:
        return [entity_id for entity_id in entity_ids if entity_id == "sensor.mispelt"]

    async with api_client(components(coverage=coverage, unknown_entities=unknown)) as client:
        answer = await client.post(
            "/api/v1/backfill",
            json={"since": "2026-11-01T00:00:00Z", "entity_ids": ["sensor.a", "sensor.mispelt"]},
        )

    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_entities")
    assert "'sensor.mispelt'" in answer.json()["detail"]
    assert "sensor.a" not in answer.json()["detail"]
    assert len(coverage.gaps()) == 1


async def test_a_request_opens_no_gap_for_captured_time() -> None:
    """Nothing is to be done, which is no mistake."""
    coverage, _ = noted()
    body = {"since": "2026-11-23T10:03:00Z", "until": "2026-11-23T10:04:00Z"}

    async with api_client(components(coverage=coverage)) as client:
        answer = await client.post("/api/v1/backfill", json=body)

    assert (answer.status_code, answer.json()) == (200, {"gaps": []})


async def test_with_backfill_disabled_a_request_still_opens_a_gap() -> None:
    """With BACKFILL_ENABLED=false."""
    coverage, gap = noted(fills=False)
    body = {"since": "2026-11-23T10:03:00Z", "until": "2026-11-23T10:04:00Z"}

    async with api_client(components(coverage=coverage)) as client:
        answer = await client.post("/api/v1/backfill", json=body)

    assert [found["id"] for found in answer.json()["gaps"]] == [gap.id]


@pytest.mark.parametrize("since", ["0001-01-01T00:00:00Z", "1600-01-01T00:00:00Z"])
async def test_a_request_from_the_beginning_of_time_is_accepted(since: str) -> None:
    """A journal cannot hold such moments, and its next append would fail with them."""
    coverage = Coverage()
    body = {"since": since, "until": "9999-12-31T23:59:59Z"}

    async with api_client(components(coverage=coverage)) as client:
        answer = await client.post("/api/v1/backfill", json=body)

    (gap,) = answer.json()["gaps"]
    assert gap["start"] == "1970-01-01T00:00:00Z"
    assert datetime.fromisoformat(gap["end"]) <= datetime.now(UTC)


@pytest.mark.parametrize(
    "body",
    [
        {"since": "2026-11-02T00:00:00Z", "until": "2026-11-01T00:00:00Z"},
        {"since": "2026-11-01T00:00:00Z", "until": "2026-11-01T00:00:00Z"},
        {"since": "2100-01-01T00:00:00Z"},
        {"since": "2100-01-01T00:00:00Z", "until": "2101-01-01T00:00:00Z"},
    ],
)
async def test_a_request_whose_end_is_not_after_its_start_is_refused(body: dict[str, str]) -> None:
    """With the rule."""
    coverage, _ = noted()

    async with api_client(components(coverage=coverage)) as client:
        answer = await client.post("/api/v1/backfill", json=body)

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "empty_span"
    assert coverage.count("open") == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "since"),
        ({"since": "yesterday"}, "since"),
        ({"since": "2026-11-01T00:00:00"}, "since"),
        ({"since": "2026-11-01T00:00:00Z", "until": "2026-11-02"}, "until"),
        ({"since": "2026-11-01T00:00:00Z", "entity_ids": ["x" * 256]}, "entity_ids"),
        ({"since": "2026-11-01T00:00:00Z", "entity_ids": ["sensor.a"] * 1_001}, "entity_ids"),
        ({"since": "2026-11-01T00:00:00Z", "entity_ids": "sensor.a"}, "entity_ids"),
    ],
)
async def test_a_request_that_is_not_valid_json_is_refused(
    body: dict[str, object], field: str
) -> None:
    """The problem names the field; a moment needs its offset."""
    async with api_client() as client:
        answer = await client.post("/api/v1/backfill", json=body)

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert field in answer.text


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/api/v1/gaps"), ("POST", "/api/v1/backfill")]
)
async def test_gaps_require_the_key(method: str, path: str) -> None:
    """Gaps contain entity ids, which are personal."""
    body = {"since": "2026-11-01T00:00:00Z"} if method == "POST" else None
    guarded = components(access=AccessRules(api_key=KEY))

    async with api_client(peer="192.0.2.7") as client:
        unknown = await client.request(method, path, json=body)
    async with api_client(guarded) as client:
        without = await client.request(method, path, json=body)
        allowed = await client.request(method, path, json=body, headers={"X-API-Key": KEY})

    assert [unknown.status_code, without.status_code, allowed.status_code] == [403, 401, 200]


async def test_a_page_of_another_origin_cannot_start_a_backfill() -> None:
    """A browser that is on this machine for another site."""
    coverage, _ = noted()

    async with api_client(components(coverage=coverage)) as client:
        answer = await client.post(
            "/api/v1/backfill",
            json={"since": "2026-11-01T00:00:00Z"},
            headers={"Origin": "https://elsewhere.example"},
        )

    assert answer.status_code == 403
    assert coverage.count("open") == 1


def test_openapi_describes_the_routes_for_gaps() -> None:
    """With a tag, a summary, examples and the problems they may answer with."""
    document = build_api(components()).openapi()
    schemas = document["components"]["schemas"]

    listed = document["paths"]["/api/v1/gaps"]["get"]
    asked = document["paths"]["/api/v1/backfill"]["post"]
    for operation in (listed, asked):
        assert operation["tags"] == ["gaps"]
        assert operation["summary"]
        assert operation["description"]
        assert "application/problem+json" in operation["responses"]["403"]["content"]
    assert "application/problem+json" in asked["responses"]["422"]["content"]
    assert schemas["GapDocument"]["properties"]["reason"]["enum"] == [
        "restart",
        "disconnect",
        "clock",
        "journal_stalled",
        "journal_full",
        "damage",
        "requested",
    ]
    assert schemas["BackfillRequest"]["required"] == ["since"]
    assert all("examples" in field for field in schemas["GapDocument"]["properties"].values())


async def test_a_body_that_is_not_utf_8_is_refused_as_unreadable() -> None:
    """With its own problem document, as in /openapi.json."""
    async with api_client() as client:
        answer = await client.post(
            "/api/v1/backfill", content=b"\xff\xfe{", headers={"Content-Type": "application/json"}
        )
        document = (await client.get("/openapi.json")).json()

    assert answer.status_code == 400
    assert answer.json()["code"] == "unreadable_body"
    assert "400" in document["paths"]["/api/v1/backfill"]["post"]["responses"]
