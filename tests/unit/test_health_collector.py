"""What the monitor does when it cannot read."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import psutil
import pytest

from app.container import Container
from app.health_collector import ProcessUsage
from app.settings import load_settings


class FakeProcess:
    """A process whose numbers can be read, or not."""

    failure: Exception | None = None

    @contextlib.contextmanager
    def oneshot(self) -> Iterator[None]:
        """Fail like psutil when there is no descriptor left."""
        if self.failure:
            raise self.failure
        yield

    def memory_info(self) -> SimpleNamespace:
        """Return 50 MB."""
        return SimpleNamespace(rss=50_000_000)

    def cpu_percent(self) -> float:
        """Return 7 %."""
        return 7.0


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.EMFILE, "Too many open files"),
        PermissionError(errno.EACCES, "Permission denied"),
        psutil.AccessDenied(1),
        psutil.NoSuchProcess(1),
    ],
)
def test_the_last_numbers_stay_when_they_cannot_be_read(
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

    assert (usage.memory_mb, usage.cpu_percent, usage.failures) == (50.0, 7.0, 2)
    assert len(caplog.records) == 1


class BrokenUsage(ProcessUsage):
    """Fails in a way that nobody foresaw."""

    def read(self) -> None:
        """Fail."""
        raise ZeroDivisionError


async def test_the_monitor_goes_on_after_a_failure_that_nobody_foresaw(
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
