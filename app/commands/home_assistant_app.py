"""`python -m app home-assistant-app`: the service as a Home Assistant app (formerly add-on).

The Supervisor starts it as root, with the app's options in `options.json` and a token for its
proxy to Home Assistant in SUPERVISOR_TOKEN. https://developers.home-assistant.io/docs/apps

The files of a running service are in `live`, which backups leave out: a database that is being
written cannot be copied file by file. While it is stopped, and in a backup, they are in `stored`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

from app.runtime.addresses import mqtt_url
from app.runtime.environment import UnusableFile, read_text
from app.runtime.errors import SettingsError
from app.runtime.sqlite import copy, owned_folder, sync_folder, translated_errors

LIVE, STORED = "live", "stored"
INGRESS_PEER = "172.30.32.2"
"""The Supervisor's address in the network of the apps, from which ingress connects."""
USER_ID = 10001
"""The user and group that the service runs as; docker/Dockerfile creates them."""

_UNFINISHED = "stored.new"
_MAX_OPTIONS_BYTES = 1_048_576
_ALWAYS = {
    "HOME_ASSISTANT_URL": "ws://supervisor/core/websocket",
    "HEALTH_IN_HOME_ASSISTANT": "auto",
    "WEBSOCKET_INGESTION_HOST": "0.0.0.0",  # noqa: S104 - ingress connects from another container
}
MQTT_SERVICE_URL = "http://supervisor/services/mqtt"
"""Where the Supervisor names the broker of an installed app."""
_SUPERVISOR_TIMEOUT_S = 5.0
_NO_BROKER: Mapping[str, str] = {}
_VARIABLE = re.compile(r"[^=\0]+")
_COPIED_FIRST = "journal.db"
_NOT_COPIED = re.compile(r"lock|.*-(wal|shm|journal)|.*\.log(\.\d+)?|.*\.new")
"""Log files, and what belongs to a database that is open."""


def environment(
    options: Mapping[str, Any], *, token: str, data: Path, broker: Mapping[str, str] = _NO_BROKER
) -> dict[str, str]:
    """Return the variables for the app's options; `broker` are those of the Supervisor's broker.

    An option is the variable of its name in lower case; `environment` is a list of others, each
    with `name` and `value`. They override what the app sets by itself, except for who is trusted
    and where the files are.

    Raises:
        SettingsError: an option cannot be used.
    """
    chosen = {**_ALWAYS, "HOME_ASSISTANT_TOKEN": token}
    extra = options.get("environment") or []
    for name, value in options.items():
        if name != "environment":
            chosen[name.upper()] = _text(name, value)
    if not isinstance(extra, list):
        raise SettingsError("environment: must be a list of names and values")
    for each in extra:
        if not isinstance(each, dict) or not isinstance(each.get("name"), str):
            raise SettingsError("environment: each entry needs a name and a value")
        chosen[each["name"].upper()] = _text(each["name"], each.get("value"))
    for name, value in chosen.items():
        if not _VARIABLE.fullmatch(name) or not _is_possible(value):
            raise SettingsError(f"{name!r}: no variable can have this name or value")
    if "MQTT_URL" not in chosen:
        chosen = {**broker, **chosen}
    return chosen | {"INGRESS_PEERS": INGRESS_PEER, "DATA_DIR": str(data / LIVE)}


