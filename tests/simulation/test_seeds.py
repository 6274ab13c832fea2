"""Seeds that failed once. Each is a bug of the service that was found by simulation.

The number of a seed draws its actions, so a world that once failed may change when faults are
added. The unit test that belongs to each bug is named in its sentence.
"""

from __future__ import annotations

import pytest

from tests.simulation.test_simulation import simulate


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(
            ("--seed", "18", "--seconds", "3600"),
            id="home assistant restarted again before it had started",
        ),
    ],
)
def test_a_seed_that_failed_once_passes(arguments: tuple[str, ...]) -> None:
    """See `test_restarts.py` for the first."""
    run = simulate(*arguments)

    assert run.returncode == 0, run.stdout[-5000:]
