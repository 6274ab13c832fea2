"""The user's own code: found by its name in INGEST_TRANSFORMS, and watched while it runs."""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from app.normalize.transforms import Failed, Transform
from app.runtime.errors import SettingsError
from app.runtime.logging import RateLimitedLog
from app.runtime.metrics import Telemetry

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)


def load_transforms(
    names: Sequence[str], *, shared_path: Path | None
) -> list[tuple[str, Transform]]:
    """Import the functions, each named as `module:function`.

    Raises:
        SettingsError: one cannot be imported or called; the message says which and why.
    """
    if shared_path is not None:
        if not _is_folder(shared_path):
            raise SettingsError(
                f"HOMEIQ_SHARED_PATH: {shared_path} is not a folder that can be read"
            )
        folder = str(shared_path.resolve())
        if folder not in sys.path:
            sys.path.append(folder)  # at the end: no file there may stand in for one of ours
    return [(name, _function(name)) for name in names]


def reporting(telemetry: Telemetry) -> Failed:
    """Return what counts a failure and tells it, the first of each transform with its traceback."""

    def failed(name: str, exc: Exception) -> None:
        telemetry.transform_failed(name)
        limited_log.error(
            "The transform %s failed, its event passes unchanged: %s: %s",
            name,
            type(exc).__name__,
            exc,
            kind=name,
            exc_info=exc,
        )

    return failed


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a folder above it may not be entered
        return False


def _function(name: str) -> Transform:
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise _unusable(name, "is not of the form module:function")
    try:
        function: object = getattr(importlib.import_module(module_name), function_name)
    except Exception as exc:  # the user's module may raise anything
        raise _unusable(name, f"{type(exc).__name__}: {exc}") from exc
    if not callable(function):
        raise _unusable(name, "is not a function")
    if inspect.iscoroutinefunction(function):
        raise _unusable(name, "is async, and nothing may wait where events pass")
    return cast("Transform", function)  # what it returns is checked at each call


def _unusable(name: str, why: str) -> SettingsError:
    return SettingsError(
        f"INGEST_TRANSFORMS: {name!r}: {why}. Name functions as module:function, from a module in"
        " HOMEIQ_SHARED_PATH"
    )
