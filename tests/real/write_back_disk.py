"""A file system that forgets what was not synced: contents and names alike.

`python -m tests.real.write_back_disk IMAGE MOUNTPOINT` mounts it with the contents of the folder
IMAGE. Creating the folder `power-cut` in it is the cut: what was synced replaces IMAGE, and every
later operation fails. It needs root, /dev/fuse and libfuse.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NoReturn, TypeAlias

CUT = "power-cut"
_BLOCK_BYTES = 4096
_BLOCKS = 1 << 20


@dataclass(slots=True)
class _File:
    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""


@dataclass(slots=True)
class _Folder:
    entries: dict[str, _Node] = field(default_factory=dict)
    synced: dict[str, _Node] = field(default_factory=dict)


_Node: TypeAlias = _File | _Folder


class WriteBackDisk:
    """The operations that libfuse calls."""

    use_ns = True

    def __init__(self, image: Path) -> None:
        self._image = image
        self._root = _loaded(image)
        self._handles = count(1)
        self._open: dict[int, _File] = {}
        self._is_cut = False

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        """Return size and kind."""
        node = self._open.get(fh or 0) or self._node(path)
        if isinstance(node, _File):
            return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": len(node.data)}
        return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}

    def readdir(self, path: str, _: int) -> list[str]:
        """Return the names in a folder."""
        return [".", "..", *self._folder(path).entries]

    def mkdir(self, path: str, _: int) -> int:
        """Create a folder, or cut the power."""
        folder, name = self._place(path)
        if name == CUT:
            self._cut()
        folder.entries[name] = _Folder()
        return 0

    def create(self, path: str, _: int) -> int:
        """Create a file and open it."""
        folder, name = self._place(path)
        folder.entries[name] = _File()
        return self.open(path, 0)

    def open(self, path: str, _: int) -> int:
        """Open a file."""
        node = self._node(path)
        if not isinstance(node, _File):
            _fail(errno.EISDIR)
        handle = next(self._handles)
        self._open[handle] = node
        return handle

    def release(self, _: str, fh: int) -> int:
        """Close a file."""
        del self._open[fh]
        return 0

    def read(self, _: str, size: int, offset: int, fh: int) -> bytes:
        """Read what was written, synced or not."""
        self._check_power()
        return bytes(self._open[fh].data[offset : offset + size])

    def write(self, _: str, data: bytes, offset: int, fh: int) -> int:
        """Write to memory."""
        self._check_power()
        contents = self._open[fh].data
        contents.extend(bytes(max(0, offset - len(contents))))
        contents[offset : offset + len(data)] = data
        return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        """Change the size, in memory."""
        node = self._open.get(fh or 0) or self._node(path)
        assert isinstance(node, _File)
        del node.data[length:]
        node.data.extend(bytes(length - len(node.data)))
        return 0

    def unlink(self, path: str) -> int:
        """Remove a name."""
        self._node(path)
        folder, name = self._place(path)
        del folder.entries[name]
        return 0

    rmdir = unlink

    def rename(self, old: str, new: str, _: int = 0) -> int:
        """Change a name."""
        node = self._node(old)
        target, name = self._place(new)
        source, old_name = self._place(old)
        target.entries[name] = node
        del source.entries[old_name]
        return 0

    def fsync(self, _: str, __: int, fh: int) -> int:
        """Make the contents of a file durable, not its name."""
        self._check_power()
        self._open[fh].synced = bytes(self._open[fh].data)
        return 0

    def fsyncdir(self, path: str, _: int, __: int) -> int:
        """Make the names in a folder durable."""
        folder = self._folder(path)
        folder.synced = dict(folder.entries)
        return 0

    def utimens(self, path: str, _: object = None) -> int:
        """Ignore times."""
        self._node(path)
        return 0

    def statfs(self, _: str) -> dict[str, int]:
        """Return a disk of 4 GB, all of it free."""
        sizes = dict.fromkeys(("f_blocks", "f_bfree", "f_bavail"), _BLOCKS)
        return {"f_bsize": _BLOCK_BYTES, "f_frsize": _BLOCK_BYTES, "f_namemax": 255, **sizes}

    def _cut(self) -> NoReturn:
        self._is_cut = True
        shutil.rmtree(self._image)
        _save(self._root, self._image)
        _fail(errno.EIO)

    def _check_power(self) -> None:
        if self._is_cut:
            _fail(errno.EIO)

    def _node(self, path: str) -> _Node:
        self._check_power()
        node: _Node = self._root
        for name in Path(path).parts[1:]:
            if not isinstance(node, _Folder) or name not in node.entries:
                _fail(errno.ENOENT)
            node = node.entries[name]
        return node

    def _folder(self, path: str) -> _Folder:
        node = self._node(path)
        if not isinstance(node, _Folder):
            _fail(errno.ENOTDIR)
        return node

    def _place(self, path: str) -> tuple[_Folder, str]:
        return self._folder(str(Path(path).parent)), Path(path).name


def _fail(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))


def _loaded(folder: Path) -> _Folder:
    entries: dict[str, _Node] = {}
    for path in folder.iterdir():
        if path.is_dir():
            entries[path.name] = _loaded(path)
        else:
            data = path.read_bytes()
            entries[path.name] = _File(bytearray(data), data)
    return _Folder(entries, dict(entries))


def _save(folder: _Folder, target: Path) -> None:
    target.mkdir()
    for name, node in folder.synced.items():
        if isinstance(node, _Folder):
            _save(node, target / name)
        else:
            (target / name).write_bytes(node.synced)


@contextlib.asynccontextmanager
async def mounted(image: Path, mountpoint: Path) -> AsyncIterator[None]:
    """Mount the disk in a process of its own until the block ends."""
    assert os.geteuid() == 0, "mounting needs root"
    assert Path("/dev/fuse").exists(), "/dev/fuse is needed"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.real.write_back_disk", str(image), str(mountpoint)
    )
    try:
        async with asyncio.timeout(20):
            while not mountpoint.is_mount():
                assert process.returncode is None, "libfuse is not installed: make real-servers"
                await asyncio.sleep(0.01)
        yield
    finally:
        unmounting = await asyncio.create_subprocess_exec("umount", "--lazy", str(mountpoint))
        await unmounting.wait()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def cut_power(mountpoint: Path) -> None:
    """Replace the image by what was synced."""
    with contextlib.suppress(OSError):
        (mountpoint / CUT).mkdir()


def main() -> None:
    """Serve the disk until it is unmounted."""
    from mfusepy import FUSE  # noqa: PLC0415 - importing it loads libfuse

    image, mountpoint = map(Path, sys.argv[1:])
    FUSE(
        WriteBackDisk(image),
        str(mountpoint),
        foreground=True,
        nothreads=True,
        hard_remove=True,
        fsname="write-back-disk",
    )


if __name__ == "__main__":
    main()
