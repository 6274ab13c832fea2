"""Answers to the queries of the command copy, as InfluxDB 1 and 2 give them. Pure.

Only the statements that the command sends are understood; anything else is an error of the test.
The answers of InfluxDB 1 were compared with a real one, those of InfluxDB 2 come from its
documentation: https://docs.influxdata.com/influxdb/v2/reference/syntax/annotated-csv/
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import msgpack

from app.model import StoredPoint

DAY_NS = 86_400_000_000_000

_NAME = r'"((?:[^"\\]|\\.)*)"'
_SELECT = re.compile(
    rf"SELECT (?P<fields>.+) FROM {_NAME}"
    r" WHERE time >= (?P<start>-?\d+) AND time < (?P<end>-?\d+)(?: AND \((?P<entities>.+)\))?"
    r" GROUP BY (?P<by>.+)"
)
_ENTITY = re.compile(r"\"entity_id\"::tag = '([^'\\]*)'")
_FLUX_FIELD = re.compile(r'r\._field == "([^"\\]*)"')
_FLUX_ENTITY = re.compile(r'r\.entity_id == "([^"\\]*)"')
_FIELD = re.compile(rf"{_NAME}::(field|float|string|boolean)")
_CASTS = {float: "float", int: "float", str: "string", bool: "boolean"}
_KINDS = {float: "float", int: "integer", str: "string", bool: "boolean"}
_FLUX_KINDS = {float: "double", int: "long", str: "string", bool: "boolean"}
_RANGE = re.compile(r"start: time\(v: (-?\d+)\), stop: time\(v: (-?\d+)\)")
_MEASUREMENT = re.compile(r'(?:_measurement ==|measurement:) ("(?:[^"\\]|\\.)*")')


def influxql(statement: str, points: Sequence[StoredPoint], *, rows: int) -> list[bytes] | None:
    """Return the chunks of an answer, each with at most `rows` rows; None for other statements."""
    if statement == "SHOW FIELD KEYS":
        return _chunks(_field_keys(points), rows)
    parts = _SELECT.fullmatch(statement)
    if parts is None:
        return None
    measurement = _unquoted(parts[2])
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
    assert parts["by"] == "time(1d) fill(none)", statement
    return _chunks(_counts(measurement, found, casts), rows)


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
    for point in sorted(points, key=lambda each: each.time_ns):
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


def _counts(
    measurement: str, points: Sequence[StoredPoint], casts: Sequence[tuple[str, str]]
) -> Iterator[dict[str, object]]:
    days = sorted({point.time_ns // DAY_NS for point in points})
    counts = Counter(
        (point.time_ns // DAY_NS, name, cast)
        for point in points
        for name, value in point.fields.items()
        for cast in ("field", _CASTS[type(value)])
    )
    values = [[day * DAY_NS, *(counts[day, *each] or None for each in casts)] for day in days]
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


def flux(query: str, points: Sequence[StoredPoint]) -> str | None:
    """Return an answer as annotated CSV; None for other queries."""
    span = _RANGE.search(query)
    if span is None:
        return None
    named = _MEASUREMENT.search(query)
    measurement = None if named is None else json.loads(named[1].replace("\\${", "${"))
    found = [
        point
        for point in points
        if int(span[1]) <= point.time_ns < int(span[2])
        and measurement in {None, point.measurement}
        and _is_of(point, _FLUX_ENTITY.findall(query))
    ]
    if chosen := set(_FLUX_FIELD.findall(query)):
        found = [
            replace(point, fields={name: point.fields[name] for name in chosen & set(point.fields)})
            for point in found
        ]
    if "schema.measurements(" in query:
        return _table([{"_value": name} for name in sorted({each.measurement for each in found})])
    if "schema.measurementFieldKeys(" in query:
        return _table([{"_value": name} for name in sorted({n for e in found for n in e.fields})])
    if "|> count()" in query:
        counts = Counter(point.time_ns // DAY_NS for point in found for _ in point.fields)
        return _table(
            [{"_start": day * DAY_NS, "_value": count} for day, count in sorted(counts.items())]
        )
    if "_time: int(v: r._time)" not in query:
        return None
    series: dict[tuple[object, ...], list[dict[str, object]]] = defaultdict(list)
    for point in sorted(found, key=lambda each: each.time_ns):
        for name, value in point.fields.items():
            record: dict[str, object] = {
                "_time": point.time_ns,
                "_value": value,
                "_field": name,
                "_measurement": point.measurement,
                **point.tags,
            }
            series[name, type(value), *sorted(point.tags.items())].append(record)
    return "".join(_table(records, number) for number, records in enumerate(series.values()))


def _table(records: Sequence[Mapping[str, object]], number: int = 0) -> str:
    if not records:
        return ""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    kinds = [_FLUX_KINDS[type(value)] for value in records[0].values()]
    writer.writerow(["#datatype", "string", "long", *kinds])
    writer.writerow(["#group", "false", "false", *("false" for _ in kinds)])
    writer.writerow(["#default", "_result", "", *("" for _ in kinds)])
    writer.writerow(["", "result", "table", *records[0]])
    for record in records:
        values = [_csv(value) for value in record.values()]
        writer.writerow(["", "", number, *values])
    return out.getvalue() + "\r\n"


def _csv(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value
