"""Which spans of time are read by one query; pure."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

from app.commands.copy.source import DAY_NS, Measurement, Period

_MAX_VALUES = 200_000
_MAX_DAYS = 31


@dataclass(frozen=True, slots=True)
class ReadSpan:
    """Days of a measurement that are read by one query, and about how many values they have."""

    days: list[Period]
    values: int


def days_of(measurement: Measurement, within: Period) -> Iterator[tuple[Period, int]]:
    """Yield the days of a measurement, cut at the bounds, with about how many values each has."""
    for number, values in measurement.days:
        start_ns = max(number * DAY_NS, within.start_ns)
        end_ns = min((number + 1) * DAY_NS, within.end_ns)
        if start_ns < end_ns:
            yield Period(start_ns, end_ns), values


def spans_of(
    measurement: Measurement, within: Period, done: Container[Period]
) -> Iterator[ReadSpan]:
    """Yield spans of the days that are not done, small enough to be repeated."""
    days: list[Period] = []
    total = 0
    for day, values in days_of(measurement, within):
        if day in done:
            continue
        is_far = bool(days) and day.end_ns - days[0].start_ns > _MAX_DAYS * DAY_NS
        if days and (is_far or total + values > _MAX_VALUES):
            yield ReadSpan(days, total)
            days, total = [], 0
        days.append(day)
        total += values
    if days:
        yield ReadSpan(days, total)
