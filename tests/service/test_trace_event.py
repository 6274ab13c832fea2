"""How much code one live event passes: a reader has to follow all of it."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.fakes.documents import ROOT

MOST_FUNCTIONS = 115
MOST_FILES = 31


def test_the_path_of_a_live_event_does_not_grow() -> None:
    """`make trace` prints the figures, `python -m tests.trace_event --list` the functions."""
    command = [sys.executable, "-m", "tests.trace_event", "--list"]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    *functions, summary = ended.stdout.splitlines()
    counted = re.fullmatch(r"(\d+) functions in (\d+) files, \d+ calls", summary)

    assert counted is not None, summary
    assert any(function.endswith("InfluxSink.write") for function in functions)
    assert int(counted[1]) <= MOST_FUNCTIONS, ended.stdout
    assert int(counted[2]) <= MOST_FILES, ended.stdout
