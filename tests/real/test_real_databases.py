"""How real databases treat points that they lose, refuse or cannot decompress."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec
import pytest

from app.model import Lines
from app.sinks.influxdb.sink import InfluxSink
from tests.fakes.delivering import RealTime, house, number_of
from tests.real.influx_1 import Database
from tests.real.servers import (
    VICTORIA_RELEASES,
    Server,
    VictoriaRelease,
    influxdb,
    victoria_metrics,
)

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

NAME = "home_assistant_events"
HOUR_S = 3600
MS_NS = 1_000_000


@dataclass
class At:
    """An address without credentials."""

    url: str
    token: str = ""
    org: str = ""
    username: str = ""
    password: str = ""


class _Exported(msgspec.Struct):
    values: list[float]


def numbered(first: int, last: int, *, start_s: float, room: str = "a") -> Lines:
    """Return one line per millisecond, each with its number as value."""
    start_ns = int(start_s * 1000) * MS_NS
    text = [f"m,room={room} v={n} {start_ns + n * MS_NS}\n" for n in range(first, last + 1)]
    return Lines("".join(text).encode(), last - first + 1)


def in_victoria_metrics(url: str, metric: str = "m_v") -> set[int]:
    """Return the stored numbers."""
    httpx.get(f"{url}/internal/force_flush").raise_for_status()
    answer = httpx.get(f"{url}/api/v1/export", params={"match[]": metric}, timeout=30)
    rows = msgspec.json.Decoder(_Exported).decode_lines(answer.raise_for_status().content)
    return {int(value) for row in rows for value in row.values}


async def killed(server: Server) -> None:
    """Kill the database and start it again."""
    server.kill()
    await asyncio.to_thread(server.start)


@pytest.mark.parametrize(
    ("release", "flush_s"),
    [*((release, None) for release in VICTORIA_RELEASES), ("debian", 0.0)],
    ids=lambda value: "not retained" if value == 0.0 else value or "retained",
)
async def test_points_that_victoria_metrics_loses_in_a_kill_are_resent(
    tmp_path: Path, release: VictoriaRelease, flush_s: float | None
) -> None:
    """Three kills in a stream of points; without the resend interval the same kills lose points."""
    start_s, number, kills = time.time() - HOUR_S, 0, 0
    server = victoria_metrics(tmp_path / "victoria-metrics", release)
    with server:
        async with house(
            tmp_path, At(server.url), api="v1", flush_s=flush_s, clock=RealTime()
        ) as parts:
            begun_s = time.monotonic()
            while (passed_s := time.monotonic() - begun_s) < 16:
                lines = numbered(number + 1, number + 200, start_s=start_s)
                await parts.journal.append(lines, received_at=time.time())
                number += 200
                if passed_s > (3.3, 7.9, 14.2, 99)[kills]:
                    await killed(server)
                    kills += 1
                await asyncio.sleep(0.05)
            await parts.delivered(within_s=60)
            books = parts.books
        missing = set(range(1, number + 1)) - in_victoria_metrics(server.url)

    assert kills == 3
    assert books == (number, 0, 0, 0)
    if flush_s is None:
        assert missing == set()
    else:
        assert missing != set(), "no point was lost, so this test proves nothing"


async def test_a_line_that_victoria_metrics_refuses_is_a_dead_letter_with_its_reason(
    tmp_path: Path, victoria: Server
) -> None:
    """Debian's release skips it without an answer, so that it counts as written."""
    now_ns = time.time_ns()
    lines = [f"unreadable v={n} {'none' if n == 7 else now_ns + n * MS_NS}\n" for n in range(20)]
    async with house(tmp_path, At(victoria.url), api="v1", flush_s=0.0) as parts:
        await parts.journal.append(Lines("".join(lines).encode(), 20), received_at=time.time())
        await parts.delivered(within_s=60)
        books, letters = parts.books, await parts.letters()

    stored = set(range(20)) - {7}
    # What was accepted can be queried up to a second later.
    async with asyncio.timeout(10):
        while in_victoria_metrics(victoria.url, "unreadable_v") != stored:
            await asyncio.sleep(0.1)
    if refuses_lines(victoria):
        assert books == (19, 1, 0, 0)
        assert [letter.line for letter in letters] == [b"unreadable v=7 none"]
        assert letters[0].reason.endswith("incorrect influx line: cannot parse timestamp")
    else:
        assert books == (20, 0, 0, 0)


