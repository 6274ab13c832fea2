"""What holds for every test."""

import gc
import os
from collections.abc import Iterator, Sequence
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings

from app.runtime.logging import repeats

# How long an example takes says how busy the machine is, not whether the code is right. What
# must pass tries the same examples every time; other runs try new ones.
settings.register_profile(
    "calm",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("calm")

T = TypeVar("T")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start the long tests first: one that starts last keeps one worker busy, and no other."""
    workers: int = getattr(config, "workerinput", {}).get("workercount", 1)
    if workers == 1:
        return
    longest: list[pytest.Item] = []
    long: list[pytest.Item] = []
    short: list[pytest.Item] = []
    for item in items:
        if item.get_closest_marker("long"):
            longest.append(item)
        else:
            (long if item.path.parent.name in {"service", "simulation"} else short).append(item)
    items[:] = dealt(longest, long, short, workers=workers)


def pytest_collection_finish() -> None:
    """Exclude modules and tests from garbage collection: scanning them all takes half a second."""
    gc.freeze()


def dealt(longest: Sequence[T], long: Sequence[T], short: Sequence[T], *, workers: int) -> list[T]:
    """Return all tests in an order in which each worker has its part of the long ones first.

    `pytest -n --dist worksteal` gives each worker a contiguous share of equal size; what a busy
    worker has not begun, idle ones take from the end of its share. Tests of one file stay
    together, except for the longest.
    """
    found: list[T] = []
    total, used = len(longest) + len(long) + len(short), 0
    for worker in range(workers):
        size = (total - len(found)) // (workers - worker)
        begin, end = (len(long) * each // workers for each in (worker, worker + 1))
        first = [*longest[worker::workers], *long[begin:end]]
        filled = used + max(0, size - len(first))
        found += [*first, *short[used:filled]]
        used = filled
    return [*found, *short[used:]]


@pytest.fixture(autouse=True)
def _no_repeats_of_other_tests() -> Iterator[None]:
    """A message that an earlier test logged is new in the next one."""
    yield
    repeats.clear()
