"""`--help` of every command: what it does and needs, an example, the exit statuses."""

from __future__ import annotations

import pytest

from app.__main__ import main

COMMANDS = [
    ("run",),
    ("demo",),
    ("doctor",),
    ("backfill",),
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
def test_every_command_has_a_page_of_its_own(
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
    """And says where their pages are."""
    page = shown(capsys)

    for name in ("run", "demo", "doctor", "backfill", "dead-letters"):
        assert f"    {name} " in page
    assert "python -m app COMMAND --help" in page
