"""`python -m app backfill`: history from before the service captured anything.

A DATA_DIR belongs to one process. While a service holds it the command asks that service to
read history back; else it runs the parts of the service itself, without its pages, until that
is done. What is half read goes on when the command or the service is started again.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

from app.api.gaps import document_of, requested_span
from app.api.models import BackfillRequest, BackfillStarted, GapDocument, GapList
from app.commands.help_text import described
from app.container import Container
from app.main import running
from app.model import is_representable, nanoseconds
from app.runtime.errors import SettingsError, StorageLocked
from app.runtime.supervisor import Supervisor
from app.settings import Settings

if TYPE_CHECKING:
    from app.commands.running_service import RunningService

HELP = described(
    "read history back from Home Assistant's recorder",
    does="""\
Reads changes from before the service captured anything, or of a time of your choice, from Home
Assistant's recorder, and writes them as points marked `backfilled`. What was captured, or read back
before, is not read again. It shows how far it is; interrupted, it goes on at the next start.""",
    needs="""\
The settings of the service. While a service holds DATA_DIR that service is asked to do it (with
API_KEY, if it is set); else this command connects to Home Assistant and the database itself.""",
    examples="""\
python -m app backfill --since 2026-11-14
python -m app backfill --since 2026-11-14T06:00+01:00 --until 2026-11-15 --entities sensor.power""",
    statuses="""\
0  all of it was read back, or there was nothing to read
1  some of it is unavailable, or nothing of it was recorded; the last lines say why
2  the command line or the settings cannot be used, an entity is unknown, or a service that does
   not answer holds DATA_DIR""",
)

_NO_SPAN = "backfill: --since must lie before --until, and in the past"
_LOOK_EVERY_S = 0.5
_BAR_WIDTH = 30
_TENTHS = 10

Look = Callable[[], Awaitable[tuple[list[GapDocument], Sequence[str]]]]
"""Returns the gaps that are being filled, and what `/health` says is wrong."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "--since",
        type=_moment,
        required=True,
        help="first moment, ISO 8601; in this machine's time zone unless it names an offset",
    )
    parser.add_argument("--until", type=_moment, help="last moment; without it, now")
    parser.add_argument("--entities", nargs="+", default=[], help="only these, by entity id")
    parser.add_argument(
        "--url", help="address of the running service, when the settings do not say it"
    )


async def run(arguments: argparse.Namespace, chosen: Settings, out: TextIO) -> bool:
    """Read history back and show how far it is; return whether all of it could be read.

    What was captured is not read again, and neither is what an earlier run has read.

    Raises:
        SettingsError: the command line or the settings do not allow it.
        StorageLocked: a service holds the folder and cannot be asked.
        StorageError: the files cannot be read or written.
    """
    if arguments.until is not None and arguments.since >= arguments.until:
        raise SettingsError(_NO_SPAN)
    wanted = BackfillRequest(
        since=arguments.since, until=arguments.until, entity_ids=arguments.entities
    )
    container = Container(settings=chosen)
    failed = asyncio.Event()
    container.supervisor.override(
        Supervisor(grace_s=chosen.resilience.shutdown_timeout_s, on_failure=failed.set)
    )
    try:
        async with running(container):
            return await _read_here(container, wanted, out, failed=failed)
    except StorageLocked:
        # Its HTTP client takes a sixth of the time that importing this program takes.
        from app.commands.running_service import running_service  # noqa: PLC0415

        async with running_service(chosen, url=arguments.url) as service:
            return await _ask_the_service(service, wanted, out)


