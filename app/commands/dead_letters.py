"""`python -m app dead-letters`: see, retry, export and delete what a database refused.

A DATA_DIR belongs to one process. While a service holds it the command asks that service over
HTTP; else it takes the folder's lock itself and works on the files.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from app.api.models import DeadLetterPage, Deleted, Retried
from app.commands.help_text import described
from app.container import Container
from app.model import Lines, moment_at
from app.runtime.errors import SettingsError, StorageLocked
from app.runtime.sqlite import owned_folder
from app.settings import Settings
from app.sinks.dead_letters import DeadLetters, RefusedPoint

if TYPE_CHECKING:
    from app.commands.running_service import Query, RunningService

_NEEDS = """\
The settings of the service. While a service holds DATA_DIR that service is asked (with API_KEY,
if it is set); else the files in DATA_DIR are used."""
_STATUSES = """\
0  done, also when there was none
2  the command line or the settings cannot be used, or DATA_DIR is held and nobody answers"""

_described = partial(described, needs=_NEEDS, statuses=_STATUSES)

HELP = _described(
    "see, retry, export or delete the points that a database refused",
    does="""\
A point that a database refuses for good becomes a dead letter: it is kept with the reason, and its
neighbors are written. Each action has a page of its own: dead-letters ACTION --help.""",
    examples="""\
