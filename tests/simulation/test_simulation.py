"""The simulator itself: the same seed is the same run, and every fault has an effect."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(600)  # two runs, on a busy machine


def simulate(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the simulator in a process of its own, as its clocks need it."""
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


def test_the_same_seed_gives_the_same_run_for_every_hash_seed() -> None:
    """Nothing depends on the order of a set, on an address, or on the real time."""
    runs = [simulate("--seed", "2", "--seconds", "900", PYTHONHASHSEED=n) for n in ("1", "2")]

    traces = [re.findall(r"trace (\w+)", run.stdout) for run in runs]

    assert [run.returncode for run in runs] == [0, 0], runs[0].stdout
    assert len(traces[0]) == 1
    assert traces[0] == traces[1]


def test_every_kind_of_fault_has_an_effect() -> None:
    """What it must be is in `effects.py`; a fault that only looks like one would prove nothing."""
    run = simulate("--each-kind")

    assert run.returncode == 0, run.stdout[-5000:]
