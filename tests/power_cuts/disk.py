"""A disk as a power cut finds it: what was synced, and any legal part of what was not.

The model is that of ALICE (OSDI 2014, https://research.cs.wisc.edu/adsl/Publications/alice-osdi14.pdf)
without the guarantees of a particular file system:

- Contents are durable once the file was synced, names once their folder was synced.
- Of later writes to a file any subset may be there, each also in part, by sectors; the size may
  have grown without the data.
- Of later names in a folder any subset may be there, as long as the changes of one name keep their
  order. A rename is atomic.
- Files and folders do not wait for each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TypeAlias

SECTOR_BYTES = 512
ROOT = 0
"""The inode of the topmost folder, which existed before."""


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes written to a file."""

    inode: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    """A new size of a file."""

    inode: int
    size: int


@dataclass(frozen=True, slots=True)
class Names:
    """Changes of the names in a folder that happen together; None removes a name."""

    inode: int
    """The folder."""
    changes: tuple[tuple[str, int | None], ...]


@dataclass(frozen=True, slots=True)
class Sync:
    """A sync that has returned."""

    inode: int
    since: int
    """How many operations had ended when it began: these are durable."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """What the program has acknowledged to somebody."""

    message: bytes


Change: TypeAlias = Write | Truncate | Names
Operation: TypeAlias = Change | Sync | Acknowledged


@dataclass(slots=True)
class History:
    """The contents of a disk before a program ran, and what the program then did, in order."""

    files: dict[int, bytes] = field(default_factory=dict)
    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    operations: list[Operation] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=lambda: {ROOT: "."})
    """The first path of each file and folder."""

    def without_syncs(self, is_one: Callable[[str], bool]) -> History:
        """Return the history of a program that does not sync the paths for which this is true."""
        return replace(
            self,
            operations=[
                replace(operation, since=0)
                if isinstance(operation, Sync) and is_one(self.names[operation.inode])
                else operation
                for operation in self.operations
            ],
        )

    def acknowledged(self, cut: int) -> list[bytes]:
        """Return what was acknowledged before the cut."""
        done = self.operations[:cut]
        return [each.message for each in done if isinstance(each, Acknowledged)]


Tree: TypeAlias = Mapping[Path, bytes | None]
"""Relative paths with the contents of files, or None for folders; parents come first."""


def without_cut(history: History) -> Tree:
    """Return what the program left behind, synced or not."""
    changes: dict[int, list[Change]] = defaultdict(list)
    for operation in history.operations:
        if isinstance(operation, Write | Truncate | Names):
            changes[operation.inode].append(operation)
    return dict(_tree(history, changes, ROOT, Path()))


def after_cut(history: History, cut: int, chance: Random) -> Tree:
    """Return a legal state of the disk after a cut before the operation number `cut` has ended."""
    durable: dict[int, int] = defaultdict(int)
    for operation in history.operations[:cut]:
        if isinstance(operation, Sync):
            durable[operation.inode] = max(durable[operation.inode], operation.since)
    synced: dict[int, list[Change]] = defaultdict(list)
    pending: dict[int, list[Change]] = defaultdict(list)
    for number, operation in enumerate(history.operations[: cut + 1]):
        if isinstance(operation, Write | Truncate | Names):
            is_synced = number < durable[operation.inode]
            (synced if is_synced else pending)[operation.inode].append(operation)
    # Sometimes the whole disk lost, or kept, all that it could.
    extreme = chance.choice((None, None, None, "all", "none"))
    kept = {
        inode: [*synced[inode], *_survivors(pending[inode], chance, extreme)]
        for inode in sorted({*synced, *pending})
    }
    return dict(_tree(history, kept, ROOT, Path()))


def _survivors(pending: Sequence[Change], chance: Random, extreme: str | None) -> list[Change]:
    if not pending:
        return []
    how = extreme or chance.choice(("all", "none", "prefix", "subset"))
    if how == "none":
        return []
    if how == "all":
        return list(pending)
    if how == "prefix":
        kept = list(pending[: chance.randrange(len(pending) + 1)])
        return [*kept[:-1], *_torn(kept[-1], chance)] if kept else []
    return _subset(pending, chance)


def _subset(pending: Iterable[Change], chance: Random) -> list[Change]:
    kept: list[Change] = []
    lost_names: set[str] = set()
    for change in pending:
        if isinstance(change, Names):
            names = {name for name, _ in change.changes}
            if lost_names & names or chance.random() < 0.5:
                lost_names |= names
            else:
                kept.append(change)
        elif chance.random() < 0.7:
            kept += _torn(change, chance)
    return kept


def _torn(change: Change, chance: Random) -> list[Change]:
    """Return a change whole or, if it is a write, sometimes in part."""
    if not isinstance(change, Write) or chance.random() < 0.5:
        return [change]
    if chance.random() < 0.2:  # the size has grown, the data is missing
        return [replace(change, data=bytes(len(change.data)))]
    end = change.offset + len(change.data)
    first = change.offset // SECTOR_BYTES * SECTOR_BYTES
    parts = [
        (max(start, change.offset), min(start + SECTOR_BYTES, end))
        for start in range(first, end, SECTOR_BYTES)
    ]
    if chance.random() < 0.5:
        chosen = parts[: chance.randrange(len(parts) + 1)]
    else:
        chosen = [part for part in parts if chance.random() < 0.5]
    return [
        Write(change.inode, start, change.data[start - change.offset : stop - change.offset])
        for start, stop in chosen
    ]


def _tree(
    history: History, kept: Mapping[int, Sequence[Change]], inode: int, at: Path
) -> Iterable[tuple[Path, bytes | None]]:
    entries = dict(history.folders[inode])
    for change in kept.get(inode, ()):
        assert isinstance(change, Names)
        entries.update((name, there) for name, there in change.changes if there is not None)
        for name in (name for name, there in change.changes if there is None):
            entries.pop(name, None)
    for name, child in sorted(entries.items()):
        if child in history.folders:
            yield at / name, None
            yield from _tree(history, kept, child, at / name)
        else:
            yield at / name, _contents(history.files[child], kept.get(child, ()))


def _contents(before: bytes, changes: Sequence[Change]) -> bytes:
    contents = bytearray(before)
    for change in changes:
        if isinstance(change, Write):
            end = change.offset + len(change.data)
            contents.extend(bytes(max(0, end - len(contents))))
            contents[change.offset : end] = change.data
        elif isinstance(change, Truncate):
            del contents[change.size :]
            contents.extend(bytes(change.size - len(contents)))
    return bytes(contents)


def read_tree(folder: Path) -> Tree:
    """Return the files and folders below a folder."""
    return {
        path.relative_to(folder): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def write_tree(tree: Tree, folder: Path) -> None:
    """Create the files and folders below an empty folder."""
    for path, contents in tree.items():
        if contents is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(contents)
