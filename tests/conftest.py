"""What holds for every test."""

import os
from collections.abc import Iterator

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


@pytest.fixture(autouse=True)
def _no_repeats_of_other_tests() -> Iterator[None]:
    """A message that an earlier test logged is new in the next one."""
    yield
    repeats.clear()
