"""`python -m app backfill`: reads history back from Home Assistant's recorder.

Without a running service the command runs the whole service itself, except its HTTP server, until
everything is read. What is left unread continues when the command or the service starts again.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

from app.api.models import BackfillRequest, BackfillStarted, GapDocument, GapList
from app.commands.command_line import FAILED, OK
from app.commands.service_api import ServiceApi, service_api
from app.container import Container
from app.main import ENV_FILE, running
from app.runtime.errors import SettingsError
from app.runtime.supervisor import Supervisor
from app.settings import Settings, load_settings

_POLL_S = 0.5
_BAR_WIDTH = 30
_TENTHS = 10


async def backfill(arguments: argparse.Namespace) -> int:
    """Run the command and return the exit status."""
    chosen = load_settings(ENV_FILE)
    return OK if await read_back(arguments, chosen, sys.stdout) else FAILED


async def read_back(arguments: argparse.Namespace, chosen: Settings, out: TextIO) -> bool:
    """Read history back, show the progress, and return whether everything could be read.

    Raises:
        SettingsError: the command line or the settings do not allow it.
        StorageLocked: the service that uses DATA_DIR does not answer as it should.
        StorageError: the files cannot be read or written.
    """
    now = datetime.now(UTC)
    if arguments.since >= min(arguments.until or now, now):
        raise SettingsError("backfill: --since must lie before --until, and in the past")
    wanted = BackfillRequest(
        since=arguments.since, until=arguments.until, entity_ids=arguments.entities
    )
    failed = asyncio.Event()

    @asynccontextmanager
    async def opened(container: Container) -> AsyncIterator[None]:
        grace_s = chosen.resilience.shutdown_timeout_s
        container.supervisor.override(Supervisor(grace_s=grace_s, on_failure=failed.set))
        async with running(container):
            yield

    async with service_api(chosen, url=arguments.url, opened=opened) as api:
        progress = _Progress(api, out, failed)
        if api.is_local and wanted.entity_ids:
            await progress.until_subscribed()  # Home Assistant knows more entities than we do
        done = await progress.until_filled(wanted)
        if api.is_local:
            await progress.until_delivered()
    return done


class _Progress:
    """Waits for stages of a backfill, shows how far it is, and prints each problem once."""

    def __init__(self, api: ServiceApi, out: TextIO, failed: asyncio.Event) -> None:
        self._api = api
        self._out = out
        self._failed = failed
        self._bar = ""
        self._printed: set[str] = set()

    async def until_subscribed(self) -> None:
        """Wait until Home Assistant streams events."""
        while not (health := await self._health())["subscription"]["is_subscribed"]:
            self._print_problems(health["reasons"])
            await asyncio.sleep(_POLL_S)

    async def until_filled(self, wanted: BackfillRequest) -> bool:
        """Request the span, wait until no gap of it is open, and return whether all is filled."""
        body = wanted.model_dump(mode="json")
        answer = await self._api.request("POST", "/api/v1/backfill", body=body)
        ids = {gap.id for gap in BackfillStarted.model_validate_json(answer.content).gaps}
        while True:
            gaps = await self._gaps(ids)
            self._show(gaps)
            if all(gap.state != "open" for gap in gaps):
                break
            self._print_problems((await self._health())["reasons"])
            await asyncio.sleep(_POLL_S)
        self._print(_summary(gaps))
        states = {gap.state for gap in gaps}
        return states <= {"filled", "nothing_recorded"} and states != {"nothing_recorded"}

    async def until_delivered(self) -> None:
        """Wait until no sink that works has points left; the next start retries the others."""
        while True:
            sinks = (await self._health())["sinks"]
            if not any(sink["held"] and sink["state"] == "ok" for sink in sinks):
                break
            await asyncio.sleep(_POLL_S)

    async def _gaps(self, ids: set[int]) -> list[GapDocument]:
        answer = await self._api.request("GET", "/api/v1/gaps")
        gaps = GapList.model_validate_json(answer.content).gaps
        return [gap for gap in gaps if gap.id in ids]

    async def _health(self) -> Any:
        health = (await self._api.request("GET", "/health")).json()
        if self._failed.is_set():
            raise SettingsError(" ".join(health["reasons"]))
        return health

    def _show(self, gaps: Sequence[GapDocument]) -> None:
        is_terminal = self._out.isatty()
        bar = _bar(gaps, fine=is_terminal)
        if bar != self._bar:
            self._bar = bar
            self._out.write(f"\r{bar}" if is_terminal else f"{bar}\n")
            self._out.flush()

    def _print_problems(self, reasons: Sequence[str]) -> None:
        for reason in reasons:
            if reason not in self._printed:
                self._printed.add(reason)
                self._print(reason)

    def _print(self, text: str) -> None:
        is_behind_bar = self._bar and self._out.isatty()
        self._out.write(f"\n{text}\n" if is_behind_bar else f"{text}\n")
        self._out.flush()


def _bar(gaps: Sequence[GapDocument], *, fine: bool) -> str:
    """Return the progress bar; unless `fine`, it changes only every tenth of the way."""
    part = _part_done(gaps)
    part = part if fine else int(part * _TENTHS) / _TENTHS
    filled = "#" * int(part * _BAR_WIDTH)
    changes = f"  {sum(gap.changes for gap in gaps):,} changes" if fine else ""
    return f"[{filled:.<{_BAR_WIDTH}}] {part:4.0%}{changes}"


def _part_done(gaps: Sequence[GapDocument]) -> float:
    whole = sum((gap.end - gap.start).total_seconds() for gap in gaps)
    done = 0.0
    for gap in gaps:
        through = gap.end if gap.state != "open" else (gap.filled_through or gap.start)
        done += (through - gap.start).total_seconds()
    return done / whole if whole else 1.0


def _summary(gaps: Sequence[GapDocument]) -> str:
    if not gaps:
        return "Nothing to read back: everything was captured, or read back before"
    changes, unrecorded = sum(gap.changes for gap in gaps), sum(len(g.unrecorded) for g in gaps)
    lines = [f"Read back {changes:,} changes; {unrecorded:,} entities have no recorded history"]
    sources = sorted({source for gap in gaps for source in gap.sources})
    if sources:
        lines.append(f"Entities from: {', '.join(sources)}")
    lines += dict.fromkeys(limitation for gap in gaps for limitation in gap.limitations)
    lines += [f"Not read from {gap.start}: {gap.detail}" for gap in gaps if gap.detail]
    return "\n".join(lines)
