"""A small disk of its own for the service, to be filled, spoiled and mended by a test.

It is a tmpfs in a mount namespace, so nothing of it is seen or left outside. What runs on it has
no capabilities: to it permission bits mean something, whoever runs the tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path

from tests.service.process import Service, service

_IS_ROOT = os.geteuid() == 0
_NAMESPACE = ("--mount",) if _IS_ROOT else ("--map-root-user", "--mount")
_ENTERED = ("--mount",) if _IS_ROOT else ("--user", "--preserve-credentials", "--mount")
_POWERLESS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


class Disk:
    """A mounted tmpfs; it is there for as long as the process that keeps its namespace."""

    def __init__(self, keeper: int, mounted_at: Path) -> None:
        self._keeper = keeper
        self._mounted_at = mounted_at
        self.path = Path(f"/proc/{keeper}/root{mounted_at}")
        """The folder as it is seen from outside, by the test."""

    def fill(self) -> None:
        """Leave not a single byte."""
        with (self.path / "filler").open("ab", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(b"\0" * 4096)

    def empty(self) -> None:
        """Give the bytes back."""
        (self.path / "filler").unlink()

    async def remount(self, how: str) -> None:
        """Mount it anew, `ro` or `rw`; nothing may be open on it."""
        await self._run("mount", "-o", f"remount,{how}", str(self._mounted_at))

    async def protect_all_else(self) -> None:
        """Make everything read-only in this namespace but this disk and what the kernel shows."""
        script = (
            "findmnt --raw --noheadings --output TARGET,FSTYPE | while read -r target kind; do"
            ' case "$target:$kind" in "$1":*|/proc*|/sys*|/dev*) ;;'
            ' *) mount -o remount,bind,ro "$target" || exit 1;; esac; done'
            ' && ! touch "$1.elsewhere"'
        )
        await self._run("sh", "-c", script, "sh", str(self._mounted_at))

    @contextlib.asynccontextmanager
    async def service(self, folder: Path, environment: Mapping[str, str]) -> AsyncIterator[Service]:
        """Start the service with this disk as its DATA_DIR."""
        async with service(
            folder,
            {**environment, "DATA_DIR": str(self._mounted_at)},
            python=_program("nsenter"),
            command=self._inside(*_POWERLESS, sys.executable, "-m", "app", "run"),
        ) as running:
            yield running

    async def refused(self, environment: Mapping[str, str]) -> tuple[int | None, str]:
        """Start the service where it cannot run; return its status and what it says."""
        process = await asyncio.create_subprocess_exec(
            _program("nsenter"),
            *self._inside(*_POWERLESS, sys.executable, "-m", "app", "run"),
            env={
                "PATH": os.environ["PATH"],
                "WEBSOCKET_INGESTION_PORT": "0",
                **environment,
                "DATA_DIR": str(self._mounted_at),
            },
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(60):
                _, said = await process.communicate()
        except TimeoutError:
            process.kill()
            raise AssertionError("it was not refused") from None
        return process.returncode, said.decode()

    async def _run(self, *command: str) -> None:
        process = await asyncio.create_subprocess_exec(_program("nsenter"), *self._inside(*command))
        assert await process.wait() == 0, command

    def _inside(self, *command: str) -> Sequence[str]:
        return ("--target", str(self._keeper), *_ENTERED, f"--wd={Path.cwd()}", *command)


@contextlib.asynccontextmanager
async def small_disk(folder: Path, *, megabytes: int) -> AsyncIterator[Disk]:
    """Mount one until the block ends."""
    mounted_at = folder / "disk"
    mounted_at.mkdir()
    script = f'mount -t tmpfs -o size={megabytes}m,mode=700 tmpfs "$1" && echo mounted && exec cat'
    keeper = await asyncio.create_subprocess_exec(
        _program("unshare"),
        *_NAMESPACE,
        *("sh", "-c", script, "sh", str(mounted_at)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    try:
        said = await keeper.stdout.readline()
        assert said == b"mounted\n", "a mount namespace is needed: root, or user namespaces"
        yield Disk(keeper.pid, mounted_at)
    finally:
        keeper.stdin.close()  # it ends with whoever started it
        await keeper.wait()


@contextlib.contextmanager
def every_write_failing(running: Service) -> Iterator[None]:
    """Let no file of a process grow or be written beyond its first byte, as on a broken disk."""
    pid = running.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def _program(name: str) -> str:
    path = shutil.which(name)
    assert path is not None, f"{name} is not installed; it is in Debian's util-linux"
    return path
