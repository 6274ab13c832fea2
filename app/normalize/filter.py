"""The entity filter in use: from a setting, or from a file that is read again when it changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self, TypeAlias

from app.model import Change
from app.normalize.filter_rules import Filter, Rules, read_rules
from app.runtime.environment import UnusableFile, read_text
from app.runtime.errors import FilterInvalid, SettingsError
from app.runtime.logging import RateLimitedLog
from app.runtime.retry import contained
from app.runtime.time import utc_now

_Stamp: TypeAlias = tuple[int, int, int]

_MAX_FILE_BYTES = 16_777_216

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterStatus:
    """The rules in use, and what the filter has done since the start."""

    source: str
    """The setting, or the file, that holds the rules."""
    rules: Rules
    loaded_at: datetime
    passed: int
    filtered: int
    matched: Sequence[int]
    """How many changes each pattern decided with these rules, then each exception."""
    problem: str | None
    """Why the current content of the file is not in use."""


class EntityFilter:
    """Selects changes by the current rules, and counts."""

    def __init__(self, rules: Rules, *, source: str, file: Path | None, poll_s: float) -> None:
        self._filter = Filter(rules)
        self._source = source
        self._file = file
        self._poll_s = poll_s
        self._in_use: _Stamp | None = None
        """The state of the file when it was last read."""
        self._loaded_at = utc_now()
        self._passed = 0
        self._filtered = 0
        self._problem: str | None = None

    @classmethod
    def of_text(cls, text: str) -> Self:
        """Return the filter in a setting.

        Raises:
            FilterInvalid: it cannot be used.
        """
        return cls(read_rules(text), source="ENTITY_FILTER_CONFIG", file=None, poll_s=0.0)

    @classmethod
    def of_file(cls, file: Path, *, poll_s: float = 1.0) -> Self:
        """Return the filter in a file, which `run` checks every `poll_s` seconds.

        Raises:
            FilterInvalid: it cannot be read or used.
        """
        stamp = _stamp(file)
        entity_filter = cls(read_rules(_content(file)), source=str(file), file=file, poll_s=poll_s)
        entity_filter._in_use = stamp
        return entity_filter

    def passes(self, change: Change) -> bool:
        """Whether a change passes; nothing is counted."""
        return self._filter.passes(change)

    def selected(self, changes: Sequence[Change]) -> list[Change]:
        """Return the changes that pass, in order."""
        passed = self._filter.selected(changes)
        self._passed += len(passed)
        self._filtered += len(changes) - len(passed)
        return passed

    def status(self) -> FilterStatus:
        """Return the rules in use and the counts."""
        return FilterStatus(
            source=self._source,
            rules=self._filter.rules,
            loaded_at=self._loaded_at,
            passed=self._passed,
            filtered=self._filtered,
            matched=tuple(self._filter.matched),
            problem=self._problem,
        )

    @property
    def reason(self) -> str | None:
        """Return a sentence while the current content of the file is not in use, else None."""
        if self._problem is None:
            return None
        return (
            f"The entity filter in {self._source} cannot be used, the one before stays:"
            f" {self._problem}. Fix the file."
        )

    async def run(self) -> None:
        """Reload the file whenever it has changed, forever."""
        assert self._file is not None, "only a file can change"
        seen = self._in_use
        while True:
            await asyncio.sleep(self._poll_s)
            stamp = await asyncio.to_thread(_stamp, self._file)
            # Only once it is stable: an editor may still be writing it.
            if stamp != self._in_use and stamp == seen:
                self._in_use = stamp
                await self._reload(self._file)
            seen = stamp

    async def _reload(self, file: Path) -> None:
        try:
            with contained("reading the entity filter", error=FilterInvalid):
                rules = read_rules(await asyncio.to_thread(_content, file))
                new = Filter(rules)
        except FilterInvalid as exc:
            self._problem = str(exc)
            limited_log.error("%s", self.reason, kind=str(exc))
            return
        self._filter = new
        self._loaded_at = utc_now()
        self._problem = None
        limited_log.info("The entity filter was read again from %s", file)


def load_filter(text: str | None, file: Path | None) -> EntityFilter | None:
    """Return the filter of the settings, None without one; the text wins over the file.

    Raises:
        SettingsError: it cannot be read or used.
    """
    name = "ENTITY_FILTER_CONFIG" if text is not None else "ENTITY_FILTER_CONFIG_FILE"
    try:
        if text is not None:
            return EntityFilter.of_text(text)
        return None if file is None else EntityFilter.of_file(file)
    except FilterInvalid as exc:
        raise SettingsError(f"{name}: {exc}. See docs/FILTER.md") from exc


def _content(file: Path) -> str:
    try:
        return read_text(file, max_bytes=_MAX_FILE_BYTES)
    except FileNotFoundError as exc:
        raise FilterInvalid(f"cannot be read: {exc.strerror}") from exc
    except UnusableFile as exc:
        raise FilterInvalid(f"cannot be used: it {exc}") from exc


def _stamp(file: Path) -> _Stamp | None:
    """Return values that change with the file; None while it does not exist."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
