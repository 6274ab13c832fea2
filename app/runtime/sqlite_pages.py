"""Reads rows from the pages of a damaged SQLite file, without SQLite.

SQLite finds a row through page 1, the schema and the interior pages of a tree; when one of them
is damaged, every row behind it is lost to SQL. A leaf page can be read by itself. Like `.recover`
of SQLite's shell, which is in no Python package, this looks at every page; a table is recognized
by the types of its columns. The format: https://www.sqlite.org/fileformat2.html
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

Value: TypeAlias = str | bytes | int | float | None

_MAGIC = b"SQLite format 3\x00"
PAGE_BYTES = 4096
"""SQLite's default."""
SMALL_PAGE_BYTES = 1024
PAGE_SIZES_IN_USE = (SMALL_PAGE_BYTES, PAGE_BYTES)
_PAGE_SIZES = frozenset(2**power for power in range(9, 17))
_FILE_HEADER_BYTES = 100
_WAL_MAGICS = frozenset({0x377F0682, 0x377F0683})
_WAL_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24
_TABLE_LEAF, _INDEX_LEAF, _INDEX_INTERIOR = 0x0D, 0x0A, 0x02
_INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
_FLOAT, _ZERO, _ONE = 7, 8, 9
_FIRST_BLOB = 12
_MORE = 0x80
"""Set in each byte of a variable-length integer but the last."""


class Column(NamedTuple):
    """The type of one column: a table is recognized by the types of its values."""

    type: Literal["INTEGER", "REAL", "TEXT", "BLOB"]
    nullable: bool = False
    rowid: bool = False
    """Whether it is an INTEGER PRIMARY KEY: the record holds NULL in its place."""
    default: Value = None
    """Value in records written before the column was added."""


@dataclass(frozen=True, slots=True)
class _Frame:
    page: int
    offset: int
    """Of the page, in the file."""
    commits: bool
    is_current: bool
    """Whether it belongs to the current round of the log."""


@dataclass(frozen=True, slots=True)
class _Wal:
    page_bytes: int
    has_header: bool
    """Whether its header is undamaged; else SQLite ignores the whole log."""
    frames: Sequence[_Frame]


class _Location(NamedTuple):
    """Where one version of a page is."""

    page: int
    file: _File
    offset: int


class Pages:
    """One possible version of a database: its pages, from the file and its write-ahead log."""

    def __init__(
        self, page_bytes: int, pages: Iterable[_Location], others: Iterable[_Location] = ()
    ) -> None:
        """Rows are read from `pages`; large ones may continue on `others`."""
        self.page_bytes = page_bytes
        self._pages = tuple(pages)
        self._by_number = {location.page: location for location in (*others, *self._pages)}
        self.max_bytes = page_bytes * len(self._by_number)
        """No record can be larger."""

    def page(self, number: int) -> bytes | None:
        """Return a page; None when there is none or the disk cannot read it."""
        location = self._by_number.get(number)
        return location and location.file.read(location.offset, self.page_bytes)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Yield every page that can be read, with its number; a number may come again."""
        for location in self._pages:
            if (page := location.file.read(location.offset, self.page_bytes)) is not None:
                yield location.page, page


class _File:
    """A file read in pieces: a bad sector costs only its page."""

    def __init__(self, path: Path) -> None:
        self._descriptor: int | None = None
        self.bytes = 0
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.bytes = os.fstat(self._descriptor).st_size
        except OSError:
            pass  # missing or unreadable: no pages

    def read(self, offset: int, count: int) -> bytes | None:
        """Return bytes, zeros after the end of the file; None when they cannot be read."""
        if self._descriptor is None:
            return None
        try:
            found = os.pread(self._descriptor, count, offset)
        except OSError:
            return None
        return found.ljust(count, b"\0") if found else None

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def views(path: Path) -> Iterator[Pages]:
    """Yield possible contents of a closed file, the most likely first.

    First the file with the newest pages of its write-ahead log, then without the log, then all
    pages of the log, older versions and earlier rounds of the log included.
    """
    main, log = _File(path), _File(_wal_path(path))
    try:
        stored = _stored_page_bytes(main)
        wal = _read_wal(log, stored or _guessed_page_bytes(main))
        size = stored or (wal.page_bytes if wal else _guessed_page_bytes(main))
        numbers = range(1, -(-main.bytes // size) + 1)
        in_main = [_Location(number, main, (number - 1) * size) for number in numbers]
        frames = wal.frames if wal else []
        stale = [_Location(each.page, log, each.offset) for each in frames if not each.is_current]
        current = [_Location(each.page, log, each.offset) for each in frames if each.is_current]
        newest = {location.page: location for location in (*in_main, *current)}
        yield Pages(size, newest.values())
        if current:
            yield Pages(size, in_main)
        if frames:
            yield Pages(size, [*stale, *current], in_main)
    finally:
        main.close()
        log.close()


def has_frames(path: Path) -> bool:
    """Return whether a write-ahead log beside the file holds pages."""
    try:
        return _wal_path(path).stat().st_size > _WAL_HEADER_BYTES + _FRAME_HEADER_BYTES
    except OSError:
        return False


def has_lost_commits(path: Path) -> bool:
    """Return whether a write-ahead log holds commits that SQLite will not find.

    SQLite reads up to the first frame with a wrong checksum. A torn last transaction is normal
    after a crash; an earlier commit is missing only because of damage.
    """
    log = _File(_wal_path(path))
    try:
        wal = _read_wal(log)
        if wal is None:
            return False
        if not wal.has_header:
            return bool(wal.frames)
        valid = _valid_frames(log, wal)
        behind = [frame for frame in wal.frames[valid:] if frame.is_current]
        commits = [index for index, frame in enumerate(behind) if frame.commits]
        return bool(commits) and commits[0] + 1 < len(behind)
    finally:
        log.close()


def rows(pages: Pages, table: Sequence[Column], *, is_index: bool = False) -> Iterator[list[Value]]:
    """Yield the rows of a table, in no order; also older versions and deleted rows.

    `is_index` is for a table WITHOUT ROWID, whose key must be its first column.
    """
    kinds = (_INDEX_LEAF, _INDEX_INTERIOR) if is_index else (_TABLE_LEAF,)
    for number, page in pages:
        start = _FILE_HEADER_BYTES if number == 1 else 0
        if page[start] not in kinds:
            continue
        for offset in _cells(page, start):
            try:
                rowid, payload = _payload(pages, page, offset, kind=page[start])
                row = _values(payload, table, rowid)
            except (IndexError, ValueError, struct.error):
                continue  # not a cell
            if row is not None:
                yield row


def _wal_path(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _stored_page_bytes(main: _File) -> int | None:
    """Return the size of a page that the file's header states; None when it is damaged."""
    header = main.read(0, _FILE_HEADER_BYTES) or b""
    stored = int.from_bytes(header[16:18], "big")
    size = 65_536 if stored == 1 else stored
    return size if header.startswith(_MAGIC) and size in _PAGE_SIZES else None


