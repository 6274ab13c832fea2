"""The command line without running a command: help pages, version, and what they import."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from app import __version__
from app.__main__ import main
from tests.fakes.documents import ROOT

COMMANDS = [
    ("run",),
    ("demo",),
    ("doctor",),
    ("backfill",),
    ("copy",),
    ("dead-letters",),
    ("dead-letters", "list"),
    ("dead-letters", "retry"),
    ("dead-letters", "export"),
    ("dead-letters", "delete"),
]


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return what a command line with --help prints."""
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_its_own_help_page(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """It fits a terminal, and its example is a command line that begins as one must."""
    page = shown(capsys, *words)

    lines = page.splitlines()
    assert f"usage: python -m app {' '.join(words)}" in page
    assert f"python -m app {' '.join(words)}" in page.partition("examples:")[2]
    for heading in ("needs:", "examples:", "exit status:"):
        assert heading in lines
    assert "  0  " in page.partition("exit status:")[2]
    assert "  2  " in page.partition("exit status:")[2]
    assert [line for line in lines if len(line) > 100] == []


def test_the_first_page_lists_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """It points to their help pages and to the first steps."""
    page = shown(capsys)

    listed = [line.split()[0] for line in page.splitlines() if line.startswith("    ")]
    for name in ("run", "demo", "doctor", "backfill", "copy", "dead-letters"):
        assert name in listed
    assert "python -m app demo" in page
    assert "python -m app COMMAND --help" in page


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """The first thing a bug report needs."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])

    assert ended.value.code == 0
    assert capsys.readouterr().out == f"websocket-ingestion {__version__}\n"


def test_help_imports_nothing_that_only_a_command_needs() -> None:
    """On a Raspberry Pi the frameworks take seconds to import."""
    program = (
        "import runpy, sys\n"
        "sys.argv = ['app', '--help']\n"
        "try: runpy.run_module('app', run_name='__main__')\n"
        "except SystemExit: print(*sys.modules)\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout

    assert "usage: python -m app" in printed
    heavy = {"fastapi", "pydantic", "httpx", "aiohttp", "dependency_injector", "msgspec"}
    assert heavy.isdisjoint(printed.split())


def _cpu_s(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_costs_little_more_than_python_itself() -> None:
    """Compared with a program that imports two modules of the standard library, best of three."""
    plain = min(_cpu_s("-c", "import argparse, asyncio") for _ in range(3))
    ours = min(_cpu_s("-m", "app", "--help") for _ in range(3))

    assert ours < 3 * plain
