"""Reference encoder for the schema `homeiq`: slow, obvious, written from the docs alone."""

from __future__ import annotations

import fnmatch
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import msgspec

from app.model import Change, StoredPoint

FieldValue: TypeAlias = str | float | bool | int

ONE = ("on", "open", "home", "locked", "above_horizon", "true", "True", "yes")
ZERO = ("off", "closed", "not_home", "unlocked", "below_horizon", "false", "False", "no")


def expected_point(
    change: Change,
    *,
    measurement: str = "home_assistant_events",
    instance: str | None = None,
    attribute_fields: Sequence[str] = (),
) -> StoredPoint:
    """Return the point that a database stores for a change."""
    return StoredPoint(
        measurement=stored_name("_" + measurement[1:] if measurement[0] == "#" else measurement),
        tags={key: stored_name(value) for key, value in _tags(change, instance).items() if value},
        fields={
            key: stored_text(value) if isinstance(value, str) else value
            for key, value in _fields(change, attribute_fields).items()
            if value is not None
        },
        time_ns=change.time_ns,
    )


def line_of(point: StoredPoint) -> bytes:
    """Return the line of a point, newline included; tags are sorted, fields are not."""
    tags = [f",{_escaped(k, ',= ')}={_escaped(v, ',= ')}" for k, v in sorted(point.tags.items())]
    fields = [f"{_escaped(k, ',= ')}={_field(v)}" for k, v in point.fields.items()]
    measurement = _escaped(point.measurement, ", ")
    return f"{measurement}{''.join(tags)} {','.join(fields)} {point.time_ns}\n".encode()


def _tags(change: Change, instance: str | None) -> Mapping[str, str | None]:
    return {
        "entity_id": change.entity_id,
        "domain": change.domain,
        "event_type": change.event_type,
        "device_id": change.placement.device_id,
        "area_id": change.placement.area_id,
        "integration": change.placement.integration,
        "device_class": change.device_class,
        "unit_of_measurement": change.unit_of_measurement,
        "event_category": _category(change.domain, change.device_class),
        "instance": instance,
    }


def _fields(change: Change, attribute_fields: Sequence[str]) -> Mapping[str, FieldValue | None]:
    context = change.context
    state = change.state
    return {
        "friendly_name": change.friendly_name,
        "manufacturer": change.placement.manufacturer,
        "model": change.placement.model,
        "sw_version": change.placement.sw_version,
        "removed": True if state is None else None,
        "available": None if state is None else state not in ("unavailable", "unknown"),
        "state_value": state,
        "value": None if state is None else number_of(state),
        "previous_state": change.previous_state,
        "attributes": change.attributes.decode(),
        **_attribute_fields(change.attributes, attribute_fields),
        "duration_in_state_seconds": change.duration_s,
        "context_id": context.id if context else None,
        "context_parent_id": context.parent_id if context else None,
        "context_user_id": context.user_id if context else None,
        "backfilled": True if change.backfilled else None,
    }


def _category(domain: str, device_class: str | None) -> str:
    rules = [
        ("security", ["alarm_control_panel", "lock"]),
        ("security", ["class:" + c for c in ("door", "window", "motion", "lock", "smoke", "gas")]),
        ("climate", ["climate", "class:temperature", "class:humidity"]),
        ("lighting", ["light"]),
        ("appliance", ["switch", "fan", "vacuum", "class:power", "class:energy"]),
        ("monitoring", ["sensor", "binary_sensor"]),
    ]
    for category, words in rules:
        if domain in words or f"class:{device_class}" in words:
            return category
    return "general"


def number_of(state: str) -> float | None:
    """Return the number that a state is or stands for; None for any other state."""
    if state in ONE or state in ZERO:
        return 1.0 if state in ONE else 0.0
    # Only the number grammar of JSON, in ASCII; `float` accepts more.
    if not re.match(r"[-0-9]", state) or state[-1] not in "0123456789":
        return None
    try:
        number = json.loads(state, parse_int=float)
    except ValueError:
        return None
    return number if isinstance(number, float) and math.isfinite(number) else None


def _attribute_fields(attributes: bytes, globs: Sequence[str]) -> Mapping[str, FieldValue]:
    fields: dict[str, FieldValue] = {}
    for name, raw in msgspec.json.decode(attributes, type=dict[str, msgspec.Raw]).items():
        text = bytes(raw).decode()
        value = json.loads(text, parse_int=float)
        if value is None or not any(fnmatch.fnmatchcase(name, glob) for glob in globs):
            continue
        key = stored_name(f"attr_{name}".replace('"', "'"))
        number = float(value) if isinstance(value, bool | float) else math.nan
        if math.isfinite(number) and not key.endswith("_str"):
            fields[key] = number
        else:
            fields[key + "_str"] = value if isinstance(value, str) else text
    return fields


def stored_name(text: str) -> str:
    """Return a measurement, tag or key as it is stored."""
    shortened = _cut("".join(_plain(character) for character in text), 2_048)
    characters = list(shortened)
    for at in reversed(range(len(characters))):
        following = characters[at + 1 : at + 2]
        replaced = bool(following) and following[0] == "/" and shortened[at + 1] == "\\"
        if characters[at] == "\\" and (not following or following[0] in ",= " or replaced):
            characters[at] = "/"
    return "".join(characters)


def _plain(character: str) -> str:
    if ord(character) < 32 or ord(character) == 127:
        return " "
    return "\ufffd" if 0xD800 <= ord(character) <= 0xDFFF else character


def stored_text(text: str) -> str:
    """Return a string field as it is stored."""
    return _cut(
        "".join("\ufffd" if 0xD800 <= ord(c) <= 0xDFFF else c for c in text),
        65_536,
    )


def _cut(text: str, max_bytes: int) -> str:
    size = 0
    for at, character in enumerate(text):
        size += len(character.encode())
        if size > max_bytes:
            return text[:at]
    return text


def _escaped(text: str, special: str) -> str:
    return "".join("\\" + c if c in special else c for c in text)


def _field(value: FieldValue) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return f'"{_escaped(value, chr(92) + chr(34))}"'
        case _:
            return repr(value)
