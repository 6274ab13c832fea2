"""Home Assistant's own layout, read as points of the schema `homeiq`, and compared as such.

What the target has already is left out: a point of the service says more than a copied one, and a
copied one would be written a second time, in another series if its entity has moved since.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import NamedTuple, Protocol

from app.commands.copy.conversion import (
    OWN_FIELD,
    STATE,
    VALUE,
    Conversion,
    ConvertedPoint,
    Unconvertible,
    state_of,
)
from app.commands.copy.rows import Chunk, RefusedRow, Row, line_of, pair
from app.commands.copy.source import DAY_NS, NOTHING_WANTED, Measurement, Period, Source
from app.commands.copy.verification import DayDifference, Total
from app.model import MICROSECOND_NS, SECOND_NS
from app.schema.homeiq import identity_of

_HOUR_NS = 3_600 * SECOND_NS
_MILLISECOND_NS = 1_000_000
_CHECKSUM_BITS = 2**64 - 1
_EXAMPLES = 3
_ENTITIES_PER_QUERY = 100
_COMPARED_FIELDS = (OWN_FIELD, VALUE, "copied")


class SearchedTarget(Protocol):
    """A database that has, or gets, points of the schema `homeiq`."""

    def read(
        self, measurement: str, fields: Sequence[str], times: Period, entity_ids: Sequence[str], /
    ) -> AsyncGenerator[Chunk, None]:
        """Yield rows like `Source`, of points whose tag `entity_id` is one of these."""
        ...


class _Stored(NamedTuple):
    """A point of the target."""

    time_ns: int
    state: bytes
    is_copied: bool


class StoredPoints:
    """Points of the target, of some entities in a span of time."""

    def __init__(self, points: dict[str, list[_Stored]]) -> None:
        """Assign the points of each entity, sorted by time."""
        self._points = points

    def match(self, point: ConvertedPoint) -> _Stored | None:
        """Return the point of the same change; None if the target has none.

        A time that the source has cut stands for all times that it may have been cut from, and
        then the state has to be the same.
        """
        stored = self._points.get(point.entity_id, ())
        reach_ns, is_exact = _reach(point.time_ns)
        for at in range(bisect_left(stored, (point.time_ns,)), len(stored)):
            if stored[at].time_ns > point.time_ns + reach_ns:
                break
            if is_exact or stored[at].state == point.state:
                return stored[at]
        return None


def _reach(time_ns: int) -> tuple[int, bool]:
    """Return how much later the change may have been, and whether its time was not cut.

    Home Assistant's client for InfluxDB 2 is a unit early at some times.
    """
    if time_ns % SECOND_NS == 0:
        return SECOND_NS, False
    if time_ns % _MILLISECOND_NS == 0:
        return 2 * _MILLISECOND_NS, False
    return MICROSECOND_NS, True


async def stored_points(
    target: SearchedTarget, measurement: str, points: Sequence[ConvertedPoint]
) -> StoredPoints:
    """Return what the target has of the entities of some points, around their times."""
    times = [point.time_ns for point in points]
    span = Period(min(times), max(times) + SECOND_NS + 1)
    found: dict[str, dict[int, dict[bytes, bytes]]] = {}
    ids = sorted({point.entity_id for point in points})
    for first in range(0, len(ids), _ENTITIES_PER_QUERY):
        some = ids[first : first + _ENTITIES_PER_QUERY]
        chunks = target.read(measurement, _COMPARED_FIELDS, span, some)
        async with aclosing(chunks):
            async for chunk in chunks:
                for head, fields, time_ns in chunk.rows:
                    identity = identity_of(line_of((head, (b"x=0",), time_ns)))
                    assert identity is not None, head
                    times_of = found.setdefault(identity[0], {})
                    times_of.setdefault(time_ns, {}).update(map(pair, fields))
    return StoredPoints(
        {
            entity_id: sorted(
                _Stored(time_ns, state_of(fields), b"copied" in fields)
                for time_ns, fields in times_of.items()
            )
            for entity_id, times_of in found.items()
        }
    )


class ConvertedSource:
    """A database with Home Assistant's own layout, as a source of converted points."""

    def __init__(self, source: Source, conversion: Conversion, *, measurement: str) -> None:
        """Assign the source; `measurement` is that of the target."""
        self.unit = source.unit
        self.counts_exactly = source.counts_exactly
        self.has_whole_points = source.has_whole_points
        self.omitted: list[str] = []
        self.target: SearchedTarget | None = None
        """Where points are looked for before they are written; None for a dry run."""
        self.existing = 0
        """Points that were left out because the target has them."""
        self.unregistered: Counter[str] = Counter()
        """Points that were written without an area and device, by entity id."""
        self._source = source
        self._conversion = conversion
        self._measurement = measurement

    async def measurements(self, times: Period) -> AsyncIterator[Measurement]:
        """Yield the measurements that have states."""
        async for each in self._source.measurements(times):
            if each.name == self._measurement or OWN_FIELD in each.fields:
                self.omitted.append(f"{each.name} (of the schema homeiq)")
            elif STATE not in each.fields and VALUE not in each.fields:
                self.omitted.append(f"{each.name} ({NOTHING_WANTED})")
            else:
                yield each
        self.omitted += self._source.omitted

    async def read(
        self, measurement: str, fields: Sequence[str], times: Period
    ) -> AsyncGenerator[Chunk, None]:
        """Yield the converted points that the target lacks."""
        async with aclosing(self.converted(measurement, fields, times)) as chunks:
            async for points, chunk in chunks:
                if points and self.target is not None:
                    stored = await stored_points(self.target, self._measurement, points)
                    lacking = [point for point in points if stored.match(point) is None]
                    self.existing += len(points) - len(lacking)
                else:
                    lacking = points
                self.unregistered.update(
                    point.entity_id for point in lacking if not point.is_registered
                )
                chunk.rows = [point.row for point in lacking]
                yield chunk

    async def converted(
        self, measurement: str, fields: Sequence[str], times: Period
    ) -> AsyncGenerator[tuple[list[ConvertedPoint], Chunk], None]:
        """Yield all converted points, with what could not be converted."""
        for part in [times] if self.has_whole_points else _parts(times):
            async with aclosing(self._source.read(measurement, fields, part)) as chunks:
                if self.has_whole_points:
                    async for chunk in chunks:
                        yield self._converted(chunk)
                else:
                    yield self._converted(_joined([chunk async for chunk in chunks]))

    def _converted(self, chunk: Chunk) -> tuple[list[ConvertedPoint], Chunk]:
        points: list[ConvertedPoint] = []
        refused = list(chunk.refused)
        for row in chunk.rows:
            try:
                points.append(self._conversion.convert(row))
            except Unconvertible as exc:
                refused.append(RefusedRow(line_of(row), f"Not converted: {exc}", row[2]))
        return points, Chunk(refused=refused, read_values=chunk.values)


