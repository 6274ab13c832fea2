"""Functions of the user's that every change passes through; pure, as long as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from app.model import Change

Transform: TypeAlias = Callable[[Change], Change | None]
"""Takes a change and returns it, another in its place, or None to leave it out."""

Failed: TypeAlias = Callable[[str, Exception], None]


class Transforms:
    """Calls each transform with each change, in the order of the setting."""

    def __init__(self, transforms: Sequence[tuple[str, Transform]], *, failed: Failed) -> None:
        """Take the functions by name, and what is told of one that fails."""
        self._transforms = tuple(transforms)
        self._failed = failed

    def apply(self, changes: Sequence[Change]) -> list[Change]:
        """Return what becomes of the changes, in order; one that breaks a transform stays."""
        kept: list[Change] = list(changes)
        for name, transform in self._transforms:
            results = (self._result(name, transform, change) for change in kept)
            kept = [change for change in results if change is not None]
        return kept

    def _result(self, name: str, transform: Transform, change: Change) -> Change | None:
        try:
            result = transform(change)
            if result is not None and result is not change:
                _check(change, result)
        except Exception as exc:  # noqa: BLE001 - a foreign boundary: what fails is counted
            self._failed(name, exc)
            return change
        return result


def _check(before: Change, after: object) -> None:
    """Refuse what would not be a point of the same change.

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
