"""The entity filter of a world: which rules may be in use, and what they say about each change."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from app.model import Change
from tests.simulation.house import EXCLUDED

RULES: Mapping[str, Mapping[str, Any]] = {
    "nothing": {"patterns": []},
    "unrecorded": {"patterns": [{"entity_id": EXCLUDED}]},
    "power": {"patterns": [{"entity_id": "sensor.office_*"}]},
    "binary": {"patterns": [{"domain": "binary_sensor"}]},
    "only sensors": {"mode": "include", "patterns": [{"domain": "sensor"}]},
}
_READ_AGAIN_S = 60.0
"""How long a running service may use the rules from before a change of the file."""


class FilterTruth:
    """The rules over time, and what the filter was asked about."""

    def __init__(self, name: str) -> None:
        self.wanted = name
        """The rules of the file, or of the setting at the next start."""
        self._history: list[tuple[float, str]] = []
        """From when on rules are certainly in use, if nothing follows."""
        self._passed: set[tuple[str, int]] = set()
        self._excluded: set[tuple[str, int]] = set()
        """Those that were excluded when they came last."""

    @property
    def config(self) -> str:
        """The rules as the service reads them."""
        return json.dumps(RULES[self.wanted])

    def changed(self, now_s: float, *, is_certain: bool) -> None:
        """Note that the wanted rules are in use: at a start at once, in a file after a while."""
        if is_certain:
            self._history.clear()
        self._history.append((now_s if is_certain else now_s + _READ_AGAIN_S, self.wanted))

    def judge(
        self, changes: Sequence[Change], passed: Sequence[Change], now_s: float
    ) -> str | None:
        """Note what the filter said of changes; return what is wrong about it."""
        identities = {(change.entity_id, change.time_ns) for change in passed}
        self._passed |= identities
        for change in changes:
            identity = change.entity_id, change.time_ns
            (self._excluded.discard if identity in identities else self._excluded.add)(identity)
            verdicts = {_passes(name, change.entity_id) for name in self._possible(now_s)}
            if verdicts == {identity not in identities}:
                return f"{identity} passed: {identity in identities}, with {self._possible(now_s)}"
        return None

    def is_left_out(self, identity: tuple[str, int]) -> bool:
        """Whether a change was excluded when it came last.

        It may have passed before, live, in a process that was killed before it was durable.
        """
        return identity in self._excluded

    @property
    def left_out(self) -> set[tuple[str, int]]:
        """Every such change."""
        return self._excluded

    def has_passed(self, identity: tuple[str, int]) -> bool:
        """Whether a change passed, live or read back."""
        return identity in self._passed

    def _possible(self, now_s: float) -> Sequence[str]:
        """Return the rules that may be in use."""
        certain = [number for number, (at_s, _) in enumerate(self._history) if at_s <= now_s]
        return [name for _, name in self._history[certain[-1] if certain else 0 :]]


def _passes(name: str, entity_id: str) -> bool:
    rules, domain = RULES[name], entity_id.partition(".")[0]
    matches = any(
        fnmatchcase(entity_id, pattern.get("entity_id", "")) or pattern.get("domain") == domain
        for pattern in rules["patterns"]
    )
    return matches == (rules.get("mode") == "include")
