"""Row-by-row comparison of the recorder's states table with InfluxDB.

The expected points are computed here from the recorder's table alone, by the rules of
docs/SCHEMA.md, without the service's code. A difference is a documented exception (`Rule`) or a
failure.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

from app.model import StoredPoint
from tests.fakes.reference_encoder import number_of

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ABSENT = (None,)
_CLASS_AND_UNIT = ("device_class", "unit_of_measurement")
_FROM_BEFORE = ("previous_state", "duration_in_state_seconds")
_UNAVAILABLE = ("unavailable", "unknown")


Wanted: TypeAlias = dict[str, tuple[object, ...]]
"""The acceptable values of each field and tag, nearly always one; None is absent."""


class Rule(StrEnum):
    """Why a point may differ from the recorder's table."""

    RENAMED = "a rename removes the old entity id, which Home Assistant does not record"
    KILLED = "captured live; Home Assistant was killed before its recorder committed the row"
    UNKNOWABLE = "existed only while nothing was captured, and Home Assistant's logbook omits it"
    NAMED_IN_GAP = "live, without attributes; its class or unit was named in a gap not yet filled"
    FORGOTTEN = (
        "live, without attributes, after a kill; class and unit are stored at each discovery"
    )
    FIRST_KNOWN = "backfilled, and the service knew nothing of the entity before"
    PURGED = "purged by the recorder before it could be read, which its gap mentions"
    PURGED_BEFORE = "backfilled, and the row before it was purged before it could be read"
    NOT_RECORDED = "captured live or from the current states; the recorder was absent"
    CLOCK_SET_TWICE = (
        "missed; Home Assistant's clock was set and set again while nothing was captured"
    )
    CLOCK_SET_BACK = "backfilled from a time that Home Assistant's clock showed twice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the recorder's states table."""

    state_id: int
    old_state_id: int | None
    """The previous state's row; None without one, or just after Home Assistant started."""
    entity_id: str
    state: str | None
    """None when the entity was removed."""
    updated_ns: int
    changed_ns: int
    attributes: Mapping[str, object] = field(default_factory=dict)
    """The attributes that the recorder stores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """The expected point of one row."""

    row: Row
    wanted: Wanted
    inherited_ns: int | None
    """Time of the row whose class or unit is inherited; None if this row has its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Events that the recorder's table does not show, from the log of the test's own actions."""

    renames: Mapping[str, str] = field(default_factory=dict)
    """New entity ids by old entity id."""
    present: Collection[str] = ()
    """Entities that have a state at the end."""
    kills_ns: Sequence[int] = ()
    """Times at which Home Assistant was killed."""
    service_kills_ns: Sequence[int] = ()
    """Times at which the service was killed."""
    exempt: Mapping[tuple[str, int], Rule] = field(default_factory=dict)
    """Rows that may be without a point, and points that may be without a row, with the reason."""
    before_unknown: Collection[tuple[str, int]] = ()
    """Rows that may be read back without what was before: that row had been purged by then."""
    before_doubtful: Collection[tuple[str, int]] = ()
    """Rows that may be read back with another state before: their order is not known."""
    outside: Collection[tuple[str, int]] = ()
    """Rows and points that are not compared."""

    def newest_id(self, entity_id: str) -> str:
        """Return the final id of an entity: the recorder moves its history there."""
        while entity_id in self.renames:
            entity_id = self.renames[entity_id]
        return entity_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One point that differs from the recorder's table."""

    entity_id: str
    time_ns: int
    what: str
    """`missing`, `extra`, `twice`, or the name of the field or tag that differs."""
    expected: object = None
    actual: object = None
    is_backfilled: bool = False

    @property
    def kind(self) -> str:
        """The field that differs, and the kind of point."""
        if self.what == "missing":
            return self.what
        return f"{self.what} ({'backfilled' if self.is_backfilled else 'live'})"

    def __str__(self) -> str:
        values = f"expected {self.expected!r}, is {self.actual!r}"
        return f"{clock(self.time_ns)} {self.entity_id}: {self.kind}: {values}"