def _text(name: str, value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case str() | int() | float():
            return str(value)
    raise SettingsError(f"{name}: must be a text, a number, or true or false")


def _is_possible(value: str) -> bool:
    """Whether a variable can have the value: no NUL, and nothing that UTF-8 cannot encode."""
    return "\0" not in value and value.encode(errors="ignore").decode() == value


def prepare(data: Path) -> None:
    """Read the options into this process's environment, and become an unprivileged user.

    Raises:
        SettingsError: the options, or the token, are missing or cannot be used.
        StorageError: the folder cannot be used.
    """
    token = os.environ.get("SUPERVISOR_TOKEN")
    if not token:
        raise SettingsError(
            "SUPERVISOR_TOKEN is not set: this command is for Home Assistant's Supervisor. Use"
            " `python -m app run`"
        )
    options, broker = _options(data / "options.json"), _broker(token)
    os.environ.update(environment(options, token=token, data=data, broker=broker))
    with translated_errors():
        _own(data)
    become_user()
    with translated_errors():
        bring_live(data)


def _broker(token: str) -> Mapping[str, str]:
    """Return the variables of the MQTT broker that an app provides; none without one.

    https://developers.home-assistant.io/docs/api/supervisor/endpoints#service
    """
    request = Request(MQTT_SERVICE_URL, headers={"Authorization": f"Bearer {token}"})
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(request, timeout=_SUPERVISOR_TIMEOUT_S) as response:
            answer = json.loads(response.read(_MAX_OPTIONS_BYTES))
    except (OSError, HTTPException, ValueError):
        return {}
    return broker_variables(answer)


def broker_variables(answer: object) -> dict[str, str]:
    """Return the variables for the Supervisor's answer; none if it names no usable broker."""
    match answer:
        case {"data": {"host": str() as host, "port": int() | str() as port, **others}}:
            scheme = "mqtts" if others.get("ssl") else "mqtt"
            with contextlib.suppress(ValueError):
                return {
                    "MQTT_URL": mqtt_url(f"{scheme}://{host}:{port}"),
                    "MQTT_USERNAME": str(others.get("username") or ""),
                    "MQTT_PASSWORD": str(others.get("password") or ""),
                }
    return {}


def _options(file: Path) -> Mapping[str, Any]:
    try:
        options = json.loads(read_text(file, max_bytes=_MAX_OPTIONS_BYTES))
    except FileNotFoundError:
        return {}
    except (UnusableFile, ValueError) as exc:
        raise SettingsError(f"{file}: cannot be read ({exc})") from exc
    if not isinstance(options, dict):
        raise SettingsError(f"{file}: must be a JSON object")
    return options


def _own(data: Path) -> None:
    """Give the folder to the service's user; the Supervisor created and restores it as root."""
    if os.getuid() != 0:
        return
    data.mkdir(parents=True, exist_ok=True)
    for path in (data, *data.rglob("*")):
        # What the Supervisor wrote itself may contain secrets and stays its own.
        if path.name != "options.json" and path.lstat().st_uid != USER_ID:
            os.lchown(path, USER_ID, USER_ID)


def become_user() -> None:
    """Become the service's user, who owns the folder; nothing without root."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(USER_ID)
        os.setuid(USER_ID)


def bring_live(data: Path) -> None:
    """Move the files of a stopped service, or of a restored backup, to where it runs.

    Files that are there already are newer: the service was killed, perhaps during a backup.
    """
    live, stored = data / LIVE, data / STORED
    _remove(data / _UNFINISHED)
    if live.exists():
        _remove(stored)
    elif stored.exists():
        stored.rename(live)
        sync_folder(data)


def set_aside(data: Path) -> None:
    """Move the files of a service that has stopped to where backups find them.

    Raises:
        StorageLocked: another process uses them.
        StorageError: they cannot be moved.
    """
    live, stored = data / LIVE, data / STORED
    if live.exists():
        with owned_folder(live), translated_errors():
            _remove(stored)
            live.rename(stored)
            sync_folder(data)


def store_copy(data: Path) -> None:
    """Copy the files of the running service to where backups find them.

    Each database is copied in one read transaction, the journal first: whatever it no longer
    holds was in the other files before they were copied.

    Raises:
        StorageError: a file cannot be read, or the disk is full; there is no copy then.
    """
    live, unfinished, stored = data / LIVE, data / _UNFINISHED, data / STORED
    with translated_errors():
        if not live.exists():
            return
        _remove(unfinished)
        unfinished.mkdir(mode=0o700)
        try:
            for file in sorted(live.iterdir(), key=lambda file: file.name != _COPIED_FIRST):
                _copy(file, unfinished / file.name)
        except BaseException:
            _remove(unfinished)
            raise
        _remove(stored)
        unfinished.rename(stored)


def remove_copy(data: Path) -> None:
    """Remove the copy of a running service when the backup has it."""
    with translated_errors():
        if (data / LIVE).exists():
            _remove(data / STORED)


def _copy(file: Path, target: Path) -> None:
    if file.suffix == ".db":
        copy(file, target)
    elif file.is_file() and not _NOT_COPIED.fullmatch(file.name):
        shutil.copy2(file, target)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
