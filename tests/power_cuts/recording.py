"""Records what a program does to files below a folder, by strace."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from tests.power_cuts.disk import (
    ROOT,
    Acknowledged,
    History,
    Names,
    Sync,
    Tree,
    Truncate,
    Write,
    read_tree,
    without_cut,
)
from tests.real.servers import program

_CALLS = (
    "openat,open,creat,close,dup,dup2,dup3,mmap,"
    "write,writev,pwrite64,pwritev,pwritev2,ftruncate,truncate,fallocate,copy_file_range,sendfile,"
    "fsync,fdatasync,sync_file_range,sync,syncfs,"
    "rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,linkat,symlink,symlinkat"
)

# 4711  pwrite64(12, "\x00\x01", 2, 4096) = 2
# 4711  pwrite64(12, "\x00\x01", 2, 4096 <unfinished ...>
# 4711  <... pwrite64 resumed>) = 2
_BEGUN = re.compile(r"(\d+) +(\w+)\((.*)$", re.DOTALL)
_RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)$", re.DOTALL)
_RESULT = re.compile(r"(.*)\) += (-?\d+|\?|0x[0-9a-f]+)(?: .*)?$", re.DOTALL)
_ARGUMENT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(?:\.\.\.)?|([^,"]+)')
_UNFINISHED = " <unfinished ...>"

_IGNORED = "-shm"
"""The shared-memory index of a write-ahead log, which SQLite rebuilds after a crash."""


@dataclass(frozen=True, slots=True)
class Call:
    """A system call: its name, its arguments, and its result once it has ended."""

    thread: str
    name: str
    arguments: Sequence[str | bytes]
    result: int | None = None


def calls(lines: Iterable[str]) -> Iterator[tuple[Call, bool]]:
    """Yield each call of a trace twice: when it begins, and when it has ended (True)."""
    begun: dict[str, str] = {}
    for line in lines:
        text = line.rstrip("\n")
        if found := _RESUMED.match(text):
            thread, name, rest = found.groups()
            text = begun.pop(thread) + rest
            yield _ended(thread, name, text), True
        elif found := _BEGUN.match(text):
            thread, name, text = found.groups()
            if text.endswith(_UNFINISHED):
                begun[thread] = text.removesuffix(_UNFINISHED)
                yield Call(thread, name, _arguments(begun[thread])), False
                continue
            call = _ended(thread, name, text)
            yield call, False
            yield call, True


def _ended(thread: str, name: str, text: str) -> Call:
    found = _RESULT.match(text)
    assert found is not None, text[:200]
    result = -1 if found[2] == "?" else int(found[2], 0)
    return Call(thread, name, _arguments(found[1]), result)


def _arguments(text: str) -> list[str | bytes]:
    return [
        bytes.fromhex(quoted.replace("\\x", "")) if not plain else plain.strip()
        for quoted, plain in _ARGUMENT.findall(text)
        if quoted or plain.strip() or not plain
    ]


@dataclass(slots=True)
class Reader:
    """Reads a trace of one process into the history of a folder."""

    folder: Path
    acknowledgements: Path
    """A file outside; each write to it is an acknowledgement."""
    history: History = field(default_factory=History)
    _inodes: Iterator[int] = field(default_factory=lambda: count(ROOT + 1))
    _entries: dict[int, dict[str, int]] = field(default_factory=dict)
    """The names as the program sees them."""
    _open: dict[int, int] = field(default_factory=dict)
    """Inodes by descriptor."""
    _ledger: set[int] = field(default_factory=set)
    """Descriptors of the acknowledgements."""
    _syncing: dict[str, int] = field(default_factory=dict)
    """By thread, how many operations had ended when its sync began."""

    def load(self) -> None:
        """Take over what is in the folder as durable; call it before the program runs."""
        self._load(self.folder, ROOT)

    def _load(self, folder: Path, inode: int) -> None:
        names: dict[str, int] = {}
        for path in sorted(folder.iterdir()):
            if path.name.endswith(_IGNORED):
                continue
            child = self._new(path)
            names[path.name] = child
            if path.is_dir():
                self._load(path, child)
            else:
                self.history.files[child] = path.read_bytes()
        self.history.folders[inode] = names
        self._entries[inode] = dict(names)

    def read(self, lines: Iterable[str]) -> History:
        """Read the trace of a process to its end."""
        self._open.clear()
        self._ledger.clear()
        for call, has_ended in calls(lines):
            if has_ended:
                self._finish(call)
            else:
                self._begin(call)
        return self.history

    def found(self) -> Tree:
        """Return what is in the folder."""
        tree = read_tree(self.folder)
        return {path: data for path, data in tree.items() if not path.name.endswith(_IGNORED)}

    def catch_up(self) -> None:
        """Add what another thread wrote while the process was killed: that call has no result."""
        known = without_cut(self.history)
        for path, data in self.found().items():
            place = self._place(self.folder / path)
            if data is not None and known.get(path) != data and place is not None:
                folder, name = place
                self.history.operations.append(Write(self._entries[folder][name], 0, data))

    def _begin(self, call: Call) -> None:
        if call.name == "close":  # another thread may be given the descriptor before it ends
            self._open.pop(_number(call, 0), None)
            self._ledger.discard(_number(call, 0))
        if call.name in {"fsync", "fdatasync"}:
            self._syncing[call.thread] = len(self.history.operations)
        if call.name == "write" and _number(call, 0) in self._ledger:
            # What was acknowledged is durable before the acknowledgement begins.
            self.history.operations.append(Acknowledged(_bytes(call, 1)))

    def _finish(self, call: Call) -> None:
        assert call.result is not None
        if call.result < 0:
            return
        operations = self.history.operations
        match call.name:
            case "openat" | "open" | "creat":
                self._opened(call)
            case "close":
                pass  # when it began
            case "pwrite64" if inode := self._open.get(_number(call, 0)):
                data = _bytes(call, 1)
                assert len(data) == call.result, "strace cut the data, or it was written in part"
                operations.append(Write(inode, _number(call, 3), data))
            case "ftruncate" if inode := self._open.get(_number(call, 0)):
                operations.append(Truncate(inode, _number(call, 1)))
            case "fsync" | "fdatasync" if (inode := self._open.get(_number(call, 0))) is not None:
                operations.append(Sync(inode, self._syncing[call.thread]))
            case "mkdir" | "unlink" | "rename":
                self._renamed(call)
            case _:
                assert not self._concerns_us(call), f"the recording does not know this: {call}"

    def _opened(self, call: Call) -> None:
        assert call.result is not None
        # A call that was not traced may have reused a descriptor.
        self._open.pop(call.result, None)
        path = self._path(call)
        if path == self.acknowledgements:
            self._ledger.add(call.result)
            return
        place = self._place(path)
        if place is None or path.name.endswith(_IGNORED):
            return
        flags = "|".join(each for each in call.arguments if isinstance(each, str))
        folder, name = place
        if path == self.folder:
            inode = ROOT
        elif name in self._entries[folder]:
            inode = self._entries[folder][name]
        else:
            assert "O_CREAT" in flags
            inode = self._new(path)
            self.history.files[inode] = b""
            self._name(folder, (name, inode))
        self._open[call.result] = inode
        if "O_TRUNC" in flags:
            self.history.operations.append(Truncate(inode, 0))

    def _renamed(self, call: Call) -> None:
        path = self._path(call)
        place = self._place(path)
        if place is None or path.name.endswith(_IGNORED):
            return
        folder, name = place
        if call.name == "mkdir":
            inode = self._new(path)
            self.history.folders[inode], self._entries[inode] = {}, {}
            self._name(folder, (name, inode))
        elif call.name == "unlink":
            self._name(folder, (name, None))
        else:
            target = self._place(Path(_bytes(call, 1).decode()))
            assert target is not None
            assert target[0] == folder, "a rename to another folder"
            self._name(folder, (target[1], self._entries[folder][name]), (name, None))

    def _name(self, folder: int, *changes: tuple[str, int | None]) -> None:
        entries = self._entries[folder]
        for name, inode in changes:
            if inode is None:
                del entries[name]
            else:
                entries[name] = inode
        self.history.operations.append(Names(folder, changes))

    def _new(self, path: Path) -> int:
        inode = next(self._inodes)
        self.history.names[inode] = str(path.relative_to(self.folder))
        return inode

    def _place(self, path: Path) -> tuple[int, str] | None:
        """Return the folder and the name of a path; None outside."""
        if not path.is_relative_to(self.folder):
            return None
        folder = ROOT
        for part in path.relative_to(self.folder).parts[:-1]:
            folder = self._entries[folder][part]
        return folder, path.name

    def _path(self, call: Call) -> Path:
        (first, *_) = (each for each in call.arguments if isinstance(each, bytes))
        return Path(first.decode())

    def _concerns_us(self, call: Call) -> bool:
        """Whether a call names one of our files, by its path or its descriptor."""
        if call.name in {"write", "writev", "pwrite64", "mmap", "fsync", "fdatasync", "ftruncate"}:
            return any(
                each.isdecimal() and int(each) in self._open
                for each in call.arguments[4 if call.name == "mmap" else 0 :][:1]
                if isinstance(each, str)
            )
        paths = [each.decode() for each in call.arguments if isinstance(each, bytes)]
        numbers = [each for each in call.arguments[:3] if isinstance(each, str)]
        return call.name in {"sync", "syncfs"} or (
            any(Path(path).is_relative_to(self.folder) for path in paths)
            or any(each.isdecimal() and int(each) in self._open for each in numbers)
        )


def _number(call: Call, index: int) -> int:
    argument = call.arguments[index]
    assert isinstance(argument, str)
    return int(argument, 0) if argument.lstrip("-").isdecimal() else -1


def _bytes(call: Call, index: int) -> bytes:
    argument = call.arguments[index]
    assert isinstance(argument, bytes)
    return argument


def record(
    folder: Path,
    *commands: Sequence[str],
    trace: Path,
    acknowledgements: Path,
    environment: Mapping[str, str],
    kill_at: str | None = None,
) -> History:
    """Run commands one after another and return what they did below the folder.

    With `kill_at`, the first is killed when one of its threads begins this call:
    `fdatasync:when=30` is its 30th.
    """
    reader = Reader(folder.resolve(), acknowledgements.resolve())
    reader.load()
    strace = [str(program("strace")), "-f", "-xx", "-s", "1000000"]
    strace += ["-e", f"trace={_CALLS}", "-e", "signal=none", "-o", str(trace)]
    for number, command in enumerate(commands):
        is_killed = kill_at is not None and number == 0
        kill = ["-e", f"inject={kill_at}:error=EIO:signal=KILL"]
        fast = ["--seccomp-bpf"]  # with it strace does not send the signal
        ended = subprocess.run(
            [*strace, *(kill if is_killed else fast), *command],
            env=dict(environment),
            check=False,
            timeout=60,
        )
        assert ended.returncode == (-signal.SIGKILL if is_killed else 0), command
        with trace.open() as lines:
            reader.read(lines)
        if is_killed:
            reader.catch_up()
    assert without_cut(reader.history) == reader.found(), "the recording is not complete"
    return reader.history