@dataclass(slots=True)
class Comparison:
    """The result of a comparison."""

    rows: int = 0
    points: int = 0
    backfilled: int = 0
    explained: Counter[Rule] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)
    unknowable: list[Difference] = field(default_factory=list)
    """Missing rows with an explanation, for manual checks."""

    def add_extra(self, point: StoredPoint, rule: Rule | None) -> None:
        """Count a point without a row."""
        if rule is not None:
            self.explained[rule] += 1
        else:
            state = "removed" if point.fields.get("removed") else point.fields.get("state_value")
            self.differences.append(_difference("extra", point, None, state))

    def add_missing(self, identity: tuple[str, int], row: Row, rule: Rule | None) -> None:
        """Count a row without a point."""
        entity_id, time_ns = identity
        missing = Difference(
            entity_id=entity_id, time_ns=time_ns, what="missing", expected=row.state
        )
        if rule is not None:
            self.explained[rule] += 1
            self.unknowable.append(missing)
        else:
            self.differences.append(missing)

    def add_points(
        self,
        points: Sequence[StoredPoint],
        wanted: Wanted,
        *,
        is_known: bool,
        before_rule: Rule | None,
        names_rule: Rule | None,
    ) -> None:
        """Compare the points of one row, of which there must be exactly one."""
        if len(points) > 1:
            series = [dict(point.tags) for point in points]
            self.differences.append(_difference("twice", points[0], "one series", series))
        for point in points:
            is_backfilled = _is_backfilled(point)
            for name, acceptable in wanted.items():
                actual = (point.tags if name in _CLASS_AND_UNIT else point.fields).get(name)
                if any(_equal(actual, value) for value in acceptable):
                    continue
                is_from_before = name in _FROM_BEFORE and is_backfilled
                is_omitted = is_from_before and actual is None
                if is_omitted and not is_known:
                    self.explained[Rule.FIRST_KNOWN] += 1
                elif before_rule is not None and (
                    is_from_before if before_rule is Rule.CLOCK_SET_BACK else is_omitted
                ):
                    self.explained[before_rule] += 1
                elif name in _CLASS_AND_UNIT and not is_backfilled and names_rule is not None:
                    self.explained[names_rule] += 1
                else:
                    self.differences.append(_difference(name, point, acceptable, actual))

    def counts(self) -> Counter[str]:
        """Return the number of differences of each kind."""
        return Counter(found.kind for found in self.differences)

    def summary(self) -> str:
        """Return a one-paragraph summary."""
        lines = [f"{self.rows:,} rows, {self.points:,} points, {self.backfilled:,} backfilled"]
        lines += [f"{count:,} explained: {rule}" for rule, count in self.explained.items()]
        lines += [f"{count:,} differ: {what}" for what, count in self.counts().most_common()]
        return "\n".join(lines)


