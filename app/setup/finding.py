"""Finds Home Assistant by the names it usually has, and databases that run as apps beside ours."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import httpx

from app.runtime.threads import in_thread

SUPERVISOR = "http://supervisor"
HOME_ASSISTANTS = (
    ("http://homeassistant.local:8123", "name"),
    ("http://homeassistant:8123", "name"),
    ("http://host.docker.internal:8123", "this machine"),
    ("http://127.0.0.1:8123", "this machine"),
)
# https://github.com/hassio-addons/repository
_APPS = (
    ("a0d7b954_influxdb", "influxdb1", 8086),
    ("a0d7b954_victoriametrics", "victoriametrics", 8428),
)
_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class FoundServer:
    """A server that answers."""

    url: str
    found_by: str
    kind: str | None = None
    """Of a database."""


async def find_home_assistant(
    candidates: Sequence[tuple[str, str]],
) -> list[FoundServer]:
    """Return the addresses at which a Home Assistant answers."""
    found = await asyncio.gather(*(_is_home_assistant(url) for url, _ in candidates))
    return [
        FoundServer(url, found_by)
        for (url, found_by), is_there in zip(candidates, found, strict=True)
        if is_there
    ]


async def find_databases(token: str | None) -> list[FoundServer]:
    """Return the databases that run as apps; `token` is the Supervisor's, if there is one."""
    if token is None:
        return []
    headers = {"Authorization": f"Bearer {token}"}
    # The role `default` may only read /info of an app whose name it knows.
    answers = await asyncio.gather(
        *(_json(f"{SUPERVISOR}/addons/{slug}/info", headers) for slug, _, _ in _APPS)
    )
    found = []
    for answer, (_, kind, port) in zip(answers, _APPS, strict=True):
        match answer:
            case {"data": {"state": "started", "hostname": str() as host}}:
                found.append(FoundServer(f"http://{host}:{port}", "Supervisor", kind))
    return found


async def _is_home_assistant(url: str) -> bool:
    match await _json(f"{url}/manifest.json"):
        case {"name": "Home Assistant"}:
            return True
        case _:
            return False


async def _json(url: str, headers: dict[str, str] | None = None) -> object:
    """Return what a server answers, None without an answer.

    A name that no server knows blocks a thread for longer than the time limit.
    """
    ask = partial(httpx.get, url, headers=headers, timeout=_TIMEOUT_S, trust_env=False)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return (await in_thread(ask)).json()
    except (httpx.HTTPError, TimeoutError, ValueError):
        return None