def _guessed_page_bytes(main: _File) -> int:
    """Return the smaller of the sizes in use if most leaf pages are found only with it.

    Each page of the larger size begins where one of the smaller size would.
    """
    small, large = sorted(PAGE_SIZES_IN_USE)
    found = {size: _leaf_pages(main, size) for size in (small, large)}
    return small if found[small] > 2 * found[large] else large


def _leaf_pages(main: _File, size: int) -> int:
    starts = (main.read(offset, 8) or bytes(8) for offset in range(0, main.bytes, size))
    return sum(_begins_leaf(start, size) for start in starts)


def _begins_leaf(start: bytes, size: int) -> bool:
    kind, _, cells, content, _ = struct.unpack(">BHHHB", start)
    return kind in (_TABLE_LEAF, _INDEX_LEAF) and cells > 0 and 8 + 2 * cells <= content < size


def _read_wal(log: _File, page_bytes_of_file: int = PAGE_BYTES) -> _Wal | None:
    """Read the log; without its own header it has the pages of its file."""
    header = log.read(0, _WAL_HEADER_BYTES)
    if header is None:
        return None
    magic, _, page_bytes = struct.unpack_from(">III", header)
    has_header = (
        magic in _WAL_MAGICS
        and page_bytes in _PAGE_SIZES
        and _header_sums(header) == struct.unpack_from(">II", header, 24)
    )
    if not has_header:
        page_bytes = page_bytes_of_file
    salts = header[16:24]
    frames = []
    for offset in range(_WAL_HEADER_BYTES, log.bytes, _FRAME_HEADER_BYTES + page_bytes):
        frame = log.read(offset, _FRAME_HEADER_BYTES)
        if frame is None:
            continue
        page, pages_after = struct.unpack_from(">II", frame)
        is_current = frame[8:16] == salts
        frames.append(_Frame(page, offset + _FRAME_HEADER_BYTES, pages_after > 0, is_current))
    return _Wal(page_bytes, has_header, frames)


def _header_sums(header: bytes) -> tuple[int, int]:
    return _checksum(header[:24], (0, 0), _order(header))


def _order(header: bytes) -> Literal["<", ">"]:
    return ">" if header[3] & 1 else "<"


