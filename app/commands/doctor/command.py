"""Runs the checks, each group within its time, and prints what they found."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from app import __version__, settings
from app.commands.command_line import FAILED, OK, UNUSABLE
from app.commands.doctor import machine, report
from app.commands.doctor.report import Verdict
from app.container import Container
from app.doctor import checks, database, home_assistant
from app.doctor.findings import Finding, failed, not_tried, ok, warning, without_secrets
from app.doctor.groups import bounded, secrets_of
from app.main import ENV_FILE
from app.runtime.errors import SettingsError
from app.runtime.logging import shown_url
from app.runtime.text import one_line

if TYPE_CHECKING:
    from app.settings import Settings

Clock = Callable[[], datetime]
"""Returns what this machine's clock shows, with its zone."""

_WITHIN_S = 25.0
_REQUEST_S = 6.0
_GROUPS = (machine.DISK, machine.PORT, machine.FILES, home_assistant.NAMES)


async def doctor(*, as_json: bool) -> int:
    """Run the command and return the exit status."""
    verdict = await run(ENV_FILE, sys.stdout, as_json=as_json)
    return {"failed": FAILED, "unusable": UNUSABLE}.get(verdict, OK)


def _now() -> datetime:
    return datetime.now(UTC)


async def run(
    env_file: Path | None,
    out: TextIO,
    *,
    as_json: bool = False,
    clock: Clock = _now,
    within_s: float = _WITHIN_S,
) -> Verdict:
    """Run all checks, each group for at most `within_s` seconds, and print them to `out`."""
    found = []
    async for finding in _findings(env_file, clock=clock, within_s=within_s):
        found.append(finding)
        if not as_json and report.verdict(found) != "unusable":
            out.write(report.line(finding, out) + "\n")
            out.flush()
    verdict = report.verdict(found)
    if as_json:
        out.write(report.document(found, version=__version__) + "\n")
    elif verdict == "unusable":
        out.write(report.unusable(found, out) + "\n")
    else:
        out.write(f"\n{report.summary(found)}\n")
    out.flush()
    return verdict


async def _findings(
    env_file: Path | None, *, clock: Clock, within_s: float
) -> AsyncIterator[Finding]:
    """Yield every finding, in a fixed order, each as soon as it is known."""
    try:
        chosen = settings.load_settings(env_file)
    except SettingsError as exc:
        for problem in exc.problems:
            yield failed("settings", f"{problem}.", "Correct it in the environment or in .env.")
        for name in (name for group in (*_GROUPS, ("database",)) for name in group):
            yield not_tried(name, "the settings cannot be used")
        return
    for finding in _of_settings(chosen, env_file):
        yield finding
    hidden = partial(one_line, secrets=secrets_of(chosen))
    tasks = [
        asyncio.create_task(bounded(names, group, within_s), name=f"doctor.{names[0]}")
        for names, group in _groups(chosen, clock)
    ]
    try:
        for task in tasks:
            for finding in await task:
                yield without_secrets(finding, hidden)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _of_settings(chosen: Settings, env_file: Path | None) -> list[Finding]:
    odd = settings.warnings(env_file)
    found = [warning("settings", f"{each}.", "Correct or remove it.") for each in odd]
    found = found or [ok("settings", "All settings can be used.")]
    key = chosen.serving.api_key
    access = checks.access(
        chosen.serving.host, api_key=None if key is None else key.get_secret_value()
    )
    return found if access is None else [*found, access]


def _groups(
    chosen: Settings, clock: Clock
) -> list[tuple[Sequence[str], AsyncGenerator[Finding, None]]]:
    groups: list[tuple[Sequence[str], AsyncGenerator[Finding, None]]] = [
        (machine.DISK, machine.disk(chosen)),
        (machine.PORT, machine.port(chosen)),
        (machine.FILES, machine.files(chosen)),
        (home_assistant.NAMES, home_assistant.check(chosen, clock=clock)),
        (database.names(chosen), database.check(chosen, clock=clock)),
    ]
    if chosen.discovery.data_api_url is not None:
        groups.append((("data_api",), _data_api(chosen)))
    return groups


async def _data_api(chosen: Settings) -> AsyncGenerator[Finding, None]:
    api = Container(settings=chosen).data_api(timeout_s=_REQUEST_S)
    assert api is not None
    yield checks.data_api(await api.probe(), shown_url(chosen.discovery.data_api_url or ""))