def _joined(chunks: Sequence[Chunk]) -> Chunk:
    """Return rows with all fields of their points."""
    fields: dict[tuple[bytes, int], list[bytes]] = {}
    joined = Chunk(read_values=sum(chunk.values for chunk in chunks))
    for chunk in chunks:
        joined.refused += chunk.refused
        for head, found, time_ns in chunk.rows:
            fields.setdefault((head, time_ns), []).extend(found)
    joined.rows = [(head, found, time_ns) for (head, time_ns), found in fields.items()]
    return joined


def _parts(times: Period) -> Iterator[Period]:
    """Yield the hours of a day, which may have any number of points; several days have few."""
    if times.end_ns - times.start_ns > DAY_NS:
        yield times
        return
    for start_ns in range(times.start_ns, times.end_ns, _HOUR_NS):
        yield Period(start_ns, min(start_ns + _HOUR_NS, times.end_ns))


class ConversionComparison:
    """Compares converted points with the target: entity, time, and state or value."""

    def __init__(
        self, source: ConvertedSource, target: SearchedTarget, *, measurement: str
    ) -> None:
        """Assign the sides; `measurement` is that of the target."""
        self._source = source
        self._target = target
        self._measurement = measurement

    async def differences(
        self, measurement: str, fields: Sequence[str], days: Sequence[Period]
    ) -> list[DayDifference]:
        """Return the days of a span on which the target lacks points, in order.

        A point of the service counts as equal: its text may have zeros that the source lacks.
        """
        span = Period(days[0].start_ns, days[-1].end_ns)
        totals: dict[int, tuple[Total, Total]] = {}
        lacking: dict[int, list[Row]] = {}
        async with aclosing(self._source.converted(measurement, fields, span)) as chunks:
            async for points, _ in chunks:
                if not points:
                    continue
                stored = await stored_points(self._target, self._measurement, points)
                for point in points:
                    number = point.time_ns // DAY_NS
                    ours, theirs = totals.setdefault(number, (Total(), Total()))
                    _add(ours, point, point.state)
                    found = stored.match(point)
                    if found is not None:
                        _add(theirs, point, found.state if found.is_copied else point.state)
                    if found is None or (found.is_copied and found.state != point.state):
                        lacking.setdefault(number, []).append(point.row)
        return [
            _difference(measurement, day, totals[number], lacking.get(number, []))
            for day in days
            if (number := day.start_ns // DAY_NS) in totals
            and totals[number][0] != totals[number][1]
        ]


def _add(total: Total, point: ConvertedPoint, state: bytes) -> None:
    total.values += 1
    identity = hash((point.entity_id, point.time_ns, state))
    total.checksum = (total.checksum + identity) & _CHECKSUM_BITS


def _difference(
    measurement: str, day: Period, totals: tuple[Total, Total], lacking: Sequence[Row]
) -> DayDifference:
    return DayDifference(
        measurement=measurement,
        day=day,
        source=totals[0],
        target=totals[1],
        missing=len(lacking),
        extra=0,
        examples=[line_of(row).decode(errors="replace") for row in lacking[:_EXAMPLES]],
    )
