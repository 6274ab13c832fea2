"""A network namespace in which this machine has a second address that is not loopback.

The service may listen on all addresses there: it is unreachable from outside the namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from tests.service.process import Service, service

ADDRESS = "10.98.76.54"
"""To the service, a request from this address comes from another machine."""

_IS_ROOT = os.geteuid() == 0
_NAMESPACE = ("--net",) if _IS_ROOT else ("--map-root-user", "--net")
_ENTERED = ("--net",) if _IS_ROOT else ("--user", "--preserve-credentials", "--net")

# https://man7.org/linux/man-pages/man7/netdevice.7.html
_ENTER = """
import fcntl, os, socket, struct, sys
SIOCSIFFLAGS, SIOCSIFADDR, IFF_UP = 0x8914, 0x8916, 1
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    for name, address in ((b"lo", "127.0.0.1"), (b"lo:1", sys.argv[1])):
        place = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))
        fcntl.ioctl(control, SIOCSIFADDR, struct.pack("16s16s8x", name, place))
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH22x", name, IFF_UP))
os.execv(sys.executable, [sys.executable, "-m", "app", "run"])
"""
_ASK = """
import http.client, json, sys
connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=10)
connection.request("GET", sys.argv[3], headers=json.loads(sys.argv[4]))
print(connection.getresponse().status)
"""


@contextlib.asynccontextmanager
async def served_apart(folder: Path, environment: Mapping[str, str]) -> AsyncIterator[Service]:
    """Start the service in its own network namespace."""
    async with service(
        folder,
        environment,
        python=_program("unshare"),
        command=(*_NAMESPACE, sys.executable, "-c", _ENTER, ADDRESS),
    ) as running:
        yield running


async def status_from_elsewhere(
    running: Service, path: str, headers: Mapping[str, str] | None = None
) -> int:
    """Send a request from that address and return the status of the response."""
    port = running.url.rpartition(":")[2]
    process = await asyncio.create_subprocess_exec(
        _program("nsenter"),
        *("--target", str(running.process.pid), *_ENTERED, sys.executable, "-c", _ASK),
        *(ADDRESS, port, path, json.dumps(dict(headers or {}))),
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        answer, _ = await process.communicate()
    return int(answer)


def _program(name: str) -> str:
    path = shutil.which(name)
    assert path is not None, f"{name} is not installed; it is in Debian's util-linux"
    return path
