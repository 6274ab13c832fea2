"""`python -m app dead-letters`, with and without a service that holds the folder."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.__main__ import main
from app.api.access import AccessRules
from app.commands.command_line import parse
from app.commands.dead_letters import execute
from app.container import Container
from app.model import Lines
from app.runtime.errors import SettingsError, StorageLocked
from app.runtime.sqlite import owned_folder
from app.settings import Settings, load_settings, variables
from app.sinks.dead_letters import DeadLetters
from app.sinks.outcomes import RefusedLine
from tests.fakes.service import components, serving

LINES = [
    b'm,entity_id=sensor.a text="one\ntwo\x1b[2J" 1',
    b"m,entity_id=sensor.b x=2 2",
    b"m x=3 3",
]


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return settings of the test's own folder."""
    for variable in variables():
        for name in variable.names:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME_ASSISTANT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("HOME_ASSISTANT_TOKEN", "t" * 40)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    return load_settings()


@pytest.fixture
async def letters(chosen: Settings) -> AsyncIterator[DeadLetters]:
    """Three of them: two of influxdb, one of the embedded store."""
    async with DeadLetters(chosen.journal.data_dir / "dead_letters.db", clock=lambda: 0.0) as box:
        for sequence, line in enumerate(LINES, start=7):
            sink = "embedded" if sequence == 9 else "influxdb"
            await box.insert(sink, [RefusedLine(sequence, line, "422 no")])
        yield box


async def command(chosen: Settings, *words: str) -> str:
    """Run a command line and return what it prints."""
    out = io.BytesIO()
    async with asyncio.timeout(20):
        await execute(parse(["dead-letters", *words]), chosen, out)
    return out.getvalue().decode()


LISTED = (
    "2  1970-01-01T00:00:00+00:00  influxdb  point 8: 422 no\n"
    "    m,entity_id=sensor.b x=2 2\n"
    "1  1970-01-01T00:00:00+00:00  influxdb  point 7: 422 no\n"
    '    m,entity_id=sensor.a text="one\\ntwo\\x1b[2J" 1\n'
)


async def test_without_a_running_service_the_command_uses_the_files(
    letters: DeadLetters, chosen: Settings
) -> None:
    """Listing escapes what a terminal would obey; the export has the true bytes."""
    assert await command(chosen, "list", "--sink", "influxdb") == LISTED
    assert (await command(chosen, "list", "--limit", "1")).startswith("3  1970")
    assert await command(chosen, "export") == "".join(line.decode() + "\n" for line in LINES)
    assert await command(chosen, "delete", "--id", "1", "9") == "1 dead letter deleted\n"
    assert await command(chosen, "delete", "--sink", "embedded") == "1 dead letter deleted\n"
    assert await command(chosen, "delete", "--all") == "1 dead letter deleted\n"
    assert await command(chosen, "list") == ""


async def test_without_a_running_service_a_retry_goes_into_the_journal_on_disk(
    letters: DeadLetters, chosen: Settings
) -> None:
    """The next start delivers them."""
    async with Container(settings=chosen).journal():
        pass  # the sink is known before, as after any run of the service

    printed = await command(chosen, "retry")

    assert printed == "3 points put back into the journal\n"
    async with Container(settings=chosen).journal() as journal:
        (row,) = await journal.read("embedded", max_points=10)
    assert row.points == 3
    assert await letters.newest(limit=9) == []


