"""Readings of memory and processor time, and the monitor of memory."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from pathlib import Path
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


def test_processor_time_is_that_since_the_last_reading() -> None:
    """100 % is one core; a process that sleeps uses none."""
    usage = ProcessUsage(cast("psutil.Process", FakeProcess()))
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    usage.read()
    busy = usage.cpu_percent
    time.sleep(0.1)
    usage.read()

    assert 0 < usage.cpu_percent < busy


class BrokenUsage(ProcessUsage):
    """Fails unexpectedly."""

    def read(self) -> None:
        """Fail."""
        raise ZeroDivisionError


async def test_the_monitor_continues_after_an_unexpected_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It must not end the service; the traceback is logged once."""
    monkeypatch.setenv("HOME_ASSISTANT_URL", "http://localhost:8123")
    monkeypatch.setenv("HOME_ASSISTANT_TOKEN", "t" * 40)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    usage = BrokenUsage()
    container = Container(settings=load_settings(None))
    observer = container.observer(watch_s=0.0, usage=usage)
    watch = asyncio.create_task(observer.watch())
    async with asyncio.timeout(5):
        while observer.watch_failures < 3:
            await asyncio.sleep(0)
    watch.cancel()

    assert [record.exc_info is not None for record in caplog.records] == [True]
