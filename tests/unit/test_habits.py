"""The commands that the README promises are there, and CI runs them and no others."""

from __future__ import annotations

import re
import subprocess

from tests.service.process import ROOT

ASKED_FOR = {
    *("demo", "test", "run", "check", "fix", "coverage"),
    *("test-real", "real-servers", "bench-smoke", "help"),
}


def _named_in_readme() -> set[str]:
    return set(re.findall(r"^make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE))


def test_make_help_lists_every_habit() -> None:
    """It is what a newcomer types first."""
    printed = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout

    listed = {line.split()[0] for line in printed.splitlines()}
    assert ASKED_FOR - listed == set()
    assert _named_in_readme() - listed == set()


def test_ci_runs_what_the_readme_names() -> None:
    """Nobody has to guess what a change must pass, and no step may hang for ever."""
    steps = re.findall(r"^step [0-9]+m ([a-z-]+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)

    assert set(steps) - _named_in_readme() == set()
    assert {"check", "test", "coverage", "test-real", "bench-smoke"} - set(steps) == set()
