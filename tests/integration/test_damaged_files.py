"""Whatever a local file was replaced by, the service starts and reports what it found."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from app.container import Container
from app.journal.transactions import MIGRATIONS
from app.main import running
from app.runtime import sqlite
from app.runtime.errors import StorageError, StorageFull
from app.runtime.sqlite import Connection, Steps
from app.settings import load_settings

FILES = ("journal.db", "dead_letters.db", "metadata.db", "events.db")

Spoil = Callable[[Path], None]


def folder_in_its_place(path: Path) -> None:
    """Someone mounted a volume there."""
    path.unlink()
    path.mkdir()
    (path / "note").write_text("not ours")


def of_another_program(path: Path) -> None:
    """A SQLite file with other tables, and a version of its own."""
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
        connection.execute("PRAGMA user_version = 9")
    connection.close()


def text_in_its_place(path: Path) -> None:
    """Not SQLite at all."""
    path.write_text("hello " * 2_000)


def zeros(path: Path) -> None:
    """What some file systems leave after a power cut."""
    path.write_bytes(bytes(path.stat().st_size))


def emptied(path: Path) -> None:
    """Cut to nothing."""
    path.write_bytes(b"")


def cut_short(path: Path) -> None:
    """Half of it is gone."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2 // 4096 * 4096 + 100)


def folder_for_a_log(path: Path) -> None:
    """In the place of its write-ahead log."""
    path.with_name(path.name + "-wal").mkdir()


def first_page_gone(path: Path) -> None:
    """The page that lists all others."""
    with path.open("r+b") as file:
        file.write(b"\xa5" * 4096)


def table_gone(path: Path) -> None:
    """A table was dropped by hand."""
    with sqlite3.connect(path) as connection:
        (name,) = connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        ).fetchone()
        connection.execute(f"DROP TABLE {name}")
    connection.close()


SPOILS: tuple[Spoil, ...] = (
    folder_in_its_place,
    of_another_program,
    text_in_its_place,
    zeros,
    emptied,
    cut_short,
    folder_for_a_log,
    first_page_gone,
    table_gone,
)


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], Container]:
    """Return what builds the whole service on a folder; Home Assistant cannot be reached."""
    for name, value in {
        "HOME_ASSISTANT_URL": "http://127.0.0.1:9",
        "HOME_ASSISTANT_TOKEN": "t" * 40,
        "DATA_DIR": str(tmp_path / "data"),
        "EMBEDDED_STORE": "on",
        "SHUTDOWN_TIMEOUT": "2",
    }.items():
        monkeypatch.setenv(name, value)
    return lambda: Container(settings=load_settings(None))


@pytest.mark.parametrize("spoil", SPOILS)
async def test_the_service_starts_whatever_stands_in_the_place_of_its_files(
    container: Callable[[], Container], tmp_path: Path, spoil: Spoil
) -> None:
    """All four at once; each is kept under another name, and health names each."""
    async with running(container()):
        pass
    for name in FILES:
        spoil(tmp_path / "data" / name)

    spoiled = container()
    async with running(spoiled):
        snapshot = spoiled.observer().snapshot()
    again = container()
    async with running(again):
        after = again.observer().snapshot()

    assert snapshot.status == "degraded"
    for name in FILES:
        assert [reason for reason in snapshot.reasons if name in reason] != []
        assert sorted((tmp_path / "data").glob(f"{name}*.damaged-*")) != []
        assert [reason for reason in after.reasons if name in reason] == []


async def test_a_log_without_its_file_is_not_taken_for_a_new_start(
    container: Callable[[], Container], tmp_path: Path
) -> None:
    """SQLite would delete it and begin an empty file."""
    data = tmp_path / "data"
    async with running(container()):
        shutil.copytree(data, tmp_path / "killed")
    shutil.rmtree(data)
    shutil.copytree(tmp_path / "killed", data)
    for name in FILES:
        (data / name).unlink()

    spoiled = container()
    async with running(spoiled):
        reasons = spoiled.observer().snapshot().reasons

    for name in FILES:
        assert [reason for reason in reasons if name in reason] != []
        assert sorted(data.glob(f"{name}.damaged-*-wal")) != []


async def test_a_rollback_journal_of_another_file_is_not_written_over_ours(
    container: Callable[[], Container], tmp_path: Path
) -> None:
    """SQLite would, before anything else."""
    data = tmp_path / "data"
    async with running(container()):
        pass
    before = (data / "dead_letters.db").read_bytes()
    hot = bytes.fromhex("d9d505f920a163d7") + (1).to_bytes(4) + bytes(4) + (9).to_bytes(4)
    page = (1).to_bytes(4) + bytes(4096) + bytes(4)
    stray = (hot + (512).to_bytes(4) + (4096).to_bytes(4)).ljust(512, b"\0") + page
    (data / "dead_letters.db-journal").write_bytes(stray)

    spoiled = container()
    async with running(spoiled):
        pass

    assert (data / "dead_letters.db").read_bytes()[100:] == before[100:]
    (aside,) = data.glob("dead_letters.db-journal.damaged-*")
    assert aside.read_bytes() == stray


