"""A slow encoder of Home Assistant's schema, written from the rules in docs/SCHEMA.md.

It shares no code with the encoder that it checks: one dict per point, one pass per rule.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, cast

from tests.fakes import python_3_14

Json = Mapping[str, Any]
ONE = ["on", "locked", "above_horizon", "open", "home"]
ZERO = ["off", "unlocked", "below_horizon", "closed", "not_home"]


class Point(NamedTuple):
    """A state of an entity."""

    entity_id: str
    state: str
    attributes: Json
    time_ns: int


def line(point: Point, options: Json, text: str) -> str | None:
    """Return the line without newline; None if nothing is written."""
    if point.state in {"", "unknown", "unavailable"} or not _is_selected(point.entity_id, options):
        return None
    entity = _component(point.entity_id, options)
    measurement, used = _measurement(point, entity, options)
    ignored = {used, *entity.get("ignore_attributes", []), *options.get("ignore_attributes", [])}
    tag_names = options.get("tags_attributes", [])
    left = {
        key: value
        for key, value in point.attributes.items()
        if key not in tag_names and key not in ignored
    }
    fields = _fields(point.state, left)
    time = _time(point.time_ns, options.get("precision"), text)
    return _line(measurement, _tags(point, options), fields, time, text=text)


def _measurement(point: Point, entity: Json, options: Json) -> tuple[str, str | None]:
    domain = point.entity_id.split(".", 1)[0]
    override = entity.get("override_measurement") or options.get("override_measurement")
    if override:
        return _one_line(override), None
    attribute = options.get("measurement_attr", "unit_of_measurement")
    device_class = point.attributes.get("device_class")
    if attribute == "entity_id":
        return point.entity_id, None
    if attribute == "domain__device_class":
        if device_class is None:
            return domain, None
        return _one_line(f"{domain}__{_str(device_class)}"), "device_class"
    unit = point.attributes.get("unit_of_measurement")
    if unit is None or unit == "":
        return _one_line(options.get("default_measurement") or point.entity_id), None
    return _one_line(unit) if isinstance(unit, str) else _str(unit), "unit_of_measurement"


def _tags(point: Point, options: Json) -> Json:
    domain, object_id = point.entity_id.split(".", 1)
    tags: dict[str, Any] = {"domain": domain, "entity_id": object_id}
    for key, value in point.attributes.items():
        if key in options.get("tags_attributes", []):
            tags[key] = _one_line(value) if isinstance(value, str) else value
    for key, value in options.get("tags", {}).items():
        tags[key] = _one_line(value)
    return tags


def _fields(state: str, attributes: Json) -> Json:
    fields: dict[str, Any] = {}
    number = _float(state)
    if number is not None:
        fields["value"] = number
    else:
        fields["state"] = _one_line(state)
        if state in ONE + ZERO:
            fields["value"] = 1.0 if state in ONE else 0.0
    for name, value in attributes.items():
        key = name + "_" if name in fields else name
        number = _float(value)
        if number is not None:
            fields[key] = number
        else:
            text = _one_line(_str(value))
            fields[key + "_str"] = text
            if _looks_like_a_number(text):
                digits = "".join(char for char in text if _is_digit(char) or char == ".")
                fields[key] = python_3_14.float_of(digits)
        if isinstance(fields.get(key), float) and not math.isfinite(fields[key]):
            del fields[key]
    if "time" in fields:
        free = "time_"
        while free in fields:
            free += "_"
        fields[free] = fields.pop("time")
    return fields


def _line(measurement: str, tags: Json, fields: Json, time: int, *, text: str) -> str:
    special = {"\\": "\\\\", "\n": "\\n", ",": "\\,", " ": "\\ ", "=": "\\="}
    in_measurement = special
    if text == "v2":
        special = {",": "\\,", " ": "\\ ", "=": "\\=", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
        in_measurement = {char: escape for char, escape in special.items() if char != "="}
    written_tags = []
    for key in sorted(tags):
        value = "" if tags[key] is None else _str(tags[key])
        if key and value:
            end = " " if text == "v2" and value[-1] == "\\" else ""
            written_tags.append(f"{_escaped(key, special)}={_escaped(value, special)}{end}")
    written_fields = []
    for key in sorted(fields):
        value = fields[key]
        if text == "v1" and not key:
            continue
        if isinstance(value, str):
            value = '"' + _escaped(value, {"\\": "\\\\", '"': '\\"'}) + '"'
        elif text == "v2" and not math.isfinite(value):
            continue
        else:
            value = str(value)
            if text == "v2" and value.endswith(".0"):
                value = value[:-2]
        written_fields.append(f"{_escaped(key, special)}={value}")
    if not written_fields:
        return ""
    head = ",".join([_escaped(measurement, in_measurement), *written_tags])
    return f"{head} {','.join(written_fields)} {time}"


def _escaped(text: str, escapes: Mapping[str, str]) -> str:
    return "".join(escapes.get(char, char) for char in text)


def _time(ns: int, precision: str | None, text: str) -> int:
    unit = {None: 1, "ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}[precision]
    if unit == 1:
        return ns
    return int(ns / unit) if text == "v1" else int(float(ns) / float(unit))


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


def _float(value: Any) -> float | None:
    if value is None or isinstance(value, list | dict):
        return None
    try:
        return python_3_14.float_of(value) if isinstance(value, str) else float(value)
    except ValueError:
        return None


def _str(value: Any) -> str:
    return value if isinstance(value, str) else python_3_14.repr_of(value)


def _is_digit(char: str) -> bool:
    return python_3_14.digit(char) is not None


def _looks_like_a_number(text: str) -> bool:
    dots = [index for index, char in enumerate(text) if char == "."]
    if len(dots) > 1:
        return False
    if dots:
        around = (dots[0] - 1, dots[0] + 1)
        return all(0 <= index < len(text) and _is_digit(text[index]) for index in around)
    return any(_is_digit(one) and _is_digit(other) for one, other in itertools.pairwise(text))


def _component(entity_id: str, options: Json) -> Json:
    domain = entity_id.split(".", 1)[0]
    found: dict[str, Any] = dict(options.get("component_config_domain", {}).get(domain, {}))
    for glob, config in options.get("component_config_glob", {}).items():
        if fnmatchcase(entity_id, glob):
            found.update(config)
    found.update(options.get("component_config", {}).get(entity_id, {}))
    return found


def _is_selected(entity_id: str, options: Json) -> bool:
    include, exclude = _Side(options.get("include", {})), _Side(options.get("exclude", {}))
    if not include.any or not exclude.any:
        return (include.matches(entity_id) or not include.any) and not exclude.matches(entity_id)
    if entity_id in include.entities:
        return True
    if include.domains or include.globs:
        if entity_id in exclude.entities:
            return False
        is_in_domain = include.in_domains(entity_id) and not exclude.in_globs(entity_id)
        return include.in_globs(entity_id) or is_in_domain
    return bool(exclude.domains or exclude.globs) and not exclude.matches(entity_id)


class _Side:
    def __init__(self, rules: Json) -> None:
        self.domains = cast("Sequence[str]", rules.get("domains", []))
        self.globs = cast("Sequence[str]", rules.get("entity_globs", []))
        self.entities = cast("Sequence[str]", rules.get("entities", []))
        self.any = bool(self.domains or self.globs or self.entities)

    def in_globs(self, entity_id: str) -> bool:
        return any(fnmatchcase(entity_id, glob) for glob in self.globs)

    def in_domains(self, entity_id: str) -> bool:
        return entity_id.split(".", 1)[0] in self.domains

    def matches(self, entity_id: str) -> bool:
        return entity_id in self.entities or self.in_domains(entity_id) or self.in_globs(entity_id)
