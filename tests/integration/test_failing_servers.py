"""A failing server is not a bad line: whatever fails for every line makes no dead letter."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.fakes.delivering import House, house, lines, number_of
from tests.fakes.influx import FakeInflux
from tests.fakes.replies import Reply

LOGIN_PAGE = Reply(status=200, body="<html><form>Log in</form></html>")
FULL_DISK = Reply(status=500, body='{"code":"internal error","message":"no space left on device"}')
LONG_S = 2 * 3600.0


async def slept(parts: House, seconds: float) -> None:
    """Wait until delivery has waited that long."""
    async with asyncio.timeout(60):
        while parts.clock.slept_s < seconds:
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("fault", "ping", "points"),
    [
        pytest.param(FULL_DISK, None, 50, id="full disk"),
        pytest.param(FULL_DISK, None, 1, id="full disk, one line"),
        pytest.param(FULL_DISK, Reply(status=404, body="404 page not found"), 50, id="ping 404"),
        pytest.param(FULL_DISK, LOGIN_PAGE, 50, id="ping is a login page"),
        pytest.param(Reply(status=502, body="<h1>502 Bad Gateway</h1>"), None, 50, id="502"),
        pytest.param(Reply(status=504, body="<h1>504 Gateway Timeout</h1>"), None, 50, id="504"),
        pytest.param(LOGIN_PAGE, LOGIN_PAGE, 50, id="login page everywhere"),
        pytest.param(
            Reply(status=302, headers={"Location": "/login"}), LOGIN_PAGE, 50, id="redirect"
        ),
        pytest.param(Reply(act="reset"), None, 50, id="reset"),
    ],
)
async def test_what_fails_for_every_line_makes_no_dead_letter(
    tmp_path: Path, fault: Reply, ping: Reply | None, points: int
) -> None:
    """For hours, whatever `/ping` answers meanwhile; afterwards everything arrives."""
    async with FakeInflux().serving() as server, house(tmp_path, server) as parts:
        await parts.journal.append(lines(1, 5), received_at=time.time())
        await parts.delivered()
        server.fault, server.ping_reply = fault, ping
        await parts.journal.append(lines(6, 5 + points), received_at=time.time())
        await slept(parts, LONG_S)
        letters, status = await parts.letters(), parts.delivery.status()
        server.fault, server.ping_reply = None, None
        await parts.delivered()
        books = parts.books

    assert letters == []
    assert status.state == "waiting"
    assert books == (5 + points, 0, 0, 0)
    first_time = list(dict.fromkeys(map(number_of, server.lines)))
    assert first_time == list(range(1, 6 + points))


async def test_a_server_that_fails_from_the_start_makes_no_dead_letter(tmp_path: Path) -> None:
    """Nothing was ever accepted, so that there is no line to compare with."""
    async with FakeInflux().serving() as server, house(tmp_path, server) as parts:
        server.fault = FULL_DISK
        await parts.journal.append(lines(1, 50), received_at=time.time())
        await slept(parts, LONG_S)
        letters = await parts.letters()
        server.fault = None
        await parts.delivered()

    assert letters == []
    assert {number_of(line) for line in server.lines} == set(range(1, 51))


@pytest.mark.parametrize(
    ("bad", "ping"),
    [({1}, None), ({25}, None), ({50}, Reply(status=404)), ({24, 25, 26}, LOGIN_PAGE)],
    ids=str,
)
async def test_a_line_that_breaks_the_server_alone_is_a_dead_letter(
    tmp_path: Path, bad: set[int], ping: Reply | None
) -> None:
    """Each after ten minutes in which others were accepted; also several side by side."""
    async with FakeInflux().serving() as server, house(tmp_path, server) as parts:
        server.breaks_on, server.ping_reply = (lambda line: number_of(line) in bad), ping
        await parts.journal.append(lines(1, 50), received_at=time.time())
        await parts.delivered()
        letters, books = await parts.letters(), parts.books
        slept_s = parts.clock.slept_s

    assert {number_of(letter.line) for letter in letters} == bad
    assert {number_of(line) for line in server.lines} == set(range(1, 51)) - bad
    assert books == (50 - len(bad), len(bad), 0, 0)
    assert slept_s >= 600 * len(bad)


async def test_good_lines_behind_a_thousand_unwritable_ones_are_found(tmp_path: Path) -> None:
    """A probe looks beyond the head, also beyond what one request would hold."""
    async with FakeInflux().serving() as server:
        server.refuses = lambda line: "invalid" if number_of(line) <= 1000 else None
        async with house(tmp_path, server, max_batch_points=100) as parts:
            for start in range(0, 1000, 100):
                await parts.journal.append(lines(start + 1, start + 100), received_at=time.time())
            await parts.journal.append(lines(1001, 1100), received_at=time.time())
            await parts.delivered(within_s=60)
            letters, slept_s = await parts.letters(), parts.clock.slept_s

    assert [number_of(letter.line) for letter in letters] == list(range(1, 1001))
    first_time = list(dict.fromkeys(map(number_of, server.lines)))
    assert [number for number in first_time if number != 1100] == list(range(1001, 1100))
    assert slept_s < 60


@pytest.mark.parametrize(
    "refusal",
    [
        Reply(status=415, body="Unsupported Media Type"),
        Reply(status=400, body="Bad Request"),
        Reply(status=400, body='{"error":"unable to parse \'\\u001f\\ufffd\': missing fields"}'),
    ],
    ids=["415", "400 of a proxy", "400 of InfluxDB 1"],
)
@pytest.mark.parametrize("bad", [set[int](), {1}, {2}], ids=str)
async def test_where_gzip_is_refused_points_are_sent_uncompressed(
    tmp_path: Path, refusal: Reply, bad: set[int], caplog: pytest.LogCaptureFixture
) -> None:
    """It is found out once and logged once; bad lines stay bad lines."""
    async with FakeInflux().serving() as server:
        server.takes_gzip, server.gzip_refusal = False, refusal
        server.refuses = lambda line: "unable to parse" if number_of(line) in bad else None
        async with house(tmp_path, server) as parts:
            for start in range(0, 3000, 1000):
                await parts.journal.append(lines(start + 1, start + 1000), received_at=time.time())
            await parts.delivered()
            letters, books = await parts.letters(), parts.books

    assert {number_of(letter.line) for letter in letters} == bad
    assert {number_of(line) for line in server.lines} == set(range(1, 3001)) - bad
    assert books == (3000 - len(bad), len(bad), 0, 0)
    assert caplog.text.count("uncompressed") == 1
    compressed = [r for r in server.requests if r.headers.get("Content-Encoding") == "gzip"]
    assert len(compressed) <= 15


async def test_where_a_refusal_of_gzip_cannot_be_parsed_points_are_sent_uncompressed(
    tmp_path: Path,
) -> None:
    """InfluxDB 1 quotes the compressed body in a header, which HTTP clients refuse to read."""
    async with FakeInflux(version="v1").serving() as server:
        server.takes_gzip, server.gzip_refusal = False, Reply(status=400, act="garbled")
        async with house(tmp_path, server) as parts:
            await parts.journal.append(lines(1, 100), received_at=time.time())
            await parts.delivered()
            books = parts.books

    assert books == (100, 0, 0, 0)
    assert {number_of(line) for line in server.lines} == set(range(1, 101))


async def test_a_refused_line_alone_does_not_switch_compression_off(tmp_path: Path) -> None:
    """Uncompressed it is refused as well."""
    async with FakeInflux().serving() as server:
        server.refuses = lambda line: "unable to parse" if number_of(line) == 1 else None
        async with house(tmp_path, server) as parts:
            await parts.journal.append(lines(1, 1), received_at=time.time())
            await parts.delivered()
            await parts.journal.append(lines(2, 1000), received_at=time.time())
            await parts.delivered()

    assert server.requests[-1].headers["Content-Encoding"] == "gzip"


async def test_a_proxy_that_refuses_gzip_may_be_put_up_at_any_time(tmp_path: Path) -> None:
    """A 415 is about the body's encoding, also after gzip was accepted before."""
    async with FakeInflux().serving() as server, house(tmp_path, server) as parts:
        await parts.journal.append(lines(1, 100), received_at=time.time())
        await parts.delivered()
        server.takes_gzip = False
        await parts.journal.append(lines(101, 200), received_at=time.time())
        await parts.delivered()
        books = parts.books

    assert books == (200, 0, 0, 0)