async def _read_here(
    container: Container, wanted: BackfillRequest, out: TextIO, *, failed: asyncio.Event
) -> bool:
    coverage, observer = container.coverage(), container.observer()
    times = requested_span(wanted, now_ns=coverage.now_ns)
    if times.oldest_ns >= times.newest_ns:
        raise SettingsError(_NO_SPAN)
    if wanted.entity_ids:
        await _until_streaming(container, out, failed=failed)
        if unknown := await container.backfill().unknown_entities(wanted.entity_ids):
            raise SettingsError(
                f"--entities: nothing knows {', '.join(map(repr, unknown))}: neither Home Assistant"
                " and its recorder, nor this service"
            )
    ids = {gap.id for gap in coverage.request(times, entity_ids=wanted.entity_ids)}

    async def look() -> tuple[list[GapDocument], Sequence[str]]:
        if failed.is_set():
            raise SettingsError(" ".join(observer.snapshot().reasons))
        gaps = [document_of(gap) for gap in coverage.gaps() if gap.id in ids]
        return gaps, observer.snapshot().reasons

    done = await _watch(look, out)
    while any(  # noqa: ASYNC110 - several parts together, and none of them tells
        sink.held and sink.state == "ok" for sink in observer.snapshot().sinks
    ):
        await asyncio.sleep(_LOOK_EVERY_S)
    return done


async def _until_streaming(container: Container, out: TextIO, *, failed: asyncio.Event) -> None:
    """Wait for Home Assistant, which knows more entities than we do, and show what is wrong."""
    observer, said = container.observer(), _Said(out)
    while not container.pipeline().streaming.is_set():
        if failed.is_set():
            raise SettingsError(" ".join(observer.snapshot().reasons))
        await asyncio.sleep(_LOOK_EVERY_S)
        said.write(observer.snapshot().reasons)


async def _ask_the_service(service: RunningService, wanted: BackfillRequest, out: TextIO) -> bool:
    answer = await service.ask("POST", "/api/v1/backfill", body=wanted.model_dump(mode="json"))
    ids = {gap.id for gap in BackfillStarted.model_validate_json(answer.content).gaps}

    async def look() -> tuple[list[GapDocument], Sequence[str]]:
        gaps = await service.ask("GET", "/api/v1/gaps")
        health = await service.ask("GET", "/health")
        found = GapList.model_validate_json(gaps.content).gaps
        return [gap for gap in found if gap.id in ids], health.json()["reasons"]

    return await _watch(look, out)


async def _watch(look: Look, out: TextIO) -> bool:
    """Show the progress until nothing is open any more; return whether all could be filled."""
    shown, said = "", _Said(out)
    while True:
        gaps, reasons = await look()
        if any(gap.state == "open" for gap in gaps):
            said.write(reasons)
        if (bar := _bar(gaps, fine=out.isatty())) != shown:
            shown = bar
            out.write(f"\r{bar}" if out.isatty() else f"{bar}\n")
            out.flush()
        if all(gap.state != "open" for gap in gaps):
            break
        await asyncio.sleep(_LOOK_EVERY_S)
    out.write(f"{_fresh(out)}{_summary(gaps)}\n")
    states = {gap.state for gap in gaps}
    return states <= {"filled", "nothing_recorded"} and states != {"nothing_recorded"}


class _Said:
    """Writes each reason once."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._said: set[str] = set()

    def write(self, reasons: Sequence[str]) -> None:
        """Write those that are new."""
        for reason in reasons:
            if reason not in self._said:
                self._said.add(reason)
                self._out.write(f"{_fresh(self._out)}{reason}\n")


def _fresh(out: TextIO) -> str:
    return "\n" if out.isatty() else ""


def _bar(gaps: Sequence[GapDocument], *, fine: bool) -> str:
    """Return a line; unless `fine` it changes ten times on the way, and not with every look."""
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
        return "Nothing to read back: all of it was captured, or read back before"
    changes, unrecorded = sum(gap.changes for gap in gaps), sum(len(g.unrecorded) for g in gaps)
    lines = [f"Read back {changes:,} changes; {unrecorded:,} entities have no recorded history"]
    sources = sorted({source for gap in gaps for source in gap.sources})
    if sources:
        lines.append(f"Entities from: {', '.join(sources)}")
    lines += dict.fromkeys(limitation for gap in gaps for limitation in gap.limitations)
    lines += [f"Not to be had from {gap.start}: {gap.detail}" for gap in gaps if gap.detail]
    return "\n".join(lines)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time in ISO 8601") from exc
    if not is_representable(nanoseconds(moment)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time between 1678 and 2262")
    return moment
