"""Runs `python -m app copy` within the test's process."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.commands.command_line import parse
from app.commands.copy.command import run
from app.settings import load_settings, variables

TOKEN = "t" * 40


@dataclass(frozen=True, slots=True)
class Result:
    """How the command ended."""

    status: int
    printed: str


class Copying:
    """Runs the command with settings; runs in one folder continue each other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        """Use a folder as DATA_DIR."""
        self.folder = folder
        self.slept_s = 0.0
        """How long the command waited; no time passes."""
        self.printed = ""
        """What the last run printed, also if it failed."""
        self._monkeypatch = monkeypatch

    def _clock(self) -> float:
        return time.monotonic() + self.slept_s

    async def _sleep(self, seconds: float) -> None:
        self.slept_s += seconds
        await asyncio.sleep(0)

    async def __call__(self, *words: str, **settings: str) -> Result:
        """Run the command to its end."""
        for variable in variables():
            for name in variable.names:
                self._monkeypatch.delenv(name, raising=False)
        for name, value in {**required(self.folder), **settings}.items():
            self._monkeypatch.setenv(name, value)
        out = io.StringIO()
        try:
            status = await run(
                parse(["copy", *words]), load_settings(), out, clock=self._clock, sleep=self._sleep
            )
        finally:
            self.printed = out.getvalue()
        return Result(status, self.printed)

    @property
    def refused(self) -> bytes:
        """The content of the files of refused lines."""
        return b"".join(
            file.read_bytes() for file in sorted((self.folder / "copy").glob("*-refused.lp"))
        )


def required(folder: Path) -> Mapping[str, str]:
    """Return the settings that the command needs besides the two databases."""
    return {
        "HOME_ASSISTANT_URL": "http://127.0.0.1:1",
        "HOME_ASSISTANT_TOKEN": TOKEN,
        "DATA_DIR": str(folder),
    }
