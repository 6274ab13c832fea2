"""Checks of this machine: the folder, its disk, the port, and the files in the settings."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from app.commands.service_api import address_of
from app.container import Container
from app.doctor import checks
from app.doctor.checks import Disk, Port
from app.doctor.findings import Finding, failed, not_tried, ok
from app.runtime.errors import SettingsError
from app.runtime.threads import in_thread

if TYPE_CHECKING:
    from app.settings import Settings

DISK = ("data_dir", "disk_space", "fsync")
PORT = ("port",)
FILES = ("entity_filter", "transforms", "schema")

_FSYNCS = 7
_BLOCK = b"\0" * 4096
_JOURNAL_FILES = ("journal.db", "journal.db-wal")
_SERVICE = "websocket-ingestion"
_HEALTH_S = 3.0


async def disk(chosen: Settings) -> AsyncGenerator[Finding, None]:
    """Yield the findings about DATA_DIR, in the order of DISK."""
    reading = await in_thread(partial(read_disk, chosen.journal.data_dir))
    yield checks.data_dir(reading)
    if reading.problem is not None:
        return
    if chosen.journal.kind == "memory":
        why = "JOURNAL=memory keeps no journal on disk"
        yield not_tried("disk_space", why)
        yield not_tried("fsync", why)
        return
    yield checks.disk_space(
        reading, max_mb=chosen.journal.max_mb, min_free_mb=chosen.journal.min_free_mb
    )
    yield checks.fsync(reading)


def read_disk(folder: Path) -> Disk:
    """Write and delete a small file in the folder, or where it would be created; blocks."""
    try:
        there = _nearest(folder.absolute())
        journal = [folder / name for name in _JOURNAL_FILES if (folder / name).exists()]
    except OSError as exc:  # a folder above it may not be entered
        return Disk(folder=str(folder), is_there=False, problem=exc.strerror or type(exc).__name__)
    try:
        return Disk(
            folder=str(there),
            is_there=there == folder.absolute(),
            free_bytes=shutil.disk_usage(there).free,
            journal_bytes=sum(file.stat().st_size for file in journal),
            fsync_ms=_timed_fsyncs(there),
        )
    except OSError as exc:
        why = exc.strerror or type(exc).__name__
        return Disk(folder=str(there), is_there=there == folder.absolute(), problem=why)


def _nearest(folder: Path) -> Path:
    """Return the folder, or the nearest above it that exists."""
    return next(each for each in (folder, *folder.parents) if each.exists())


def _timed_fsyncs(folder: Path) -> list[float]:
    took_ms = []
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-", buffering=0) as file:
        for _ in range(_FSYNCS):
            file.write(_BLOCK)
            begun = time.perf_counter()
            os.fsync(file.fileno())
            took_ms.append(1000 * (time.perf_counter() - begun))
    return took_ms


async def port(chosen: Settings) -> AsyncGenerator[Finding, None]:
    """Yield whether the service can listen."""
    host, number = chosen.serving.host, chosen.serving.port
    if number == 0:
        yield ok("port", "Each start takes a free port (WEBSOCKET_INGESTION_PORT=0).")
        return
    yield checks.port(await _read_port(host, number, url=address_of(chosen)))


async def _read_port(host: str, number: int, *, url: str) -> Port:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            # Bound but not listening: another program can still take the port.
            candidate.bind((host, number))
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                return Port(state="refused", address=url, detail=exc.strerror or str(exc))
        except TypeError:
            return Port(state="refused", address=url, detail="that is not a host name")
        else:
            return Port(state="free", address=url)
    status = await _status_of(url)
    if status is None:
        return Port(state="foreign", address=url)
    return Port(state="ours", address=url, detail=status)


async def _status_of(url: str) -> str | None:
    """Return the status of our own service; None when something else answers."""
    try:
        async with httpx.AsyncClient(timeout=_HEALTH_S, trust_env=False) as client:
            document = (await client.get(f"{url}/health")).json()
    except (httpx.HTTPError, ValueError):
        return None
    match document:
        case {"service": service, "status": str() as status} if service == _SERVICE:
            return status
        case _:
            return None


async def files(chosen: Settings) -> AsyncGenerator[Finding, None]:
    """Yield whether the files that the settings name can be loaded."""
    loads = (_filter, _transforms, _schema)
    for name, load in zip(FILES, loads, strict=True):
        try:
            yield ok(name, await in_thread(partial(load, chosen)))
        except SettingsError as exc:
            yield failed(name, f"{exc}.", "Fix it: the service does not start like this.")


def _filter(chosen: Settings) -> str:
    entity_filter = Container(settings=chosen).entity_filter()
    if entity_filter is None:
        return "None is set: every change is stored."
    status = entity_filter.status()
    rules = len(status.rules.patterns) + len(status.rules.exceptions)
    return f"{status.source} can be used: mode {status.rules.mode}, {rules} rules."


def _transforms(chosen: Settings) -> str:
    names = chosen.extensions.transforms
    # Keep what the user's modules print during their import out of our output.
    with contextlib.redirect_stdout(sys.stderr):
        Container(settings=chosen).transforms()
    return f"Loaded: {', '.join(names)}." if names else "None is set."


def _schema(chosen: Settings) -> str:
    if not chosen.influx.is_home_assistant_schema:
        return "homeiq: no options are needed."
    options, _ = Container(settings=chosen).schema_options()
    changed = ", ".join(sorted(options.model_fields_set)) or "Home Assistant's defaults"
    return f"home_assistant, in the text of its client {chosen.influx.client}: {changed}."
