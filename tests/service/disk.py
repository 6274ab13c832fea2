"""A small disk of its own for the service, which a test can fill, break and repair.

It is a tmpfs in a mount namespace, so it is invisible outside and leaves nothing behind. The
service on it runs without capabilities, so permission bits apply even when root runs the tests.
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
    """A mounted tmpfs; it exists as long as the process that holds its mount namespace."""

    def __init__(self, keeper: int, mounted_at: Path) -> None:
        self._keeper = keeper
        self._mounted_at = mounted_at
        self.path = Path(f"/proc/{keeper}/root{mounted_at}")
        """The folder as the test sees it, from outside the namespace."""

    def fill(self) -> None:
        """Fill the disk to the last byte."""
        with (self.path / "filler").open("ab", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(b"\0" * 4096)

    def empty(self) -> None:
        """Free the space that `fill` took."""
        (self.path / "filler").unlink()

    async def remount(self, how: str) -> None:
        """Remount the disk, `ro` or `rw`; no file may be open on it."""
        await self._run("mount", "-o", f"remount,{how}", str(self._mounted_at))

    async def protect_all_else(self) -> None:
        """Make everything in this namespace read-only except this disk, /proc, /sys and /dev."""
        script = (
            "findmnt --raw --noheadings --output TARGET,FSTYPE | while read -r target kind; do"
            ' case "$target:$kind" in "$1":*|/proc*|/sys*|/dev*) ;;'
            ' *) mount -o remount,bind,ro "$target" || exit 1;; esac; done'
            ' && ! touch "$1.elsewhere"'
        )
        await self._run("sh", "-c", script, "sh", str(self._mounted_at))

    @contextlib.asynccontextmanager
    async def service(
        self,
        folder: Path,
        environment: Mapping[str, str],
        *,
        python: str = sys.executable,
        cwd: Path | None = None,
    ) -> AsyncIterator[Service]:
        """Start the service with this disk as its DATA_DIR."""
        async with service(
            folder,
            {**environment, "DATA_DIR": str(self._mounted_at)},
            python=_program("nsenter"),
            command=self._inside(*_POWERLESS, python, "-m", "app", "run", cwd=cwd),
        ) as running:
            yield running

    async def refused(self, environment: Mapping[str, str]) -> tuple[int | None, str]:
        """Start the service where it cannot run; return its exit status and stderr."""
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
                _, stderr = await process.communicate()
        except TimeoutError:
            process.kill()
            raise AssertionError("the service started") from None
        return process.returncode, stderr.decode()

    async def _run(self, *command: str) -> None:
        process = await asyncio.create_subprocess_exec(_program("nsenter"), *self._inside(*command))
        assert await process.wait() == 0, command

    def _inside(self, *command: str, cwd: Path | None = None) -> Sequence[str]:
        return ("--target", str(self._keeper), *_ENTERED, f"--wd={cwd or Path.cwd()}", *command)


@contextlib.asynccontextmanager
async def small_disk(folder: Path, *, megabytes: int) -> AsyncIterator[Disk]:
    """Mount a small disk until the block ends."""
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
        line = await keeper.stdout.readline()
        assert line == b"mounted\n", "a mount namespace is needed: root, or user namespaces"
        yield Disk(keeper.pid, mounted_at)
    finally:
        keeper.stdin.close()  # `cat` exits at the end of its input
        await keeper.wait()


@contextlib.contextmanager
def every_write_failing(running: Service) -> Iterator[None]:
    """Make every write of the process fail, as on a broken disk."""
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