def read_rows(database: Path) -> list[Row]:
    """Return every row of the recorder's database, in the order it was written."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        found = connection.execute(
            "SELECT state_id, old_state_id, states_meta.entity_id, state, last_updated_ts,"
            " coalesce(last_changed_ts, last_updated_ts), coalesce(shared_attrs, '{}')"
            " FROM states JOIN states_meta USING (metadata_id)"
            " LEFT JOIN state_attributes USING (attributes_id) ORDER BY state_id"
        ).fetchall()
    return [
        Row(
            state_id=state_id,
            old_state_id=old_state_id,
            entity_id=entity_id,
            state=state,
            updated_ns=_nanoseconds(updated),
            changed_ns=_nanoseconds(changed),
            attributes=json.loads(attributes),
        )
        for state_id, old_state_id, entity_id, state, updated, changed, attributes in found
    ]


def compare(
    rows: Sequence[Row],
    points: Iterable[StoredPoint],
    *,
    since_ns: int,
    until_ns: int,
    history: History,
) -> Comparison:
    """Compare all rows and points of a time range."""
    result = Comparison()
    expected = {
        (history.newest_id(found.row.entity_id), found.row.updated_ns): found
        for found in _expectations(rows)
        if since_ns <= found.row.updated_ns <= until_ns
        and (found.row.entity_id, found.row.updated_ns) not in history.outside
    }
    actual: dict[tuple[str, int], list[StoredPoint]] = defaultdict(list)
    for point in points:
        is_outside = (point.tags["entity_id"], point.time_ns) in history.outside
        if since_ns <= point.time_ns <= until_ns and not is_outside:
            actual[history.newest_id(point.tags["entity_id"]), point.time_ns].append(point)
    result.rows, result.points = len(expected), sum(map(len, actual.values()))
    known: set[str] = set()
    unknowable = _unknowable(
        rows, present={*history.present, *(entity_id for entity_id, _ in actual)}
    )
    unseen = _unseen(expected, actual)
    lost = _lost_by_kills(rows, history)
    for identity in sorted({*expected, *actual}, key=lambda identity: identity[::-1]):
        entity_id, _ = identity
        found = actual.get(identity, [])
        result.backfilled += sum(_is_backfilled(point) for point in found)
        if identity not in expected:
            for point in found:
                rule = history.exempt.get(identity) or _why_extra(point, lost, history)
                result.add_extra(point, rule)
        elif found:
            result.add_points(
                found,
                expected[identity].wanted,
                is_known=entity_id in known,
                before_rule=_why_other_before(identity, history),
                names_rule=_why_other_names(expected[identity], actual, entity_id, history),
            )
        else:
            is_unknowable = entity_id in unknowable or identity in unseen
            rule = Rule.UNKNOWABLE if is_unknowable else history.exempt.get(identity)
            result.add_missing(identity, expected[identity].row, rule)
        known.add(entity_id)
    return result


def _why_other_before(identity: tuple[str, int], history: History) -> Rule | None:
    """Return why a row may be read back with another state before it, or without one."""
    if identity in history.before_doubtful:
        return Rule.CLOCK_SET_BACK
    return Rule.PURGED_BEFORE if identity in history.before_unknown else None


def _why_other_names(
    expected: Expectation,
    actual: Mapping[tuple[str, int], Sequence[StoredPoint]],
    entity_id: str,
    history: History,
) -> Rule | None:
    """Return why a live point may have another class or unit than the row it inherits from."""
    named_ns = expected.inherited_ns
    if named_ns is None:
        return None
    if any(map(_is_backfilled, actual.get((entity_id, named_ns), ()))):
        return Rule.NAMED_IN_GAP
    kills = (named_ns <= kill < expected.row.updated_ns for kill in history.service_kills_ns)
    return Rule.FORGOTTEN if any(kills) else None


def _unseen(
    expected: Mapping[tuple[str, int], Expectation],
    actual: Mapping[tuple[str, int], Sequence[StoredPoint]],
) -> set[tuple[str, int]]:
    """Return the rows of lives that ended before an entity was first captured live.

    The service did not know that entity, even if one with its id exists later.
    """
    unseen: set[tuple[str, int]] = set()
    for lives in _lives(expected).values():
        for number, life in enumerate(lives, 1):
            points = [point for identity in life for point in actual.get(identity, ())]
            if not all(map(_is_backfilled, points)):
                break
            rows = [expected[identity].row for identity in life]
            has_ended = number < len(lives) or rows[-1].state is None
            if not points and has_ended and _is_omitted(rows):
                unseen.update(life)
    return unseen


def _lives(
    expected: Mapping[tuple[str, int], Expectation],
) -> Mapping[str, list[list[tuple[str, int]]]]:
    """Return the lives of each entity, in order.

    A life ends with a removal, or with a restart of Home Assistant, which has no row.
    """
    lives: dict[str, list[list[tuple[str, int]]]] = defaultdict(list)
    for identity in sorted(expected, key=lambda identity: identity[1]):
        of_entity = lives[identity[0]]
        is_removed = bool(of_entity) and expected[of_entity[-1][-1]].row.state is None
        if not of_entity or is_removed or expected[identity].row.old_state_id is None:
            of_entity.append([])
        of_entity[-1].append(identity)
    return lives


def _is_omitted(rows: Sequence[Row]) -> bool:
    """Return whether the logbook omits a whole life: it shows only changes of text states."""
    states = [row for row in rows if row.state is not None]
    return len(states) < 2 or any("unit_of_measurement" in row.attributes for row in states)


def _expectations(rows: Sequence[Row]) -> Iterator[Expectation]:
    """Yield the expected point of each row."""
    by_id = {row.state_id: row for row in rows}
    described: dict[str, _Described] = {}
    # Row ids are in no particular order within one commit of the recorder.
    for row in sorted(rows, key=lambda row: (row.updated_ns, row.state_id)):
        before = None if row.old_state_id is None else by_id.get(row.old_state_id)
        if before is None and row.changed_ns < row.updated_ns:
            # Home Assistant had set this state before its recorder began to listen.
            before = row
        known = described.setdefault(row.entity_id, _Described())
        inherited_ns = known.learn(row)
        wanted = {**_fields(row, before), **known.tags(is_new=before is None)}
        yield Expectation(row=row, wanted=wanted, inherited_ns=inherited_ns)
        if row.state is None:
            described.pop(row.entity_id)


class _Described:
    """Class and unit of one entity, updated row by row."""

    def __init__(self) -> None:
        self._values: dict[str, object] = {}
        self._named_ns: dict[str, int] = {}

    def learn(self, row: Row) -> int | None:
        """Read the next row; return the time of the row whose class or unit it inherits."""
        is_silent = row.state is None or row.state in _UNAVAILABLE
        inherited = [0]
        for name in _CLASS_AND_UNIT:
            own = row.attributes.get(name)
            if own is not None or not is_silent:
                self._values[name], self._named_ns[name] = own, row.updated_ns
            else:
                inherited.append(self._named_ns.get(name, 0))
        return max(inherited) or None

    def tags(self, *, is_new: bool) -> Wanted:
        """Return the acceptable tags."""
        # Without an old state the service has only what it may have cached earlier.
        return {
            name: (self._values.get(name), *(_ABSENT if is_new else ())) for name in _CLASS_AND_UNIT
        }


def _fields(row: Row, before: Row | None) -> Wanted:
    wanted: Wanted = {
        "state_value": (row.state,),
        "value": (None if row.state is None else number_of(row.state),),
        "available": (None if row.state is None else row.state not in _UNAVAILABLE,),
        "removed": (True if row.state is None else None,),
        "previous_state": _ABSENT,
        "duration_in_state_seconds": _ABSENT,
    }
    if before is not None and before.state is not None:
        lasted = timedelta(microseconds=(row.changed_ns - before.changed_ns) // 1_000)
        wanted["previous_state"] = (before.state,)
        wanted["duration_in_state_seconds"] = (max(0.0, lasted.total_seconds()),)
    return wanted


def _equal(actual: object, expected: object) -> bool:
    if isinstance(actual, int | float) and isinstance(expected, int | float):
        return abs(actual - expected) < 1e-6 or actual == expected
    return actual == expected


def _unknowable(rows: Sequence[Row], *, present: Collection[str]) -> set[str]:
    """Return the entities that no source could name."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.entity_id not in present:
            found[row.entity_id].append(row)
    return {entity_id for entity_id, life in found.items() if _is_omitted(life)}


