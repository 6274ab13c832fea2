"""Fake registry commands, and a discovery that calls them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping

import msgspec

from app.discovery.catalog import Catalog
from app.discovery.refresh import Discovery, RefreshListener
from app.runtime.retry import Backoff

_KINDS_OF_COMMANDS = {
    "config_entries/get": "config_entry",
    "config/device_registry/list_composite_splits": "split",
}


class Answers:
    """Answers each list command with prepared rows, bytes or an error, or after an event."""

    def __init__(self, answers: Mapping[str, object]) -> None:
        self.answers = dict(answers)
        """By registry kind; an `asyncio.Event` delays an answer without rows."""
        self.asked: list[str] = []
        """The kinds in the order of the commands."""

    async def call(self, command: str) -> msgspec.Raw:
        """Answer one command."""
        kind = command.removeprefix("config/").removesuffix("_registry/list")
        kind = _KINDS_OF_COMMANDS.get(command, kind)
        self.asked.append(kind)
        answer = self.answers.get(kind, {} if kind == "split" else [])
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            answer = []
        return msgspec.Raw(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

    @contextlib.asynccontextmanager
    async def commands(self) -> AsyncIterator[Answers]:
        """Open a connection for commands."""
        yield self


def discovery_of(
    answers: Answers,
    *,
    catalog: Catalog | None = None,
    listeners: tuple[RefreshListener, ...] = (),
    interval_s: float = 1_000.0,
    settle_s: float = 0.0,
) -> Discovery:
    """Return a discovery that reads these answers, with short waits."""
    return Discovery(
        commands=answers.commands,
        catalog=catalog or Catalog(),
        listeners=listeners,
        backoff=Backoff(max_s=0.01, first_s=0.01),
        interval_s=interval_s,
        settle_s=settle_s,
    )