def refuses_lines(server: Server) -> bool:
    """Whether this release refuses a line that it cannot parse."""
    return httpx.post(f"{server.url}/write", content=b"m v=1 none").status_code == 400


@pytest.fixture
def influx(tmp_path: Path) -> Server:
    """Return an InfluxDB 1, not yet started."""
    return influxdb(tmp_path / "influxdb")


async def test_influxdb_stores_live_points_while_old_ones_are_refused(
    tmp_path: Path, influx: Server
) -> None:
    """12,000 points older than the retention, then every second one, then live ones."""
    now_s = time.time()
    with influx:
        database = Database(influx.url, NAME)
        database.create()
        database.run(
            f'ALTER RETENTION POLICY autogen ON "{NAME}" DURATION 1h SHARD DURATION 1h DEFAULT'
        )
        async with (
            house(tmp_path, At(influx.url), api="v1", clock=RealTime()) as parts,
            InfluxSink(influx.url, token="", org="", bucket=NAME, timeout_s=5.0, api="v1") as sink,
        ):
            for first in range(1, 12_001, 1000):
                old = numbered(first, first + 999, start_s=now_s - 48 * HOUR_S)
                await parts.journal.append(old, received_at=now_s)
            young = numbered(1, 1000, start_s=now_s - 60, room="b").data.splitlines(keepends=True)
            old_lines = numbered(1, 1000, start_s=now_s - 48 * HOUR_S).data.splitlines(
                keepends=True
            )
            mixed = b"".join(a + b for a, b in zip(young, old_lines, strict=True))
            await parts.journal.append(Lines(mixed, 2000), received_at=now_s)
            begun_s = time.monotonic()
            await parts.delivered(within_s=60)
            took_s = time.monotonic() - begun_s
            books, letters, retention_s = (
                parts.books,
                await parts.letters(),
                await sink.retention_s(),
            )

    assert books == (1000, 0, 13_000, 0)
    assert letters == []
    assert took_s < 30
    assert retention_s == HOUR_S


async def test_a_field_type_conflict_in_influxdb_holds_all_points(
    tmp_path: Path, influx: Server
) -> None:
    """Every fortieth point lacks the field and is accepted in between."""
    now_ns = time.time_ns()
    with influx:
        database = Database(influx.url, NAME)
        database.create()
        database.write(f'home value="text" {now_ns}\n'.encode())
        lines = [
            f"home,e=a {'state' if n % 40 == 0 else 'value'}={n} {now_ns + n}\n"
            for n in range(1, 1001)
        ]
        async with house(tmp_path, At(influx.url), api="v1") as parts:
            await parts.journal.append(
                Lines("".join(lines).encode(), 1000), received_at=time.time()
            )
            async with asyncio.timeout(60):
                while parts.delivery.status().state != "refusing":
                    await asyncio.sleep(0.01)
            status, letters = parts.delivery.status(), await parts.letters()
            database.create()
            await parts.delivered(within_s=60)
            books = parts.books

    assert len(letters) == 99
    assert "the field value" in (status.reason or "")
    assert books == (901, 99, 0, 0)