def _lost_by_kills(rows: Sequence[Row], history: History) -> list[tuple[int, int]]:
    """Return the time ranges whose rows a kill lost: the recorder commits in order."""
    return [
        (max((row.updated_ns for row in rows if row.updated_ns <= kill), default=0), kill)
        for kill in history.kills_ns
    ]


def _why_extra(
    point: StoredPoint, lost: Sequence[tuple[int, int]], history: History
) -> Rule | None:
    if point.fields.get("removed") and point.tags["entity_id"] in history.renames:
        return Rule.RENAMED
    if any(newest < point.time_ns <= kill for newest, kill in lost):
        return Rule.KILLED
    return None


def _difference(what: str, point: StoredPoint, expected: object, actual: object) -> Difference:
    if isinstance(expected, tuple) and len(expected) == 1:
        expected = expected[0]
    return Difference(
        entity_id=point.tags["entity_id"],
        time_ns=point.time_ns,
        what=what,
        expected=expected,
        actual=actual,
        is_backfilled=_is_backfilled(point),
    )


def _is_backfilled(point: StoredPoint) -> bool:
    return bool(point.fields.get("backfilled"))


def clock(time_ns: int) -> str:
    """Return the time of day in UTC, to the microsecond."""
    return f"{_EPOCH + timedelta(microseconds=time_ns // 1_000):%H:%M:%S.%f}"


def _nanoseconds(timestamp: float) -> int:
    # Home Assistant rounds its float seconds to the microsecond in the same way.
    return (datetime.fromtimestamp(timestamp, UTC) - _EPOCH) // timedelta(microseconds=1) * 1_000
