"""Compares the two sides of a copy: count and checksum of each day, then value by value."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

from app.commands.copy.rows import Chunk, line_of, samples
from app.commands.copy.source import DAY_NS, Period, Source
from app.model import SECOND_NS

_HOUR_NS = 3_600 * SECOND_NS
_CHECKSUM_BITS = 2**64 - 1
_EXAMPLES = 3


_Value: TypeAlias = tuple[int, int, bytes, bytes]
"""Time, identity, series and encoded field of one value.

The identity is a hash of all the others, only comparable within this process.
"""


@dataclass(slots=True)
class Total:
    """Count and checksum of values, whatever their order."""

    values: int = 0
    checksum: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DayDifference:
    """A day on which the two sides differ."""

    measurement: str
    day: Period
    source: Total
    target: Total
    missing: int
    """Values of the source that the target does not have."""
    extra: int
    """Values that only the target has."""
    examples: Sequence[str]
    """Some of the missing ones."""


class Comparison:
    """Compares spans of two databases, which may store the same point differently."""

    def __init__(self, source: Source, target: Source, *, as_samples: bool) -> None:
        """Assign the sides; `as_samples` compares what VictoriaMetrics stores of the source."""
        self._source = source
        self._target = target
        self._as_samples = as_samples

    async def differences(
        self, measurement: str, fields: Sequence[str], days: Sequence[Period]
    ) -> list[DayDifference]:
        """Return the days of a span that differ, in order."""
        span = Period(days[0].start_ns, days[-1].end_ns)
        ambiguous: set[int] = set()
        ours = await self._totals(self._source.read(measurement, fields, span), ambiguous)
        theirs = await self._totals(self._target.read(measurement, fields, span), ambiguous)
        found = []
        for day in days:
            number = day.start_ns // DAY_NS
            pair = ours.get(number, Total()), theirs.get(number, Total())
            if pair[0] != pair[1]:
                found.append(await self._difference(measurement, fields, day, pair))
        return found

    async def _totals(self, chunks: AsyncIterable[Chunk], ambiguous: set[int]) -> dict[int, Total]:
        totals: dict[int, Total] = {}
        async for values in self._values(chunks, ambiguous):
            for time_ns, identity, _, _ in values:
                number = time_ns // DAY_NS
                if number not in totals:
                    totals[number] = Total()
                total = totals[number]
                total.values += 1
                total.checksum = (total.checksum + identity) & _CHECKSUM_BITS
        return totals

    async def _difference(
        self, measurement: str, fields: Sequence[str], day: Period, pair: tuple[Total, Total]
    ) -> DayDifference:
        missing, extra, examples = 0, 0, list[str]()
        for hour in _hours(day):
            ambiguous: set[int] = set()
            ours, theirs = {}, set()
            async for values in self._values(
                self._source.read(measurement, fields, hour), ambiguous
            ):
                ours.update({value[1]: value for value in values})
            async for values in self._values(
                self._target.read(measurement, fields, hour), ambiguous
            ):
                theirs.update([value[1] for value in values])
            lacking = ours.keys() - theirs
            missing += len(lacking)
            extra += len(theirs - ours.keys())
            some = islice(lacking, _EXAMPLES - len(examples))
            examples += [_shown(ours[identity]) for identity in some]
        return DayDifference(
            measurement=measurement,
            day=day,
            source=pair[0],
            target=pair[1],
            missing=missing,
            extra=extra,
            examples=examples,
        )

    async def _values(
        self, chunks: AsyncIterable[Chunk], ambiguous: set[int]
    ) -> AsyncIterator[list[_Value]]:
        if not self._as_samples:
            async for chunk in chunks:
                yield [
                    (time_ns, hash((head, field, time_ns)), head, field)
                    for head, fields, time_ns in chunk.rows
                    for field in fields
                ]
            return
        merging = _Merging(ambiguous)
        async for chunk in chunks:
            yield list(merging.values(chunk))
        yield list(merging.rest())


class _Merging:
    """Merges the samples of one series in one millisecond, of which the target may have one.

    Which one depends on the target, so its value does not count. Series come in order of time.
    """

    def __init__(self, ambiguous: set[int]) -> None:
        """`ambiguous` collects such places, and has those of the other side."""
        self._ambiguous = ambiguous
        self._last: dict[bytes, tuple[int, bytes]] = {}

    def values(self, chunk: Chunk) -> Iterator[_Value]:
        """Yield the values that no other of the same millisecond can follow."""
        for metric, (value,), time_ns in samples(chunk.rows):
            last = self._last.get(metric)
            if last is not None and last[0] == time_ns:
                if last[1] != value:
                    self._ambiguous.add(hash((metric, time_ns)))
                continue
            self._last[metric] = time_ns, value
            if last is not None:
                yield self._value(metric, *last)

    def rest(self) -> Iterator[_Value]:
        """Yield the last value of each series."""
        for metric, last in self._last.items():
            yield self._value(metric, *last)

    def _value(self, metric: bytes, time_ns: int, value: bytes) -> _Value:
        place = hash((metric, time_ns))
        if not value:
            self._ambiguous.add(place)
        if place in self._ambiguous:
            value = b""
        return time_ns, hash((place, value)), metric, value


def _hours(day: Period) -> Iterator[Period]:
    start_ns = day.start_ns
    while start_ns < day.end_ns:
        end_ns = min((start_ns // _HOUR_NS + 1) * _HOUR_NS, day.end_ns)
        yield Period(start_ns, end_ns)
        start_ns = end_ns


def _shown(value: _Value) -> str:
    time_ns, _, head, field = value
    return line_of((head, (field,), time_ns)).decode(errors="replace")
