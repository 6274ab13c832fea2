"""The commands that the README promises are there, and CI runs them and no others."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.service.process import ROOT

ASKED_FOR = {
    *("demo", "test", "run", "check", "fix", "coverage"),
    *("test-real", "real-servers", "bench-smoke", "help"),
}


def _named_in_readme() -> set[str]:
    return set(re.findall(r"^make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE))


def test_make_help_lists_every_target() -> None:
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


def test_ci_runs_the_targets_that_the_readme_names() -> None:
    """Each step has a time limit, and the tests run once: under coverage, by the same target."""
    steps = re.findall(r"^step [0-9]+m ([a-z-]+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)

    assert set(steps) - _named_in_readme() == set()
    assert {"check", "coverage", "test-real", "bench-smoke"} - set(steps) == set()
    assert "$(MAKE) --no-print-directory test PYTEST=" in (ROOT / "Makefile").read_text()


def test_make_uses_the_real_path_of_python_and_not_a_shim(tmp_path: Path) -> None:
    """For the path of a shim uv removes and makes .venv anew, under whatever runs in it."""
    shim = tmp_path / "python3"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    shim.chmod(0o755)

    commands = subprocess.run(
        ["make", "--dry-run", "setup"],
        cwd=ROOT,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout

    assert f"--python {Path(sys.executable).resolve()}\n" in commands


def test_make_reports_a_missing_python(tmp_path: Path) -> None:
    """One line, before anything is begun."""
    (tmp_path / "sh").symlink_to("/bin/sh")
    make = shutil.which("make")
    assert make is not None

    ended = subprocess.run(
        [make, "python"],
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert ended.returncode == 2
    assert ended.stderr.startswith("make: needs Python 3.11 or newer; set PYTHON=… to one\n")
