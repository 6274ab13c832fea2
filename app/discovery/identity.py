"""Changes of identity between two listings: renames, moves and split devices; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime

import msgspec

from app.discovery.registries import DeviceRow, EntityRow, Registries
from app.model import (
    MAX_SECONDS,
    IdentityChange,
    IdentityKind,
    Rename,
    TimeSource,
    moment_at,
    moment_of,
)


def entry_of(row: EntityRow) -> str | None:
    """Return what identifies an entity across renames; None without a unique id."""
    if row.unique_id is None or row.platform is None:
        return None
    domain = row.entity_id.partition(".")[0]
    return msgspec.json.encode((domain, row.platform, str(row.unique_id))).decode()


def followed_renames(
    former: Registries, now: Registries, announced: Sequence[Rename]
) -> tuple[Sequence[Rename], Sequence[Rename]]:
    """Return the renames between two listings, and the announced ones that came after the second.

    Events announce each step of a chain; a rename that no event announced is a single step, with
    the time of its registry row.
    """
    paths = _announced_paths(former, announced)
    before, after = _changed_entities(former, now)
    listed = {entry_of(row): row for row in now.entities} if paths else after
    found, early = list[Rename](), list[Rename]()
    for entry, path in paths.items():
        row = listed.get(entry)
        names = [path[0].former, *(rename.entity_id for rename in path)]
        steps = len(path)
        if row is not None and row.entity_id in names:
            steps -= names[::-1].index(row.entity_id)
        elif row is not None:
            path.append(_missed(names[-1], row, entry))
            steps += 1
        found += path[:steps]
        early += path[steps:]
    for entry, row in after.items():
        was = before.get(entry)
        if was is not None and was.entity_id != row.entity_id and entry not in paths:
            found.append(_missed(was.entity_id, row, entry))
    return found, early


def identity_changes(
    former: Registries,
    now: Registries,
    renames: Iterable[Rename],
    *,
    at: datetime,
    first_seen_ns: Callable[[str], int | None],
) -> Sequence[IdentityChange]:
    """Return all changes of identity between two listings.

    Args:
        former: the listing before.
        now: the listing after.
        renames: the renames between them, in order.
        at: when the second was made: the time of what Home Assistant has no time for.
        first_seen_ns: returns when an entity id last appeared live; None if it did not.
    """
    return [
        *(_renamed(rename, at=at, first_ns=first_seen_ns(rename.entity_id)) for rename in renames),
        *_moved_entities(former, now, at=at),
        *_moved_devices(former, now, at=at),
        *_split_devices(former, now, at=at),
    ]


def _announced_paths(former: Registries, announced: Sequence[Rename]) -> dict[str, list[Rename]]:
    """Return the announced renames of each entity; without those that were listed before."""
    entries = {row.entity_id: entry_of(row) for row in former.entities} if announced else {}
    paths: dict[str, list[Rename]] = {}
    for rename in announced:
        entry = entries.pop(rename.former, None)
        if entry is not None:
            entries[rename.entity_id] = entry
            paths.setdefault(entry, []).append(rename._replace(entry=entry))
    return paths


def _changed_entities(
    former: Registries, now: Registries
) -> tuple[dict[str, EntityRow], dict[str, EntityRow]]:
    """Return the rows that differ, before and after, by what identifies the entity."""
    if former.entities is now.entities:
        return {}, {}
    return _only_in(former, now), _only_in(now, former)


def _only_in(registries: Registries, other: Registries) -> dict[str, EntityRow]:
    rows = {row.entity_id: row for row in other.entities}
    changed = (row for row in registries.entities if rows.get(row.entity_id) != row)
    return {entry: row for row in changed if (entry := entry_of(row)) is not None}


def _missed(former: str, row: EntityRow, entry: str) -> Rename:
    at_s = _seconds(row.modified_at)
    return Rename(former, row.entity_id, is_missed=True, at_s=at_s, entry=entry)


def _renamed(rename: Rename, *, at: datetime, first_ns: int | None) -> IdentityChange:
    source: TimeSource = "registry" if rename.is_missed else "event"
    moment = at if rename.at_s is None else moment_at(rename.at_s)
    first = None if first_ns is None or rename.is_missed else moment_of(first_ns)
    return IdentityChange(
        what="entity_id",
        entity_id=rename.entity_id,
        old=rename.former,
        new=rename.entity_id,
        at=moment,
        at_source="discovered" if rename.at_s is None else source,
        first_point=None if first is None or first < moment else first,
        entry=rename.entry,
    )


def _moved_entities(
    former: Registries, now: Registries, *, at: datetime
) -> Iterator[IdentityChange]:
    before, after = _changed_entities(former, now)
    for entry, row in after.items():
        was = before.get(entry)
        if was is None:
            continue
        moment, source = _changed_at(was, row, at=at)
        moves: tuple[tuple[IdentityKind, str | None, str | None], ...] = (
            ("device_id", was.device_id, row.device_id),
            ("area_id", was.area_id, row.area_id),
        )
        for what, old, new in moves:
            if old != new:
                yield IdentityChange(
                    what=what,
                    entity_id=row.entity_id,
                    old=old,
                    new=new,
                    at=moment,
                    at_source=source,
                    entry=entry,
                )


def _moved_devices(
    former: Registries, now: Registries, *, at: datetime
) -> Iterator[IdentityChange]:
    if former.devices is now.devices:
        return
    before = {row.id: row for row in former.devices}
    for row in now.devices:
        was = before.get(row.id)
        if was is not None and was.area_id != row.area_id:
            moment, source = _changed_at(was, row, at=at)
            yield IdentityChange(
                what="area_id",
                device_id=row.id,
                old=was.area_id,
                new=row.area_id,
                at=moment,
                at_source=source,
            )


def _split_devices(
    former: Registries, now: Registries, *, at: datetime
) -> Iterator[IdentityChange]:
    known = {(row.composite_id, split_id) for row in former.splits for split_id in row.split_ids}
    for row in now.splits:
        for split_id in row.split_ids:
            if (row.composite_id, split_id) not in known:
                yield IdentityChange(
                    what="split",
                    device_id=split_id,
                    old=row.composite_id,
                    new=split_id,
                    at=at,
                    at_source="discovered",
                )


def _changed_at(
    was: EntityRow | DeviceRow, row: EntityRow | DeviceRow, *, at: datetime
) -> tuple[datetime, TimeSource]:
    seconds = _seconds(row.modified_at)
    if seconds is None or was.modified_at == row.modified_at:
        return at, "discovered"
    return moment_at(seconds), "registry"


def _seconds(value: object) -> float | None:
    is_time = isinstance(value, int | float) and 0 < value < MAX_SECONDS
    return float(value) if is_time else None  # type: ignore[arg-type]  # it is a number
