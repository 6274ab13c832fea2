"""A database that acknowledges before it stores: nothing it loses in a restart is missing."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.model import Row
from app.sinks.batches import whole_rows
from app.sinks.influxdb.detect import server_process
from app.sinks.influxdb.http import Reply as HttpReply
from app.sinks.outcomes import ServerProcess
from app.sinks.progress import Progress
from tests.fakes.delivering import House, house, lines, number_of
from tests.fakes.influx import FakeInflux
from tests.fakes.journal import FakeJournal
from tests.fakes.points import new_telemetry
from tests.fakes.replies import Reply

NAME = "influxdb"
FIRST = ServerProcess(flush_s=10.0, started="1000")
SECOND = ServerProcess(flush_s=10.0, started="2000")
METRICS = b"process_cpu_seconds_total 1\nprocess_start_time_seconds 1796043705\nvm_app_version 1\n"


class Bench:
    """A position in a journal of ten rows of ten points, with a clock and a database by hand."""

    def __init__(self, answer: ServerProcess | None = FIRST) -> None:
        self.now_s = 100.0
        self.answer = answer
        self.asked = 0
        self.telemetry = new_telemetry()
        self.journal = FakeJournal()
        for first in range(1, 101, 10):
            text = b"".join(b"m v=1 %d\n" % number for number in range(first, first + 10))
            self.journal.add_row(Row(first, 10, gzip.compress(text), float(first)))
        self.progress = Progress(
            self.journal,
            NAME,
            telemetry=self.telemetry,
            clock=lambda: self.now_s,
            process=self.ask,
        )

    async def ask(self) -> ServerProcess | None:
        """Answer as the database would."""
        self.asked += 1
        return self.answer

    async def accept(self) -> Row:
        """Let the database accept the next row."""
        after = self.progress.unconfirmed_through
        row = (await self.journal.read(NAME, max_points=1, after=after))[0]
        self.progress.done(whole_rows([row]))
        return row

    @property
    def written(self) -> int:
        """How many points count as written."""
        return self.telemetry.sink(NAME).written


@pytest.fixture
async def bench() -> Bench:
    """Return one whose database is known."""
    bench = Bench()
    assert await bench.progress.check() == 0
    return bench


async def test_accepted_points_stay_in_the_journal_until_they_are_on_disk(bench: Bench) -> None:
    """The position moves at once; the cursor and the count follow after the flush interval."""
    await bench.accept()
    bench.now_s += 4.0
    await bench.accept()

    assert (bench.progress.position, bench.journal.acked, bench.written) == (20, 0, 0)
    assert bench.progress.pending().points == 80
    assert bench.progress.unconfirmed_through == 20
    assert bench.progress.check_in_s == 6.0

    bench.now_s += 6.0
    assert await bench.progress.check() == 0
    assert (bench.progress.position, bench.journal.acked, bench.written) == (20, 10, 10)


async def test_a_restart_sends_again_what_may_not_be_on_disk(bench: Bench) -> None:
    """From the cursor on, in order; nothing was counted."""
    await bench.accept()
    await bench.accept()
    bench.now_s += 10.0
    bench.answer = SECOND

    assert await bench.progress.check() == 20
    assert (bench.progress.position, bench.journal.acked, bench.written) == (0, 0, 0)
    assert (await bench.accept()).first == 1


async def test_a_lost_connection_is_looked_into_before_anything_else_is_sent(
    bench: Bench,
) -> None:
    """The same process goes on; another one gets everything again."""
    await bench.accept()
    bench.progress.connection_lost()
    assert bench.progress.check_in_s == 0.0
    assert await bench.progress.check() == 0

    bench.progress.connection_lost()
    bench.answer = SECOND
    assert await bench.progress.check() == 10


async def test_a_database_that_does_not_answer_acks_nothing(bench: Bench) -> None:
    """It is asked again a second later."""
    await bench.accept()
    bench.now_s += 10.0
    bench.answer = None

    assert await bench.progress.check() == 0
    assert bench.journal.acked == 0
    assert bench.progress.check_in_s == 1.0


async def test_without_a_start_time_a_lost_connection_means_a_restart() -> None:
    """A proxy may hide `/metrics`; INFLUXDB_FLUSH_INTERVAL then counts alone."""
    bench = Bench(ServerProcess(flush_s=10.0))
    assert await bench.progress.check() == 0
    await bench.accept()
    bench.now_s += 10.0
    assert await bench.progress.check() == 0
    assert bench.written == 10

    await bench.accept()
    bench.progress.connection_lost()
    assert await bench.progress.check() == 10


async def test_points_accepted_before_the_process_was_known_are_sent_again() -> None:
    """It may have restarted in between."""
    bench = Bench()
    await bench.accept()

    assert await bench.progress.check() == 10
    assert bench.progress.position == 0


async def test_a_database_that_stores_before_it_acknowledges_is_asked_once() -> None:
    """From then on the cursor moves with every acceptance."""
    bench = Bench(ServerProcess())
    await bench.progress.check()
    await bench.accept()

    assert (bench.journal.acked, bench.written) == (10, 10)
    assert bench.progress.check_in_s is None
    assert bench.asked == 1


async def test_what_the_journal_dropped_meanwhile_is_not_counted_again(bench: Bench) -> None:
    """At its bound the journal drops the oldest, retained or not."""
    await bench.accept()
    await bench.accept()
    bench.journal.drop(15)
    bench.now_s += 10.0
    await bench.progress.check()

    assert bench.written == 5
    assert bench.journal.acked == 20


@pytest.mark.parametrize(
    ("status", "body", "flush_s", "process"),
    [
        (200, METRICS, None, ServerProcess(flush_s=10.0, started="1796043705")),
        (200, METRICS, 3.0, ServerProcess(flush_s=3.0, started="1796043705")),
        (200, METRICS, 0.0, ServerProcess(flush_s=0.0, started="1796043705")),
        (200, b"process_start_time_seconds 1.7e+09\n", None, ServerProcess(started="1.7e+09")),
        (404, b"404 page not found", None, ServerProcess()),
        (401, METRICS, 5.0, ServerProcess(flush_s=5.0)),
        (200, b"", None, ServerProcess()),
    ],
)
def test_metrics_say_what_a_database_is(
    status: int, body: bytes, flush_s: float | None, process: ServerProcess
) -> None:
    """Only VictoriaMetrics is known to acknowledge before it stores."""
    reply = HttpReply(status=status, headers={}, body=body)

    assert process == server_process(reply, flush_s=flush_s)


@asynccontextmanager
async def victoria(tmp_path: Path) -> AsyncIterator[tuple[FakeInflux, House]]:
    """Serve a database that identifies itself as VictoriaMetrics."""
    async with FakeInflux(version="v1", token="").serving() as server:
        server.started_at = 1000
        async with house(tmp_path, server, api="v1") as parts:
            yield server, parts


async def until(met: Callable[[], bool]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(20):
        while not met():
            await asyncio.sleep(0.001)


async def accepted(parts: House) -> None:
    """Wait until delivery knows that the database has accepted everything."""
    await until(lambda: not parts.delivery.status().lag_seconds)


async def test_what_a_killed_database_forgot_is_sent_again_in_order(tmp_path: Path) -> None:
    """A restart between two batches loses no connection and is noticed all the same."""
    async with victoria(tmp_path) as (server, parts):
        await parts.journal.append(lines(1, 1000), received_at=time.time())
        await until(lambda: len(server.lines) == 1000)
        await accepted(parts)
        assert parts.books == (0, 0, 0, 1000)
        server.lines.clear()
        server.started_at = 2000
        parts.clock.slept_s += 10.0
        await parts.journal.append(lines(1001, 2000), received_at=time.time())
        await until(lambda: len({*server.lines}) == 2000)
        await accepted(parts)
        parts.clock.slept_s += 10.0
        await parts.journal.append(lines(2001, 2001), received_at=time.time())
        await until(lambda: parts.books[0] >= 2000)
        await accepted(parts)
        parts.clock.slept_s += 10.0
        await parts.journal.append(lines(2002, 2002), received_at=time.time())
        await until(lambda: parts.books[0] >= 2001)

    assert list(dict.fromkeys(map(number_of, server.lines)))[:2000] == list(range(1, 2001))


async def test_in_a_quiet_home_points_are_acked_without_another_one(tmp_path: Path) -> None:
    """Delivery looks by itself when the interval has passed."""
    async with (
        FakeInflux(version="v1", token="").serving() as server,
        house(tmp_path, server, api="v1", flush_s=0.2) as parts,
    ):
        await parts.journal.append(lines(1, 3), received_at=time.time())
        await until(lambda: parts.books == (3, 0, 0, 0))

    assert len(server.lines) == 3


async def test_a_stopping_service_does_not_wait_for_what_is_not_on_the_databases_disk(
    tmp_path: Path,
) -> None:
    """Without another request: the cursor stays, so the next start sends those points again."""
    async with victoria(tmp_path) as (server, parts):
        await parts.journal.append(lines(1, 100), received_at=time.time())
        await until(lambda: len(server.lines) == 100)
        await accepted(parts)
        asked = server.metrics_asked
        (running,) = [task for task in asyncio.all_tasks() if task.get_name() == "deliver"]
        parts.delivery.finish()
        async with asyncio.timeout(20):
            await running

        assert server.metrics_asked == asked
        assert parts.books == (0, 0, 0, 100)


@pytest.mark.parametrize("flush_s", [None, 0.1])
async def test_a_database_that_never_answers_for_its_process_does_not_fill_the_journal(
    tmp_path: Path, flush_s: float | None
) -> None:
    """A proxy may answer 503 at `/metrics` forever; only while writes are accepted that is all."""
    async with (
        FakeInflux(version="v1", token="").serving() as server,
        house(tmp_path, server, api="v1", flush_s=flush_s) as parts,
    ):
        server.metrics_reply = Reply(status=503)
        number = 0
        async with asyncio.timeout(20):
            while not parts.books[0]:
                number += 1
                await parts.journal.append(lines(number, number), received_at=time.time())
                parts.clock.slept_s += 1.0
                await asyncio.sleep(0.01)
        await until(lambda: parts.books == (number, 0, 0, 0))

    assert len({*server.lines}) == number


@pytest.mark.parametrize(
    "instead",
    [
        Reply(status=404, body="404 page not found"),
        Reply(status=401, body="Unauthorized"),
        Reply(status=302, headers={"Location": "/login"}),
        Reply(status=200, body="<html><form>Log in</form></html>"),
    ],
    ids=lambda reply: str(reply.status),
)
async def test_a_proxy_that_answers_in_place_of_a_killed_database_acks_nothing(
    tmp_path: Path, instead: Reply
) -> None:
    """Proxies answer 404, or show a login page, while the database restarts behind them."""
    async with victoria(tmp_path) as (server, parts):
        await parts.journal.append(lines(1, 100), received_at=time.time())
        await until(lambda: len(server.lines) == 100)
        await accepted(parts)
        server.lines.clear()
        server.metrics_reply = server.fault = instead
        asked = server.metrics_asked
        parts.clock.slept_s += 20.0
        await parts.journal.append(lines(101, 200), received_at=time.time())
        await until(lambda: server.metrics_asked > asked + 3)
        assert parts.books == (0, 0, 0, 200)
        server.metrics_reply = server.fault = None
        server.started_at = 2000
        await until(lambda: len({*server.lines}) == 200)


async def test_a_database_whose_place_a_proxy_took_at_our_start_is_known_later(
    tmp_path: Path,
) -> None:
    """After a power cut both start at once; what the proxy responded meanwhile is not believed."""
    instead = Reply(status=404, body="404 page not found")
    async with victoria(tmp_path) as (server, parts):
        server.metrics_reply = server.fault = instead
        await parts.journal.append(lines(1, 100), received_at=time.time())
        await until(lambda: server.metrics_asked >= 2)
        server.metrics_reply = None
        asked = server.metrics_asked
        await until(lambda: server.metrics_asked > asked)
        server.fault = None
        await until(lambda: len(server.lines) == 100)
        await parts.journal.append(lines(101, 200), received_at=time.time())
        await until(lambda: len(server.lines) == 200)

        assert parts.books == (0, 0, 0, 200)


async def test_our_own_restart_sends_again_what_was_not_yet_on_its_disk(tmp_path: Path) -> None:
    """The cursor stays where it was, so nothing depends on memory of ours."""
    async with victoria(tmp_path) as (server, parts):
        await parts.journal.append(lines(1, 100), received_at=time.time())
        await until(lambda: len(server.lines) == 100)
        assert parts.books == (0, 0, 0, 100)
    async with FakeInflux(version="v1", token="").serving() as server:
        server.started_at = 2000
        async with house(tmp_path, server, api="v1"):
            await until(lambda: len(server.lines) == 100)
