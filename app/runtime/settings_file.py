"""DATA_DIR/settings.json: the settings that were made in the browser."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from app.runtime.environment import UnusableFile, read_text
from app.runtime.errors import SettingsError
from app.runtime.sqlite import make_folder, sync_folder

SETTINGS_FILE = "settings.json"

_VERSION = 1
_MAX_BYTES = 1_048_576
_ADVICE = "Correct it, restore it from a backup, or remove it to set up the service again"


def read_settings(file: Path, *, allowed: Collection[str]) -> Mapping[str, str]:
    """Return the text of each setting in the file, by name; nothing when there is no file.

    Raises:
        SettingsError: the file cannot be used as it is; it is left alone.
    """
    # The first does not raise where a folder above cannot be entered.
    if not (os.access(file.parent, os.X_OK) and file.parent.is_dir()):
        return {}  # the start reports an unusable folder by its own name
    try:
        text = read_text(file, max_bytes=_MAX_BYTES)
    except FileNotFoundError:
        return {}
    except UnusableFile as exc:
        raise SettingsError(f"{file}: {exc}. {_ADVICE}") from exc
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    match document:
        case {"version": 1, "settings": dict() as settings, **others} if not others:
            return _checked(file, settings, allowed)
        case {"version": int() as version} if version > _VERSION:
            raise SettingsError(
                f"{file}: is of a newer version of this service. Install that version, or remove"
                " the file to set up the service again"
            )
    raise SettingsError(f"{file}: is damaged or was not written by this service. {_ADVICE}")


def _checked(
    file: Path, settings: Mapping[str, object], allowed: Collection[str]
) -> Mapping[str, str]:
    found = {}
    for name, value in settings.items():
        if name not in allowed:
            raise SettingsError(f"{file}: {name!r} is no setting that it may have. {_ADVICE}")
        if not isinstance(value, str):
            raise SettingsError(f"{file}: the value of {name} is not a text. {_ADVICE}")
        found[name] = value
    return found


def write_settings(file: Path, settings: Mapping[str, str]) -> None:
    """Replace the file, readable by its owner only; durable when this returns.

    Raises:
        OSError: it cannot be written, and is as before.
    """
    make_folder(file.parent)
    text = json.dumps({"version": _VERSION, "settings": dict(settings)}, indent=2) + "\n"
    unfinished = file.with_name(f"{file.name}.new")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(descriptor)
    unfinished.replace(file)
    sync_folder(file.parent)
