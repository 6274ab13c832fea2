"""What the command copy reads: measurements, and their rows in a span of time."""

from __future__ import annotations

from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

from app.commands.copy.rows import Chunk
from app.model import MAX_TIME_NS, SECOND_NS

DAY_NS = 86_400 * SECOND_NS


class Period(NamedTuple):
    """A span of time in nanoseconds since the epoch: from, and up to but not including."""

    start_ns: int = -MAX_TIME_NS
    end_ns: int = MAX_TIME_NS


@dataclass(slots=True)
class Days:
    """The UTC days on which there are values, and about how many."""

    numbers: array[int] = field(default_factory=lambda: array("q"))
    """Days since the epoch, rising."""
    values: array[int] = field(default_factory=lambda: array("q"))

    def add(self, number: int, values: int) -> None:
        """Add the next day."""
        self.numbers.append(number)
        self.values.append(values)

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.numbers, self.values, strict=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A measurement of a database."""

    name: str
    fields: Sequence[str]
    """Empty when they are not known."""
    days: Days


Wants: TypeAlias = Callable[[str], bool]
"""Selects fields by name."""


NOTHING_WANTED = "no field state or value"
"""Why a measurement is not read."""


def every_field(_: str) -> bool:
    """Select all fields of a source."""
    return True


class Source(Protocol):
    """A database to read."""

    unit: str
    """What `Days.values` counts, for people."""

    counts_exactly: bool
    """Whether `Days.values` is the number of values that `read` returns."""

    has_whole_points: bool
    """Whether a row has all fields of its point; otherwise other rows have the others."""

    omitted: list[str]
    """What it has and cannot be copied, known after `measurements`."""

    def measurements(self, times: Period) -> AsyncIterator[Measurement]:
        """Yield what the database has in a span of time.

        Raises:
            QueryFailed: the database is unavailable; repeat it.
            DatabaseRefused: it refuses to be read.
        """
        ...

    def read(
        self, measurement: str, fields: Sequence[str], times: Period, /
    ) -> AsyncGenerator[Chunk, None]:
        """Yield the rows of a measurement with these fields, or all fields for none.

        Raises as above.
        """
        ...
