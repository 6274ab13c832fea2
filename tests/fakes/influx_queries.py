"""Answers to the queries of the command copy, as InfluxDB 1 and 2 give them. Pure.

Only the statements that the command sends are understood; anything else is an error of the test.
The answers were compared with those of a real InfluxDB 1.6.7 and 2.7.12.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import msgpack

from app.model import StoredPoint

Value: TypeAlias = str | float | bool

DAY_NS = 86_400_000_000_000

_NAME = r'"((?:[^"\\]|\\.)*)"'
_SELECT = re.compile(
    rf"SELECT (?P<fields>.+) FROM (?:{_NAME}\.)?{_NAME}"
    r" WHERE time >= (?P<start>-?\d+) AND time < (?P<end>-?\d+)(?: AND \((?P<entities>.+)\))?"
    r" GROUP BY (?P<by>.+)"
)
_FIELD_KEYS = re.compile(rf"SHOW FIELD KEYS(?: FROM {_NAME}\./\.\*/)?")
_PRECEDENCE = [float, int, str, bool]
_EVERY_NS = {"time(1d) fill(none)": DAY_NS, "time(1h) fill(none)": DAY_NS // 24}
_ENTITY = re.compile(r"\"entity_id\"::tag = '([^'\\]*)'")
_FIELD = re.compile(rf"{_NAME}::(field|float|string|boolean)")
_CASTS = {float: "float", int: "float", str: "string", bool: "boolean"}
_KINDS = {float: "float", int: "integer", str: "string", bool: "boolean"}


def influxql(
    statement: str, points: Sequence[StoredPoint], *, rows: int, policy: str | None = None
) -> list[bytes] | None:
    """Return the chunks of an answer, each with at most `rows` rows; None for other statements.

    The points are those of `policy`; None for the default one, which the command does not name.
    """
    if (listed := _FIELD_KEYS.fullmatch(statement)) is not None:
        assert listed[1] == policy, statement
        return _chunks(_field_keys(points), rows)
    parts = _SELECT.fullmatch(statement)
    if parts is None:
        return None
    assert parts[2] == policy, statement
    measurement = _unquoted(parts[3])
    found = [
        point
        for point in points
        if point.measurement == measurement
        and int(parts["start"]) <= point.time_ns < int(parts["end"])
        and _is_of(point, _ENTITY.findall(parts["entities"] or ""))
    ]
    casts = [(_unquoted(name), cast) for name, cast in _FIELD.findall(parts["fields"])]
    if parts["by"] == "*":
        return _chunks(_series(measurement, found, [name for name, _ in casts]), rows)
    return _chunks(_counts(measurement, found, casts, _EVERY_NS[parts["by"]]), rows)


def _is_of(point: StoredPoint, entities: Sequence[str]) -> bool:
    return not entities or point.tags.get("entity_id") in entities


def _field_keys(points: Iterable[StoredPoint]) -> Iterator[dict[str, object]]:
    kinds: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for point in points:
        kinds[point.measurement] |= {
            (name, _KINDS[type(value)]) for name, value in point.fields.items()
        }
    for measurement, found in kinds.items():
        yield {
            "name": measurement,
            "columns": ["fieldKey", "fieldType"],
            "values": [list(each) for each in sorted(found)],
        }


def _series(
    measurement: str, points: Iterable[StoredPoint], fields: Sequence[str]
) -> Iterator[dict[str, object]]:
    rows: dict[tuple[tuple[str, str], ...], list[Sequence[object]]] = defaultdict(list)
    for point in sorted(_as_read(points), key=lambda each: each.time_ns):
        if any(name in point.fields for name in fields):
            row = [point.time_ns, *(point.fields.get(name) for name in fields)]
            rows[tuple(sorted(point.tags.items()))].append(row)
    every = sorted({key for tags in rows for key, _ in tags})
    for tags, values in sorted(rows.items()):
        yield {
            "name": measurement,
            "tags": dict.fromkeys(every, "") | dict(tags),
            "columns": ["time", *fields],
            "values": values,
        }


def _as_read(points: Iterable[StoredPoint]) -> list[StoredPoint]:
    """Return what a query without casts reads: one type of each field, integers beside floats."""
    points = list(points)
    kinds: dict[str, type] = {}
    for point in points:
        for name, value in point.fields.items():
            kinds[name] = min(type(value), kinds.get(name, type(value)), key=_PRECEDENCE.index)
    return [replace(point, fields=dict(_of_types(point.fields, kinds))) for point in points]


def _of_types(
    fields: Mapping[str, Value], kinds: Mapping[str, type]
) -> Iterator[tuple[str, Value]]:
    for name, value in fields.items():
        if type(value) is kinds[name]:
            yield name, value
        elif type(value) is int and kinds[name] is float:
            yield name, float(value)


def _counts(
    measurement: str,
    points: Sequence[StoredPoint],
    casts: Sequence[tuple[str, str]],
    every_ns: int,
) -> Iterator[dict[str, object]]:
    steps = sorted({point.time_ns // every_ns for point in points})
    counts = Counter(
        (point.time_ns // every_ns, name, "field")
        for point in _as_read(points)
        for name in point.fields
    )
    counts += Counter(
        (point.time_ns // every_ns, name, _CASTS[type(value)])
        for point in points
        for name, value in point.fields.items()
    )
    values = [[step * every_ns, *(counts[step, *each] or None for each in casts)] for step in steps]
    values = [row for row in values if any(row[1:])]
    if values:
        columns = ["time", "count", *(f"count_{n}" for n in range(1, len(casts)))]
        yield {"name": measurement, "columns": columns, "values": values}


def _chunks(series: Iterable[dict[str, object]], rows: int) -> list[bytes]:
    cut: list[dict[str, object]] = [
        each | {"values": values[start : start + rows]}
        for each in series
        if isinstance(values := each["values"], list)
        for start in range(0, len(values), rows)
    ]
    results: list[dict[str, object]] = [{"statement_id": 0, "series": [each]} for each in cut]
    results = results or [{"statement_id": 0}]
    for result in results[:-1]:
        result["partial"] = True
    return [msgpack.packb({"results": [result]}) for result in results]


def _unquoted(name: str) -> str:
    return re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], name)