@pytest.mark.parametrize("limit", ["max-series-per-database", "max-values-per-tag"])
async def test_points_over_a_limit_of_influxdb_do_not_delay_the_others(
    tmp_path: Path, influx: Server, limit: str
) -> None:
    """Every second of 10,000 points starts a series over the limit; 20,000 requests took 30 s."""
    now_ns = time.time_ns()
    config = next((tmp_path / "influxdb").glob("*.conf"))
    config.write_text(config.read_text().replace("[data]", f"[data]\n {limit} = 100\n"))
    known = [f"home,e=e{n} v={n} {now_ns + n}\n" for n in range(100)]
    mixed = [
        f"home,e={'new' if n % 2 else 'e'}{n if n % 2 else n // 2 % 100} v={n} {now_ns + n}\n"
        for n in range(100, 10_100)
    ]
    live = [f"home,e=e{n % 100} v={n} {now_ns + n}\n" for n in range(10_100, 11_100)]
    with influx:
        database = Database(influx.url, NAME)
        database.create()
        async with house(tmp_path, At(influx.url), api="v1", max_batch_points=5_000) as parts:
            for lines in (known, mixed, live):
                batch = Lines("".join(lines).encode(), len(lines))
                await parts.journal.append(batch, received_at=time.time())
                begun_s = time.monotonic()
                await parts.delivered(within_s=60)
                took_s = time.monotonic() - begun_s if lines is mixed else 0.0
                assert took_s < 10
            books, letters = parts.books, await parts.letters()
        stored = database.count("SELECT count(v) FROM home")

    assert books == (6_100, 5_000, 0, 0)
    assert stored == 6_100
    assert [number_of(letter.line) - now_ns for letter in letters] == [*range(101, 10_100, 2)]
    assert all(limit in letter.reason for letter in letters)


@asynccontextmanager
async def without_gzip(url: str) -> AsyncIterator[str]:
    """Serve a proxy that forwards everything but the header `Content-Encoding`."""
    host, port = url.removeprefix("http://").split(":")

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65_536):
            writer.write(chunk.replace(b"Content-Encoding: gzip\r\n", b""))
            await writer.drain()
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = await asyncio.open_connection(host, int(port))
        with contextlib.suppress(ConnectionError):
            async with asyncio.TaskGroup() as copies:
                copies.create_task(copy(reader, upstream[1]), name="to the database")
                copies.create_task(copy(upstream[0], writer), name="from the database")

    async with await asyncio.start_server(forward, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        server.close()


async def test_influxdb_behind_a_proxy_without_gzip_gets_plain_lines(
    tmp_path: Path, influx: Server
) -> None:
    """It answers 400 to the compressed bytes, which it parses as a line."""
    with influx:
        database = Database(influx.url, NAME)
        database.create()
        async with without_gzip(influx.url) as url, house(tmp_path, At(url), api="v1") as parts:
            lines = numbered(1, 3000, start_s=time.time() - HOUR_S)
            await parts.journal.append(lines, received_at=time.time())
            await parts.delivered(within_s=60)
            books = parts.books
        stored = database.rows("SELECT v FROM m")

    assert books == (3000, 0, 0, 0)
    assert len(stored) == 3000


@pytest.mark.parametrize("tag", [b"b\0", b"b" * 60_000], ids=["NUL", "60 kB"])
async def test_a_line_that_influxdb_cannot_quote_in_a_plain_header_is_a_dead_letter(
    tmp_path: Path, influx: Server, tag: bytes
) -> None:
    """It quotes the whole line in `X-Influxdb-Error`: the lines around it are stored."""
    refused = b"a,%b\\=1 v=1 1" % tag
    with influx:
        database = Database(influx.url, NAME)
        database.create()
        async with house(tmp_path, At(influx.url), api="v1") as parts:
            before = numbered(1, 10, start_s=time.time() - HOUR_S).data
            after = numbered(11, 20, start_s=time.time() - HOUR_S).data
            lines = Lines(b"%b%b\n%b" % (before, refused, after), 21)
            await parts.journal.append(lines, received_at=time.time())
            await parts.delivered(within_s=60)
            books, letters = parts.books, await parts.letters()
        stored = database.rows("SELECT v FROM m")

    assert books == (20, 1, 0, 0)
    assert [letter.line for letter in letters] == [refused]
    assert letters[0].reason.startswith("unable to parse a point: ")
    assert len(stored) == 20
