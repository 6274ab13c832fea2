"""Readings of memory and processor time, and the monitor of memory."""

from __future__ import annotations

import asyncio
import errno
import logging
from pathlib import Path
from time import time
from types import SimpleNamespace
from typing import cast

import psutil
import pytest

from app.container import Container
from app.health_collector import ProcessUsage
from app.settings import load_settings


class FakeProcess:
    """A process whose memory can be read, or not."""

    failure: Exception | None = None

    def memory_info(self) -> SimpleNamespace:
        """Return 50 MB, or fail like psutil when no file descriptor is left."""
        if self.failure:
            raise self.failure
        return SimpleNamespace(rss=50_000_000)


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.EMFILE, "Too many open files"),
        PermissionError(errno.EACCES, "Permission denied"),
        psutil.AccessDenied(1),
        psutil.NoSuchProcess(1),
    ],
)
def test_the_last_memory_usage_stays_when_it_cannot_be_read(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """The failure is counted, and logged once."""
    process = FakeProcess()
    usage = ProcessUsage(cast("psutil.Process", process))
    usage.read()
    process.failure = failure
    with caplog.at_level(logging.WARNING):
        usage.read()
        usage.read()

    assert (usage.memory_mb, usage.failures) == (50.0, 2)
    assert len(caplog.records) == 1


def test_processor_time_is_the_share_since_the_last_reading() -> None:
    """100 % is one core; two readings at one moment keep the last share."""
    times = iter([(10.0, 1.0), (12.0, 2.0), (12.0, 2.0), (16.0, 3.0)])
    usage = ProcessUsage(cast("psutil.Process", FakeProcess()), times=lambda: next(times))
    shares = []
    for _ in range(3):
        usage.read()
        shares.append(usage.cpu_percent)

    assert shares == [50.0, 50.0, 25.0]


class BrokenUsage(ProcessUsage):
    """Fails unexpectedly."""

    def read(self) -> None:
        """Fail."""
        raise ZeroDivisionError


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Container:
    """Return the components of a service with one database, none of them open."""
    monkeypatch.setenv("HOME_ASSISTANT_URL", "http://localhost:8123")
    monkeypatch.setenv("HOME_ASSISTANT_TOKEN", "t" * 40)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setenv("INFLUXDB_URL", "http://localhost:8086")
    return Container(settings=load_settings(None))


async def test_a_snapshot_has_the_counts_of_telemetry_and_of_each_sink(
    container: Container,
) -> None:
    """By the names of `/health`."""
    telemetry = container.telemetry()
    telemetry.events_received(3)
    telemetry.batch_committed(2, seconds=0.01, received_at=time() - 60)
    telemetry.batch_written("influxdb", 1, seconds=0.01, received_at=time() - 600)
    telemetry.points_dead_lettered("influxdb", 4)
    telemetry.points_dropped("influxdb", 2)
    telemetry.points_expired("influxdb", 3)
    async with container.journal():
        snapshot = container.observer().snapshot()

    (sink,) = snapshot.sinks
    assert snapshot.subscription.total_events_received == 3
    assert snapshot.accounting.events.journaled == 2
    assert snapshot.journal.last_commit_delay_seconds == pytest.approx(60, abs=30)
    assert sink.last_delay_seconds == pytest.approx(600, abs=30)
    assert (sink.points_written, sink.points_dead_lettered) == (1, 4)
    assert (sink.points_dropped, sink.points_expired) == (5, 3)
    assert snapshot.connection.is_running


async def test_a_source_whose_loop_ended_is_not_running(container: Container) -> None:
    """`is_running` is about our task, not about Home Assistant."""
    container.supervisor().failures["source"] = "KeyError('id')"
    async with container.journal():
        snapshot = container.observer().snapshot()

    assert (snapshot.connection.is_running, snapshot.status) == (False, "unhealthy")


async def test_a_snapshot_does_not_read_the_memory_but_shows_what_the_monitor_read(
    container: Container,
) -> None:
    """Reading it at every scrape would cost as much as the rest of the snapshot."""
    observer = container.observer()
    async with container.journal():
        before = observer.snapshot().performance.memory_mb
        watch = asyncio.create_task(observer.watch())
        await asyncio.sleep(0)
        watch.cancel()
        after = observer.snapshot().performance.memory_mb

    assert before == 0.0 < after


async def test_the_monitor_continues_after_an_unexpected_error(
    container: Container, caplog: pytest.LogCaptureFixture
) -> None:
    """It must not end the service; the traceback is logged once."""
    usage = BrokenUsage()
    observer = container.observer(watch_s=0.0, usage=usage)
    watch = asyncio.create_task(observer.watch())
    async with asyncio.timeout(5):
        while observer.watch_failures < 3:
            await asyncio.sleep(0)
    watch.cancel()

    assert [record.exc_info is not None for record in caplog.records] == [True]
