"""Dead letters over HTTP, in a real file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.model import Lines
from app.sinks.dead_letters import DeadLetters
from app.sinks.outcomes import RefusedLine
from tests.fakes.service import api_client, components
from tests.fakes.snapshots import NOON

LINES = [
    b'm,entity_id=sensor.a text="one\ntwo" 1',
    b"m,entity_id=sensor.b value=\xff 2",
    b"m x=3 3",
]


@pytest.fixture
async def letters(tmp_path: Path) -> AsyncIterator[DeadLetters]:
    """Return three dead letters: two of influxdb, one of the embedded store."""
    async with DeadLetters(tmp_path / "dead_letters.db", clock=NOON.timestamp) as box:
        for sequence, line in enumerate(LINES, start=7):
            sink = "embedded" if sequence == 9 else "influxdb"
            await box.insert(sink, [RefusedLine(sequence, line, "422 no")])
        yield box


async def test_dead_letters_are_listed_page_by_page(letters: DeadLetters) -> None:
    """Newest first, with the reason; `count` is of all."""
    async with api_client(components(dead_letters=letters)) as client:
        first = (await client.get("/api/v1/dead-letters?limit=2")).json()
        cursor = first["next_cursor"]
        second = (await client.get(f"/api/v1/dead-letters?limit=2&cursor={cursor}")).json()

    assert [letter["sequence"] for letter in first["dead_letters"]] == [9, 8]
    assert first["count"] == 3
    assert second == {
        "dead_letters": [
            {
                "id": 1,
                "sink": "influxdb",
                "sequence": 7,
                "line": LINES[0].decode(),
                "reason": "422 no",
                "refused_at": "2026-11-23T12:00:00.123456Z",
            }
        ],
        "count": 3,
        "next_cursor": None,
    }


async def test_dead_letters_that_are_not_utf_8_are_listed_too(letters: DeadLetters) -> None:
    """What a database refused may be anything; the export has the true bytes."""
    async with api_client(components(dead_letters=letters)) as client:
        page = (await client.get("/api/v1/dead-letters?sink=influxdb")).json()

    assert page["dead_letters"][0]["line"] == "m,entity_id=sensor.b value=\ufffd 2"


@pytest.mark.parametrize(
    ("query", "lines"), [("", LINES), ("?sink=embedded", LINES[2:]), ("?sink=nobody", [])]
)
async def test_dead_letters_are_exported_as_line_protocol(
    letters: DeadLetters, query: str, lines: list[bytes]
) -> None:
    """Byte for byte, oldest first."""
    async with api_client(components(dead_letters=letters)) as client:
        response = await client.get(f"/api/v1/dead-letters/export{query}")

    assert response.content == b"".join(line + b"\n" for line in lines)
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["content-disposition"].startswith("attachment")


async def test_a_long_export_of_dead_letters_is_complete(tmp_path: Path) -> None:
    """More than fits one block."""
    async with DeadLetters(tmp_path / "dead_letters.db") as box:
        for sequence in range(600):
            await box.insert("influxdb", [RefusedLine(sequence, b"m x=1 %d" % sequence, "")])
        async with api_client(components(dead_letters=box)) as client:
            response = await client.get("/api/v1/dead-letters/export")

    assert response.content.splitlines() == [b"m x=1 %d" % sequence for sequence in range(600)]


async def test_dead_letters_are_retried_through_the_journal(letters: DeadLetters) -> None:
    """Those of the sink are appended again and gone from the box."""
    appended: list[Lines] = []

    async def append(lines: Lines) -> None:
        appended.append(lines)

    parts = components(dead_letters=letters, append=append)
    async with api_client(parts) as client:
        response = await client.post("/api/v1/dead-letters/retry?sink=influxdb")

    assert response.json() == {"retried": 2}
    assert [line for lines in appended for line in lines.split()] == LINES[:2]
    assert letters.count == 1


async def test_without_a_journal_a_retry_loses_no_dead_letter(letters: DeadLetters) -> None:
    """Dead letters stay until the journal accepts them."""
    async with api_client(components(dead_letters=letters)) as client:
        response = await client.post("/api/v1/dead-letters/retry")

    assert (response.status_code, response.json()["code"]) == (503, "storage_failed")
    assert letters.count == 3


@pytest.mark.parametrize(
    ("query", "left"),
    [("?all=true", []), ("?sink=influxdb", [9]), ("?id=1&id=3&id=99", [8])],
)
async def test_dead_letters_are_deleted_by_id_by_sink_or_all(
    letters: DeadLetters, query: str, left: list[int]
) -> None:
    """The response has the number of deleted ones."""
    async with api_client(components(dead_letters=letters)) as client:
        response = await client.delete(f"/api/v1/dead-letters{query}")
        page = (await client.get("/api/v1/dead-letters")).json()

    assert response.json() == {"deleted": 3 - len(left)}
    assert [letter["sequence"] for letter in page["dead_letters"]] == left


@pytest.mark.parametrize("query", ["", "?all=false", "?sin=influxdb", "?ids=1", "?sink=a&al=true"])
async def test_a_deletion_without_a_criterion_or_with_a_misspelt_one_is_refused(
    letters: DeadLetters, query: str
) -> None:
    """Deleting all needs `all=true`."""
    async with api_client(components(dead_letters=letters)) as client:
        response = await client.delete(f"/api/v1/dead-letters{query}")

    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert letters.count == 3


async def test_a_page_of_another_origin_cannot_delete_dead_letters(letters: DeadLetters) -> None:
    """A foreign site in the browser of this machine is refused."""
    async with api_client(components(dead_letters=letters)) as client:
        response = await client.delete(
            "/api/v1/dead-letters", headers={"Origin": "https://evil.example"}
        )

    assert (response.status_code, response.json()["code"]) == (403, "foreign_origin")
    assert letters.count == 3
