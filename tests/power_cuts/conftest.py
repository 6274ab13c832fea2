"""The seed of a run, and its figures at the end."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Choose a seed, the same for every process of this run."""
    os.environ.setdefault("SEED", str(int(time.time())))


def pytest_report_header() -> str:
    """Print what repeats the choices of this run."""
    count, seed = os.environ.get("COUNT", "200"), os.environ["SEED"]
    return f"repeat the choices of this run with: make power-cuts COUNT={count} SEED={seed}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures of the tests."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Log nothing: hundreds of starts would bury what failed."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Return an empty folder, in memory where there is such a place: each start syncs its files."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="power-cuts-") as path:
        yield Path(path)