def _valid_frames(log: _File, wal: _Wal) -> int:
    """Return how many frames from the first on have the right checksum."""
    header = log.read(0, _WAL_HEADER_BYTES) or b""
    order, sums = _order(header), _header_sums(header)
    for index, frame in enumerate(wal.frames):
        whole = log.read(frame.offset - _FRAME_HEADER_BYTES, _FRAME_HEADER_BYTES + wal.page_bytes)
        if whole is None or not frame.is_current:
            return index
        sums = _checksum(whole[:8], sums, order)
        sums = _checksum(whole[_FRAME_HEADER_BYTES:], sums, order)
        if sums != struct.unpack_from(">II", whole, 16):
            return index
    return len(wal.frames)


def _checksum(data: bytes, sums: tuple[int, int], order: Literal["<", ">"]) -> tuple[int, int]:
    first, second = sums
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for even, odd in zip(words, words, strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second


def _cells(page: bytes, start: int) -> Iterator[int]:
    count = int.from_bytes(page[start + 3 : start + 5], "big")
    header_bytes = 12 if page[start] == _INDEX_INTERIOR else 8
    pointers = page[start + header_bytes : start + header_bytes + 2 * count]
    for index in range(0, len(pointers) - 1, 2):
        yield int.from_bytes(pointers[index : index + 2], "big")


def _payload(pages: Pages, page: bytes, offset: int, *, kind: int) -> tuple[int, bytes]:
    """Return the row id, 0 in an index, and the whole record of a cell."""
    if kind == _INDEX_INTERIOR:
        offset += 4  # the child's page number
    size, offset = _varint(page, offset)
    rowid = 0
    if kind == _TABLE_LEAF:
        rowid, offset = _varint(page, offset)
        rowid -= (rowid >> 63) << 64  # signed
    if size > pages.max_bytes:
        raise ValueError("a record is larger than its file")
    usable = pages.page_bytes
    most = usable - 35 if kind == _TABLE_LEAF else (usable - 12) * 64 // 255 - 23
    if size <= most:
        return rowid, _exactly(page[offset : offset + size], size)
    least = (usable - 12) * 32 // 255 - 23
    local = least + (size - least) % (usable - 4)
    local = local if local <= most else least
    next_page = int.from_bytes(page[offset + local : offset + local + 4], "big")
    return rowid, _spilled(pages, [page[offset : offset + local]], size - local, next_page)


def _spilled(pages: Pages, parts: list[bytes], left: int, next_page: int) -> bytes:
    """Join a record from the pages that its rest is on."""
    while left > 0:
        page = pages.page(next_page)
        if page is None:
            raise ValueError("an overflow page is missing")
        parts.append(page[4 : 4 + left])
        left -= pages.page_bytes - 4
        next_page = int.from_bytes(page[:4], "big")
    return b"".join(parts)


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ValueError("a record ends behind its page")
    return data


def _values(record: bytes, table: Sequence[Column], rowid: int) -> list[Value] | None:
    """Return the values of a record; None when it is not one of this table."""
    header_bytes, at = _varint(record, 0)
    if header_bytes > len(record):
        return None
    kinds = []
    while at < header_bytes:
        kind, at = _varint(record, at)
        kinds.append(kind)
    if not 0 < len(kinds) <= len(table) or not all(map(_fits, kinds, table)):
        return None
    if not all(column.nullable for column in table[len(kinds) :]):
        return None
    values, at = [], header_bytes
    for kind, column in zip(kinds, table, strict=False):
        value, at = _value(record, kind, at)
        values.append(rowid if column.rowid else value)
    return values + [column.default for column in table[len(kinds) :]]


def _fits(kind: int, column: Column) -> bool:
    if column.rowid:
        return kind == 0
    if kind == 0:
        return column.nullable
    match column.type:
        case "INTEGER":
            return kind in _INTEGER_BYTES or kind in (_ZERO, _ONE)
        case "REAL":  # a whole number is stored as an integer
            return kind in _INTEGER_BYTES or kind in (_FLOAT, _ZERO, _ONE)
        case "TEXT":
            return kind > _FIRST_BLOB and kind % 2 == 1
        case "BLOB":
            return kind >= _FIRST_BLOB and kind % 2 == 0


def _value(record: bytes, kind: int, at: int) -> tuple[Value, int]:
    if kind in (0, _ZERO, _ONE):
        return {0: None, _ZERO: 0, _ONE: 1}[kind], at
    if kind == _FLOAT:
        return struct.unpack_from(">d", record, at)[0], at + 8
    if kind in _INTEGER_BYTES:
        end = at + _INTEGER_BYTES[kind]
        return int.from_bytes(_exactly(record[at:end], end - at), "big", signed=True), end
    size = (kind - _FIRST_BLOB) // 2
    data = _exactly(record[at : at + size], size)
    return data.decode() if kind % 2 else data, at + size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index in range(8):
        byte = data[at + index]
        value = value << 7 | byte & ~_MORE
        if not byte & _MORE:
            return value, at + index + 1
    return value << 8 | data[at + 8], at + 9
