"""The model keeps what was synced, may lose all else, and changes nothing that no disk changes."""

from __future__ import annotations

from pathlib import Path
from random import Random

from tests.power_cuts.disk import (
    ROOT,
    SECTOR_BYTES,
    History,
    Names,
    Operation,
    Sync,
    Tree,
    Truncate,
    Write,
    after_cut,
)

FILE, OTHER = 1, 2
NAME, OTHER_NAME = Path("a"), Path("b")


def states(*operations: Operation) -> list[Tree]:
    """Return many states after all of the operations, on a disk with two new files."""
    history = History(files={FILE: b"", OTHER: b""}, operations=list(operations))
    return [after_cut(history, len(operations), Random(seed)) for seed in range(400)]


def created(inode: int = FILE, path: Path = NAME) -> Names:
    """Return the creation of a file."""
    return Names(ROOT, ((path.name, inode),))


def test_what_was_synced_is_there() -> None:
    """With its name, whatever else is lost."""
    history = (created(), Write(FILE, 0, b"x" * 5000), Sync(FILE, 2), Sync(ROOT, 3))
    assert {tree[NAME] for tree in states(*history, Write(OTHER, 0, b"y"))} == {b"x" * 5000}


def test_a_synced_file_may_have_no_name() -> None:
    """Only its folder's sync makes the name durable."""
    found = states(created(), Write(FILE, 0, b"x"), Sync(FILE, 2))
    assert {tree.get(NAME) for tree in found} == {None, b"x"}


def test_a_sync_covers_only_what_had_ended_when_it_began() -> None:
    """A write beside it may be lost."""
    found = states(created(), Sync(ROOT, 1), Write(FILE, 0, b"x"), Sync(FILE, 2))
    assert b"" in {tree[NAME] for tree in found}


def test_a_write_may_be_there_by_sectors() -> None:
    """Each sector is the old or the new one; or only the size is new."""
    sectors = b"".join(bytes([number]) * SECTOR_BYTES for number in (1, 2, 3))
    found = {tree[NAME] for tree in states(created(), Sync(ROOT, 1), Write(FILE, 0, sectors))}

    assert {b"", sectors, bytes(len(sectors)), sectors[:SECTOR_BYTES]} <= found
    assert all(
        contents[number * SECTOR_BYTES : (number + 1) * SECTOR_BYTES]
        in {b"", bytes(SECTOR_BYTES), bytes([number + 1]) * SECTOR_BYTES}
        for contents in found
        if contents is not None
        for number in range(3)
    )


def test_a_later_write_may_be_there_without_an_earlier_one() -> None:
    """Of one file, and of two."""
    files = (created(), created(OTHER, OTHER_NAME), Sync(ROOT, 2))
    found = states(*files, Write(FILE, 0, b"x"), Write(FILE, 1, b"y"), Write(OTHER, 0, b"z"))
    assert {(b"\0y", b"z"), (b"", b"z"), (b"xy", b"")} <= {
        (tree[NAME], tree[OTHER_NAME]) for tree in found
    }


def test_a_rename_is_atomic_and_may_be_lost() -> None:
    """The file has its old name, or its new one, and never both or none."""
    rename = Names(ROOT, ((OTHER_NAME.name, FILE), (NAME.name, None)))
    found = states(created(), Sync(ROOT, 1), rename)
    assert {tuple(tree) for tree in found} == {(NAME,), (OTHER_NAME,)}


def test_the_changes_of_one_name_keep_their_order() -> None:
    """A file that was removed and created again is not removed later."""
    again = (Names(ROOT, ((NAME.name, None),)), created(OTHER))
    found = states(created(), Write(FILE, 0, b"x"), Sync(FILE, 2), Sync(ROOT, 3), *again)
    assert {tree.get(NAME) for tree in found} == {b"x", b"", None}


def test_a_file_may_keep_its_former_size() -> None:
    """A truncation that was not synced."""
    file = (created(), Sync(ROOT, 1), Write(FILE, 0, b"xyz"), Sync(FILE, 3))
    assert {tree[NAME] for tree in states(*file, Truncate(FILE, 1))} == {b"xyz", b"x"}
