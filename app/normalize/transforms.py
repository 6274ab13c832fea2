"""Functions of the user's that every change passes through: found by name, checked at each call."""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias, cast

import msgspec

from app.model import Change
from app.runtime.errors import SettingsError
from app.runtime.logging import RateLimitedLog
from app.runtime.metrics import Telemetry

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

Transform: TypeAlias = Callable[[Change], Change | None]
"""Returns the change, another in its place, or None to leave it out."""


class Transforms:
    """Calls each transform with each change, in the order of the setting."""

    def __init__(
        self, transforms: Sequence[tuple[str, Transform]], *, telemetry: Telemetry
    ) -> None:
        """Store the functions with their names; `telemetry` counts the calls that fail."""
        self._transforms = tuple(transforms)
        self._telemetry = telemetry

    def apply(self, changes: Sequence[Change]) -> list[Change]:
        """Return the transformed changes, in order; one that a transform fails on is unchanged."""
        for name, transform in self._transforms:
            results = [self._result(name, transform, change) for change in changes]
            changes = [change for change in results if change is not None]
        return list(changes)

    def _result(self, name: str, transform: Transform, change: Change) -> Change | None:
        try:
            result = transform(change)
            if result is not None and result is not change:
                _check(change, result)
                if result.attributes is not change.attributes:
                    result = msgspec.structs.replace(result, all_attributes=None)
        except Exception as exc:  # noqa: BLE001 - a foreign boundary: failures are counted
            self._telemetry.transform_failed(name)
            limited_log.error(
                "The transform %s failed, its event passes unchanged: %s: %s",
                name,
                type(exc).__name__,
                exc,
                kind=name,
                exc_info=exc,
            )
            return change
        return result


def _check(before: Change, after: object) -> None:
    """Check that a result is a point of the same change.

    Raises:
        ValueError, TypeError: what is wrong with it.
    """
    if not isinstance(after, Change):
        raise TypeError(f"it returned {type(after).__name__}, not a Change or None")
    if (after.entity_id, after.time_ns) != (before.entity_id, before.time_ns):
        raise ValueError("it changed entity_id or time_ns, which say which change this is")
    msgspec.convert(msgspec.structs.asdict(after), Change)
    if after.attributes is not before.attributes:
        msgspec.json.decode(after.attributes, type=dict[str, msgspec.Raw])


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
            sys.path.append(folder)  # at the end, so that no file there shadows one of ours
    return [(name, _function(name)) for name in names]


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