async def test_without_a_running_service_a_journal_in_memory_refuses_a_retry(
    letters: DeadLetters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The points would be gone with the command."""
    monkeypatch.setenv("JOURNAL", "memory")

    with pytest.raises(SettingsError, match="JOURNAL: memory"):
        await command(load_settings(), "retry")
    assert letters.count == 3


async def test_the_command_uses_the_service_that_owns_the_folder(
    letters: DeadLetters, chosen: Settings, tmp_path: Path
) -> None:
    """Everything goes through its API, so that only one process uses its files."""
    appended: list[Lines] = []

    async def append(lines: Lines) -> None:
        appended.append(lines)

    parts = components(dead_letters=letters, append=append)
    with owned_folder(chosen.journal.data_dir):
        async with serving(parts) as running:
            at = ("--url", running.url + "/")
            assert await command(chosen, "list", "--sink", "influxdb", *at) == LISTED
            file = tmp_path / "out.lp"
            assert await command(chosen, "export", "--output", str(file), *at) == ""
            assert file.read_bytes() == b"".join(line + b"\n" for line in LINES)
            assert await command(chosen, "delete", "--id", "2", *at) == ("1 dead letter deleted\n")
            assert await command(chosen, "retry", "--sink", "influxdb", *at) == (
                "1 point put back into the journal\n"
            )
            assert await command(chosen, "delete", "--all", *at) == "1 dead letter deleted\n"

    assert [lines.split() for lines in appended] == [LINES[:1]]
    assert letters.count == 0


async def test_a_long_list_of_dead_letters_is_read_in_pages(chosen: Settings) -> None:
    """The API gives a thousand at once."""
    async with DeadLetters(chosen.journal.data_dir / "dead_letters.db") as box:
        await box._database.write(
            lambda connection: connection.executemany(
                "INSERT INTO dead_letters (sink, sequence, line, reason, refused_at)"
                " VALUES ('influxdb', ?, x'6d', 'no', 0)",
                [(number,) for number in range(1002)],
            )
        )
        with owned_folder(chosen.journal.data_dir):
            async with serving(components(dead_letters=box)) as running:
                printed = await command(chosen, "list", "--limit", "5000", "--url", running.url)

    assert printed.count("\n") == 2 * 1002


async def test_the_dead_letters_command_sends_the_api_key(
    letters: DeadLetters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the service's own words say what to do."""
    folder = load_settings().journal.data_dir
    parts = components(dead_letters=letters, access=AccessRules(api_key="secret"))
    with owned_folder(folder):
        async with serving(parts) as running:
            monkeypatch.setenv("WEBSOCKET_INGESTION_PORT", str(running.port))
            monkeypatch.setenv("WEBSOCKET_INGESTION_HOST", "0.0.0.0")
            for action in ("list", "export"):
                with pytest.raises(StorageLocked, match=r"answered 401.*Send the API_KEY"):
                    await command(load_settings(), action)

            monkeypatch.setenv("API_KEY", "secret")
            assert await command(load_settings(), "list", "--sink", "influxdb") == LISTED


async def test_the_command_reports_an_error_that_is_not_a_problem_document(
    letters: DeadLetters, chosen: Settings
) -> None:
    """Something else may listen there."""

    async def gateway(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 2\r\n\r\nno")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(gateway, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with (
            owned_folder(chosen.journal.data_dir),
            pytest.raises(StorageLocked, match=r"answered 502 at .*: Bad Gateway"),
        ):
            await command(chosen, "retry", "--url", f"http://127.0.0.1:{port}")
    assert letters.count == 3


@pytest.mark.parametrize("action", ["list", "export"])
async def test_the_command_names_a_service_that_does_not_answer(
    chosen: Settings, action: str
) -> None:
    """The folder is locked; no other process may use it meanwhile."""
    with (
        owned_folder(chosen.journal.data_dir),
        pytest.raises(StorageLocked, match=r"does not answer at http://127\.0\.0\.1:1/"),
    ):
        await command(chosen, action, "--url", "http://127.0.0.1:1")


async def test_the_command_needs_a_url_when_the_port_is_0(
    chosen: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With port 0, only the log has the actual port."""
    monkeypatch.setenv("WEBSOCKET_INGESTION_PORT", "0")

    with (
        owned_folder(chosen.journal.data_dir),
        pytest.raises(SettingsError, match="Set --url"),
    ):
        await command(load_settings(), "list")


async def test_deleting_every_dead_letter_needs_an_explicit_option(
    letters: DeadLetters, chosen: Settings
) -> None:
    """Deleted dead letters cannot be restored."""
    with pytest.raises(SettingsError, match="--all"):
        await command(chosen, "delete")
    assert letters.count == 3


def test_listing_dead_letters_of_an_empty_folder_gives_status_0(
    chosen: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    """`python -m app dead-letters list` on a folder without any: nothing to say, status 0."""
    assert main(["dead-letters", "list"]) == 0
    assert main(["dead-letters", "delete"]) == 2

    sys.stdout.flush()
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("websocket-ingestion: dead-letters delete: needs")
