"""What the simulated home remembers of itself, as Home Assistant's recorder would.

Rows lie in pages of an hour. Saving writes only the pages that grew, each with one atomic
replacement, so that a house that runs for days rewrites no more than its current hour.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import cast

import msgspec

from app.model import EPOCH
from simulator.fake_home_assistant import JsonObject, state_row

logger = logging.getLogger(__name__)

_MICROSECOND = timedelta(microseconds=1)
_HOUR_US = 3_600_000_000


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One recorded state; attributes are shared within its page, as they rarely change."""

    entity_id: str
    state: str
    attributes: int
    changed_us: int
    updated_us: int


class Page(msgspec.Struct):
    """One hour of records, oldest first."""

    attributes: list[JsonObject] = []
    records: list[Record] = []


class History:
    """The newest rows of a house, bounded in number and in hours, kept in a folder."""

    def __init__(self, folder: Path, *, max_rows: int = 100_000, max_hours: int = 24) -> None:
        self._folder = folder
        self._max_rows = max_rows
        self._max_hours = max_hours
        self._pages: dict[int, Page] = {}
        self._rows = 0
        self._unsaved: set[int] = set()
        self._numbers: dict[bytes, int] = {}
        """Where in the newest page each attributes object stands, by its JSON."""

    def __len__(self) -> int:
        """Return how many rows there are."""
        return self._rows

    def add(self, row: JsonObject, *, changed_us: int, updated_us: int) -> None:
        """Remember one row of `state_row`; `updated_us` never goes backwards."""
        hour = updated_us // _HOUR_US
        page = self._pages.get(hour)
        if page is None:
            page = self._pages[hour] = Page()
            self._numbers.clear()
        attributes = cast("JsonObject", row["attributes"])
        number = self._numbers.setdefault(msgspec.json.encode(attributes), len(page.attributes))
        if number == len(page.attributes):
            page.attributes.append(attributes)
        page.records.append(
            Record(str(row["entity_id"]), str(row["state"]), number, changed_us, updated_us)
        )
        self._rows += 1
        self._unsaved.add(hour)
        self._forget()

    def between(
        self, start: datetime, end: datetime, entity_ids: Sequence[str]
    ) -> Mapping[str, Sequence[JsonObject]]:
        """Return the rows with `start < last_updated < end` of these entities, oldest first."""
        start_us, end_us = microseconds(start), microseconds(end)
        rows: dict[str, list[JsonObject]] = {entity_id: [] for entity_id in entity_ids}
        for hour, page in self._pages.items():
            if not start_us // _HOUR_US <= hour <= end_us // _HOUR_US:
                continue
            for record in page.records:
                if record.entity_id in rows and start_us < record.updated_us < end_us:
                    rows[record.entity_id].append(_row(record, page))
        return {entity_id: found for entity_id, found in rows.items() if found}

    def save(self) -> None:
        """Write what was added since the last time, and remove what was forgotten."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for hour in self._unsaved & self._pages.keys():
            replace(self._file(hour), self._pages[hour])
        self._unsaved.clear()
        for hour, file in self._files():
            if hour not in self._pages:
                file.unlink()

    def load(self) -> None:
        """Read back what was saved; an unreadable page is left out, and said so."""
        for hour, file in self._files():
            try:
                page = msgspec.json.decode(file.read_bytes(), type=Page)
            except (OSError, msgspec.MsgspecError) as exc:
                logger.warning("Left out %s of the demo's history: %s", file, exc)
                continue
            self._pages[hour] = page
            self._rows += len(page.records)
            self._numbers = {
                msgspec.json.encode(attributes): number
                for number, attributes in enumerate(page.attributes)
            }
        self._forget()

    def _forget(self) -> None:
        while self._rows > self._max_rows or len(self._pages) > self._max_hours:
            oldest = next(iter(self._pages))
            if len(self._pages) == 1:
                kept = self._pages[oldest].records[-self._max_rows // 2 :]
                self._rows = len(kept)
                self._pages[oldest].records = kept
                return
            self._rows -= len(self._pages.pop(oldest).records)

    def _file(self, hour: int) -> Path:
        return self._folder / f"{hour}.json"

    def _files(self) -> list[tuple[int, Path]]:
        return sorted(
            (int(file.stem), file) for file in self._folder.glob("*.json") if file.stem.isdecimal()
        )


def microseconds(moment: datetime) -> int:
    """Return whole microseconds since the epoch."""
    return (moment - EPOCH) // _MICROSECOND


def moment_of(time_us: int) -> datetime:
    """Return the moment that many microseconds after the epoch."""
    return EPOCH + time_us * _MICROSECOND


def replace(file: Path, content: object) -> None:
    """Write a JSON file so that a reader finds the old content or the new, whole."""
    fresh = file.with_suffix(".new")
    # No fsync: a power cut may cost a demo its last minute.
    fresh.write_bytes(msgspec.json.encode(content))
    fresh.replace(file)


def _row(record: Record, page: Page) -> JsonObject:
    return state_row(
        record.entity_id,
        record.state,
        page.attributes[record.attributes],
        at=moment_of(record.updated_us),
        changed_at=moment_of(record.changed_us),
    )