async def test_a_journal_of_the_version_before_opens_unchanged(
    container: Callable[[], Container], tmp_path: Path
) -> None:
    """Its rows have no checksums, and what it lacks is taken as known."""
    data = tmp_path / "data"
    data.mkdir()
    connection = sqlite3.connect(data / "journal.db")
    connection.executescript(
        f"PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL; {MIGRATIONS[0]};"
        f"{MIGRATIONS[1]}; PRAGMA user_version = 2;"
        "UPDATE journal SET tail = 20, states_through = 20;"
        "INSERT INTO cursors VALUES ('embedded', 20), ('influxdb', 3);"
        "INSERT INTO covered VALUES (1000, 2000, 5.0);"
    )
    connection.close()

    opened = container()
    async with running(opened):
        snapshot = opened.observer().snapshot()

    assert [reason for reason in snapshot.reasons if "damaged" in reason] == []
    assert list(data.glob("*.damaged-*")) == []


async def test_a_repair_retains_the_gaps_of_an_older_version(
    container: Callable[[], Container], tmp_path: Path
) -> None:
    """Columns that were added since have their defaults: the gap keeps its reason."""
    data = tmp_path / "data"
    data.mkdir()
    connection = sqlite3.connect(data / "journal.db")
    connection.executescript(
        f"PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL; {MIGRATIONS[0]};"
        f"{MIGRATIONS[1]}; PRAGMA user_version = 2;"
        "UPDATE journal SET tail = 20, states_through = 20;"
        "INSERT INTO cursors VALUES ('influxdb', 21);"  # beyond the tail, which is damage
        "INSERT INTO gaps VALUES"
        " (7, 1000, 2000, 'disconnect', 5.0, 5.0, 'open', NULL, 0, 0, '[]', '[]', NULL, NULL);"
    )
    connection.close()

    opened = container()
    async with running(opened):
        gap = opened.coverage().gap(7)

    assert sorted(data.glob("journal.db.damaged-*")) != []
    assert gap is not None
    assert (gap.reason, gap.start_ns, gap.sources) == ("disconnect", 1000, ())


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (StorageFull("no space"), StorageFull, "DATA_DIR: the disk of the folder /data is full"),
        (StorageError("denied"), StorageError, "DATA_DIR: /data/journal.db cannot be opened"),
    ],
)
def test_what_ends_the_start_names_the_file(
    error: StorageError, kind: type[StorageError], words: str
) -> None:
    """A person must act: one line, and status 2."""
    with pytest.raises(kind, match=words), sqlite.opening(Path("/data/journal.db")):
        raise error


def test_a_new_folder_is_durable_with_its_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut right after the first commit must not take the folder along."""
    synced: list[Path] = []
    monkeypatch.setattr(sqlite, "sync_folder", synced.append)

    with sqlite.owned_folder(tmp_path / "a" / "b" / "data"):
        assert set(synced) >= {tmp_path, tmp_path / "a", tmp_path / "a" / "b"}


async def test_a_file_that_is_set_aside_is_durable_under_its_new_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut could show the damaged one, and both, and none."""
    synced: list[Path] = []
    monkeypatch.setattr(sqlite, "sync_folder", synced.append)
    (tmp_path / "x.db").write_bytes(b"damaged")

    def fill(_: Connection) -> Steps[str]:
        yield
        return "filled"

    _, filled = await sqlite.replace_damaged(tmp_path / "x.db", migrations=(), fill=fill)

    assert filled == "filled"
    renames = [folder for folder in synced if folder == tmp_path]
    assert len(renames) == 3, "the copy, the damaged file, and the copy in its place"


async def test_a_copy_that_is_partly_in_its_log_does_not_replace_a_damaged_file(
    tmp_path: Path,
) -> None:
    """The log is not renamed with it. A full disk, or as here a reader, prevents the checkpoint."""
    (tmp_path / "x.db").write_bytes(b"damaged")
    readers = []

    def fill(connection: Connection) -> Steps[None]:
        connection.execute("CREATE TABLE x (y)")
        readers.append(sqlite3.connect(tmp_path / "x.db.salvage", check_same_thread=False))
        readers[0].execute("SELECT * FROM sqlite_schema").fetchall()
        yield

    with pytest.raises(StorageError, match="salvage could not be completed"):
        await sqlite.replace_damaged(tmp_path / "x.db", migrations=(), fill=fill)
    readers[0].close()

    assert (tmp_path / "x.db").read_bytes() == b"damaged"
