"""Translates the message of a refusal into an outcome; pure.

InfluxDB has no error codes for this, so the text decides. Each pattern names the versions that
use it. Callers pass a message without the lines that a database may quote in it.
"""

from __future__ import annotations

import re

from app.sinks.batches import FieldName
from app.sinks.outcomes import OutOfBounds, Refused

_SEARCHED = 400
"""A message states its cause at the beginning; quoted text may follow."""
_TOO_OLD = re.compile(
    r"(?:beyond|outside) (?:of )?(?:the )?retention"  # 1.x: "points beyond retention policy"
    r"|outside (?:of )?(?:the )?write window"  # 1.12 with a past or future write limit
    r"|retention policy lower bound"
    r"|(?:older|before) (?:than )?(?:the )?retention",
    re.IGNORECASE,
)
_OVER_LIMIT = re.compile(
    r"\bmax-(?:values-per-tag|series-per-database) limit exceeded"  # 1.x
    r"|would exceed (?:the )?(?:limit|number|maximum)\b",  # 3.x: tables and columns
    re.IGNORECASE,
)
_TOTAL_DROPPED = re.compile(r"\bdropped=(\d{1,9})\b")
_DROPPED = re.compile(r"\bdropped (\d{1,9}) points?\b")
_PARTIAL_WRITE = re.compile(r"(?:[\w ]{1,60}: )?partial write\b")
_CONFLICTS = (
    # 1.x and 2.x
    re.compile(
        r'input field "(?P<name>(?:[^"\\]|\\.){1,300})"'
        r'(?: on measurement "(?P<measurement>(?:[^"\\]|\\.){1,300})")?'
    ),
    re.compile(r"invalid column type for column '(?P<name>[^']{1,300})'"),  # 3.x
)
_ESCAPED = re.compile(r"\\(.)")
_NAMES_A_POINT = (
    re.compile(r" - (?:oldest|newest) point .*", re.DOTALL),
    re.compile(r' value=".*', re.DOTALL),
)

_OTHER_TYPE = (
    "The bucket holds the field {field} with another type: set INFLUXDB_BUCKET or"
    " INFLUXDB_MEASUREMENT to a new one."
)
_REFUSED = "Fix the bucket named by INFLUXDB_BUCKET, or set INFLUXDB_BUCKET to another one."


def verdict(text: str, *, reason: str, status: int) -> Refused | OutOfBounds:
    """Return what a refusal means; `reason` is the message as it may be shown."""
    beginning = text[:_SEARCHED]
    conflict = _conflicting(beginning)
    if conflict is not None:
        advice = _OTHER_TYPE.format(field=conflict.name)
        return Refused(
            reason=reason,
            status=status,
            advice=advice,
            conflict=conflict,
            dropped=_dropped(text),
        )
    if "unable to parse" in beginning:
        return Refused(reason=reason, status=status, advice=_REFUSED)
    if _TOO_OLD.search(beginning):
        return OutOfBounds(
            cause="retention", reason=_shortened(reason), status=status, dropped=_dropped(text)
        )
    if _OVER_LIMIT.search(beginning):
        return OutOfBounds(
            cause="limit", reason=_shortened(reason), status=status, dropped=_dropped(text)
        )
    return Refused(reason=reason, status=status, advice=_REFUSED)


def is_partial_write(text: str) -> bool:
    """Whether the points were refused, whatever the status: InfluxDB 2.0 responds with 500."""
    return bool(_PARTIAL_WRITE.match(text)) and "dropped" in text


def _conflicting(text: str) -> FieldName | None:
    for pattern in _CONFLICTS:
        if (found := pattern.search(text)) is not None:
            name, measurement = found["name"], found.groupdict().get("measurement")
            return FieldName(_unescaped(name), measurement and _unescaped(measurement))
    return None


def _unescaped(name: str) -> str:
    return _ESCAPED.sub(r"\1", name)


def _dropped(text: str) -> int | None:
    counts = {int(count) for count in _TOTAL_DROPPED.findall(text) or _DROPPED.findall(text)}
    # A series key between the two may look like a count: then none is trusted.
    return counts.pop() if len(counts) == 1 else None


def _shortened(reason: str) -> str:
    for pattern in _NAMES_A_POINT:
        reason = pattern.sub("", reason)
    return reason