python -m app dead-letters list
python -m app dead-letters retry --sink influxdb""",
)

_PAGE = 1_000
_PATH = "/api/v1/dead-letters"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--sink", help="only those of this sink, for example influxdb")
    shared.add_argument(
        "--url", help="address of the running service, when the settings do not say it"
    )
    actions = parser.add_subparsers(dest="action", required=True)
    listing = actions.add_parser(
        "list",
        parents=[shared],
        **_described(
            "show them, newest first",
            does="Shows dead letters, newest first: number, moment, sink, reason; then the point.",
            examples="python -m app dead-letters list --limit 20",
        ),
    )
    listing.add_argument("--limit", type=int, default=100, help="how many (%(default)s)")
    actions.add_parser(
        "retry",
        parents=[shared],
        **_described(
            "put them back into the journal",
            does="Puts dead letters back into the journal, to be sent again: once what they were\n"
            "refused for is mended. What is refused again becomes a dead letter again.",
            examples="python -m app dead-letters retry --sink influxdb",
        ),
    )
    export = actions.add_parser(
        "export",
        parents=[shared],
        **_described(
            "write them as line protocol",
            does="Writes dead letters as line protocol, oldest first, and keeps them.",
            examples="python -m app dead-letters export --output refused.lp",
        ),
    )
    export.add_argument("--output", type=Path, help="a file; standard output without one")
    delete = actions.add_parser(
        "delete",
        parents=[shared],
        **_described(
            "delete them for good",
            does="Deletes dead letters for good; `export` keeps a copy before.",
            examples="python -m app dead-letters delete --id 17 18\n"
            "python -m app dead-letters delete --all",
        ),
    )
    delete.add_argument("--id", type=int, nargs="+", help="only these")
    delete.add_argument("--all", action="store_true", help="all, when no sink and no id is named")


async def run(arguments: argparse.Namespace, chosen: Settings, out: BinaryIO) -> None:
    """Do what the command line asks for and write what there is to say to `out`.

    Raises:
        SettingsError: the command line or the settings do not allow it.
        StorageLocked: a service holds the folder and cannot be asked.
        StorageError: the files cannot be read or written.
    """
    if arguments.action == "delete" and not (arguments.all or arguments.sink or arguments.id):
        raise SettingsError("dead-letters delete: name them with --id or --sink, or say --all")
    async with AsyncExitStack() as stack:
        box = await _box(stack, chosen, url=arguments.url)
        match arguments.action:
            case "list":
                await _list(box, out, limit=arguments.limit, sink=arguments.sink)
            case "export":
                await _export(box, out, file=arguments.output, sink=arguments.sink)
            case "retry":
                retried = await box.retry(sink=arguments.sink)
                out.write(f"{retried} points are in the journal again\n".encode())
            case _:
                deleted = await box.delete(arguments.id, sink=arguments.sink)
                out.write(f"{deleted} dead letters are deleted\n".encode())


class Box(Protocol):
    """Where the dead letters are: in a file, or in a service that runs."""

    async def newest(
        self, *, limit: int, before_id: int | None, sink: str | None
    ) -> list[RefusedPoint]:
        """Return a page, newest first."""
        ...

    def export(self, *, sink: str | None) -> AsyncGenerator[bytes, None]:
        """Yield all as line protocol, oldest first."""
        ...

    async def retry(self, *, sink: str | None) -> int:
        """Put them back into the journal and return how many."""
        ...

    async def delete(self, ids: Sequence[int] | None, *, sink: str | None) -> int:
        """Delete some by id, else all of a sink, else all; return how many there were."""
        ...


async def _box(stack: AsyncExitStack, chosen: Settings, *, url: str | None) -> Box:
    try:
        stack.enter_context(owned_folder(chosen.journal.data_dir))
    except StorageLocked:
        # Its HTTP client takes a sixth of the time that importing this program takes.
        from app.commands.running_service import running_service  # noqa: PLC0415

        return _ServiceBox(await stack.enter_async_context(running_service(chosen, url=url)))
    container = Container(settings=chosen)
    return _FileBox(await stack.enter_async_context(container.dead_letters()), container)


async def _list(box: Box, out: BinaryIO, *, limit: int, sink: str | None) -> None:
    before_id = None
    while limit > 0:
        page = await box.newest(limit=min(limit, _PAGE), before_id=before_id, sink=sink)
        if not page:
            return
        out.writelines(_told(point) for point in page)
        before_id, limit = page[-1].id, limit - len(page)


async def _export(box: Box, out: BinaryIO, *, file: Path | None, sink: str | None) -> None:
    with file.open("wb") if file else nullcontext(out) as target:
        async with aclosing(box.export(sink=sink)) as blocks:
            async for block in blocks:
                target.write(block)


def _told(point: RefusedPoint) -> bytes:
    moment = moment_at(point.refused_at).isoformat(timespec="seconds")
    head = f"{point.id}  {moment}  {point.sink}  point {point.sequence}: {point.reason}"
    line = point.line.decode(errors="replace")
    # What homes call their things may hold what a terminal would obey.
    return f"{_printable(head)}\n    {_printable(line)}\n".encode(errors="replace")


def _printable(text: str) -> str:
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text
    )


class _FileBox:
    """The file itself, in a folder that this process holds."""

    def __init__(self, letters: DeadLetters, container: Container) -> None:
        self._letters = letters
        self._container = container

    async def newest(
        self, *, limit: int, before_id: int | None, sink: str | None
    ) -> list[RefusedPoint]:
        return await self._letters.newest(limit=limit, before_id=before_id, sink=sink)

    def export(self, *, sink: str | None) -> AsyncGenerator[bytes, None]:
        return self._letters.export(sink=sink)

    async def retry(self, *, sink: str | None) -> int:
        if self._container.settings().journal.kind == "memory":
            raise SettingsError(
                "JOURNAL: memory does not outlive a process, so only a running service can"
                " take points back. Start it, then retry"
            )
        async with self._container.journal() as journal:

            async def append(lines: Lines) -> None:
                await journal.append(lines, received_at=time.time())

            return await self._letters.retry(append, sink=sink)

    async def delete(self, ids: Sequence[int] | None, *, sink: str | None) -> int:
        return await (self._letters.clear(sink=sink) if ids is None else self._letters.delete(ids))


class _ServiceBox:
    """The service that holds the folder, asked over HTTP."""

    def __init__(self, service: RunningService) -> None:
        self._service = service

    async def newest(
        self, *, limit: int, before_id: int | None, sink: str | None
    ) -> list[RefusedPoint]:
        query = _query(limit=limit, cursor=before_id, sink=sink)
        answer = await self._service.ask("GET", _PATH, query)
        return [
            RefusedPoint(
                id=letter.id,
                sink=letter.sink,
                sequence=letter.sequence,
                line=letter.line.encode(),
                reason=letter.reason,
                refused_at=letter.refused_at.timestamp(),
            )
            for letter in DeadLetterPage.model_validate_json(answer.content).dead_letters
        ]

    def export(self, *, sink: str | None) -> AsyncGenerator[bytes, None]:
        return self._service.stream(f"{_PATH}/export", _query(sink=sink))

    async def retry(self, *, sink: str | None) -> int:
        answer = await self._service.ask("POST", f"{_PATH}/retry", _query(sink=sink))
        return Retried.model_validate_json(answer.content).retried

    async def delete(self, ids: Sequence[int] | None, *, sink: str | None) -> int:
        answer = await self._service.ask("DELETE", _PATH, _query(sink=sink, id=ids))
        return Deleted.model_validate_json(answer.content).deleted


def _query(**values: str | int | Sequence[int] | None) -> Query:
    return {name: value for name, value in values.items() if value is not None}
