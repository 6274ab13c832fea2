"""`python -m app dead-letters`: list, retry, export and delete what a database rejected."""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import BinaryIO

from app.api.models import DeadLetterDocument, DeadLetterPage, Deleted, Retried
from app.commands.command_line import OK
from app.commands.service_api import ServiceApi, service_api
from app.container import Container
from app.main import ENV_FILE
from app.runtime.errors import SettingsError
from app.runtime.sqlite import owned_folder
from app.settings import Settings, load_settings

_PAGE = 1_000
_PATH = "/api/v1/dead-letters"


async def dead_letters(arguments: argparse.Namespace) -> int:
    """Run the command and return the exit status."""
    await execute(arguments, load_settings(ENV_FILE), sys.stdout.buffer)
    return OK


async def execute(arguments: argparse.Namespace, chosen: Settings, out: BinaryIO) -> None:
    """Run the action of the command line and write its result to `out`.

    Raises:
        SettingsError: the command line or the settings do not allow it.
        StorageLocked: the service that uses DATA_DIR does not answer as it should.
        StorageError: the files cannot be read or written.
    """
    action, sink = arguments.action, arguments.sink
    if action == "delete" and not (arguments.all or sink or arguments.id):
        raise SettingsError("dead-letters delete: needs --id, --sink or --all")
    opened = partial(_opened, action=action)
    async with service_api(chosen, url=arguments.url, opened=opened) as api:
        match action:
            case "list":
                await _list(api, out, limit=arguments.limit, sink=sink)
            case "export":
                await _export(api, out, file=arguments.output, sink=sink)
            case "retry":
                answer = await api.request("POST", f"{_PATH}/retry", {"sink": sink})
                retried = Retried.model_validate_json(answer.content).retried
                out.write(f"{_counted(retried, 'point')} put back into the journal\n".encode())
            case _:
                everything = "true" if not (sink or arguments.id) else None
                query = {"sink": sink, "id": arguments.id, "all": everything}
                answer = await api.request("DELETE", _PATH, query)
                deleted = Deleted.model_validate_json(answer.content).deleted
                out.write(f"{_counted(deleted, 'dead letter')} deleted\n".encode())


@asynccontextmanager
async def _opened(container: Container, *, action: str) -> AsyncIterator[None]:
    settings = container.settings()
    with owned_folder(settings.journal.data_dir):
        async with container.dead_letters():
            if action != "retry":
                yield
                return
            if settings.journal.kind == "memory":
                raise SettingsError(
                    "JOURNAL: memory ends with the process, so only a running service can retry"
                    " points. Start it, then retry"
                )
            async with container.journal():
                yield


async def _list(api: ServiceApi, out: BinaryIO, *, limit: int, sink: str | None) -> None:
    cursor = None
    while limit > 0:
        query = {"limit": min(limit, _PAGE), "cursor": cursor, "sink": sink}
        answer = await api.request("GET", _PATH, query)
        page = DeadLetterPage.model_validate_json(answer.content).dead_letters
        if not page:
            return
        out.writelines(_lines(letter) for letter in page)
        cursor, limit = page[-1].id, limit - len(page)


async def _export(api: ServiceApi, out: BinaryIO, *, file: Path | None, sink: str | None) -> None:
    with file.open("wb") if file else nullcontext(out) as target:
        async with aclosing(api.stream(f"{_PATH}/export", {"sink": sink})) as blocks:
            async for block in blocks:
                target.write(block)


def _lines(letter: DeadLetterDocument) -> bytes:
    moment = letter.refused_at.isoformat(timespec="seconds")
    head = f"{letter.id}  {moment}  {letter.sink}  point {letter.sequence}: {letter.reason}"
    # Names in a home may contain control sequences that a terminal would obey.
    return f"{_printable(head)}\n    {_printable(letter.line)}\n".encode(errors="replace")


def _printable(text: str) -> str:
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text
    )


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
