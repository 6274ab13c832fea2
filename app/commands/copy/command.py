"""Runs the command: lists, copies and compares, and prints the result."""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from datetime import UTC, datetime, timedelta
from typing import TextIO, TypeVar

from app.commands.command_line import FAILED, OK
from app.commands.copy import endpoints
from app.commands.copy.bar import ProgressBar
from app.commands.copy.converted import ConversionComparison, ConvertedSource
from app.commands.copy.influxql_reader import InfluxQlReader
from app.commands.copy.progress import CopyProgress
from app.commands.copy.refused import RefusedPoints
from app.commands.copy.rows import Chunk, line_of
from app.commands.copy.source import DAY_NS, Measurement, Period, Source
from app.commands.copy.spans import ReadSpan, days_of, spans_of
from app.commands.copy.verification import Comparison, DayDifference
from app.commands.copy.victoria_metrics import VictoriaMetrics
from app.commands.copy.writer import LineWriter
from app.main import ENV_FILE
from app.model import MAX_TIME_NS, moment_of, nanoseconds
from app.runtime.errors import DatabaseRefused, QueryFailed, SettingsError
from app.runtime.retry import Backoff
from app.runtime.sqlite import owned_folder
from app.settings import Settings, load_settings
from app.sinks.influxdb.queries import QueryClient
from app.sinks.outcomes import Sink

Result = TypeVar("Result")

_MAX_WAIT_S = 60.0
_EXAMPLE_MEASUREMENTS = 3
_EXAMPLE_CHARS = 300
_LISTED_DIFFERENCES = 50
_FOLDER = "copy"
_LISTED_ENTITIES = 50
_UNSETTLED = timedelta(minutes=10)
"""How long a point of the service may take to the target."""


async def copy(arguments: argparse.Namespace) -> int:
    """Run the command and return the exit status."""
    chosen = load_settings(ENV_FILE)
    # Rows are many short-lived objects and none is a cycle: collecting took 40 % of the time.
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    try:
        return await run(arguments, chosen, sys.stdout)
    except (QueryFailed, DatabaseRefused) as exc:
        sys.stdout.flush()
        sys.stderr.write(f"\n{exc}\n")
        return FAILED


async def run(
    arguments: argparse.Namespace,
    chosen: Settings,
    out: TextIO,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> int:
    """Copy, compare, print the result to `out`, and return the exit status.

    Raises:
        SettingsError: the command line or the settings do not allow it.
        QueryFailed: a database does not respond at the start.
        DatabaseRefused: a database refuses to be read or written.
        StorageError: a file in DATA_DIR cannot be used.
    """
    ends = endpoints.source_end(arguments, chosen), endpoints.target_end(chosen)
    is_converted = arguments.to_schema is not None
    if ends[0] == ends[1] and not is_converted:
        raise SettingsError(f"copy: source and target are the same: {ends[0]}")
    within = _times(arguments, is_converted=is_converted)
    async with AsyncExitStack() as stack:
        source, kind = await stack.enter_async_context(
            endpoints.opened_source(ends[0], chosen, is_converted=is_converted)
        )
        out.write(f"From {kind}: {ends[0]}\nTo {ends[1]}\n")
        out.flush()
        found = [each async for each in source.measurements(within)]
        _print_omitted(source, out)
        if not found:
            out.write("Nothing found: check the name of the bucket or database, and the times\n")
            return FAILED
        if arguments.dry_run:
            await _show(source, found, within, out)
            return OK
        folder = chosen.journal.data_dir / _FOLDER
        stack.enter_context(owned_folder(folder))
        name = endpoints.name_of(*ends, arguments.to_schema)
        progress = await stack.enter_async_context(CopyProgress(folder / f"{name}.db"))
        if arguments.again:
            await progress.clear()
        sink, client = await stack.enter_async_context(
            endpoints.opened_target(ends[1], chosen.influx)
        )
        refused = RefusedPoints(progress, folder / f"{name}-refused.lp")
        job = _Copy(source, found, within, progress=progress, refused=refused, out=out, sleep=sleep)
        # Whether anything responds, before hours of copying; a missing database is created later.
        reader = await _reader(client)
        if isinstance(source, ConvertedSource):
            source.target = _lookup(reader)
        pace = _Pace(arguments.points_per_second, clock=clock, sleep=sleep)
        try:
            await job.write(sink, max_points=chosen.influx.max_batch_points, pace=pace)
            if reader is not None:  # another one: it lists the fields that are there now
                reader = await _reader(client)
            differences = await _compared(job, reader, chosen.influx.measurement, out)
        except (QueryFailed, DatabaseRefused):
            if days := await progress.count_days():
                out.write(f"{days:,} days are copied and are not read again by the next run\n")
            raise
        finally:
            refusals = await refused.write_file()
        if refusals:
            out.write(f"Refused: {refusals:,} points, with the reasons, in {refused.path}\n")
        return _summarized(job, differences, out, has_refusals=bool(refusals))


async def _compared(
    job: _Copy, reader: endpoints.Opened | None, measurement: str, out: TextIO
) -> Sequence[DayDifference]:
    if reader is None:
        out.write("The target cannot be read back by this command: nothing was compared\n")
        return ()
    if isinstance(reader, VictoriaMetrics):
        with suppress(QueryFailed, DatabaseRefused):  # a cluster does it by itself
            await reader.flush()
    source = job.source
    if isinstance(source, ConvertedSource):
        return await job.compare(
            ConversionComparison(source, _lookup(reader), measurement=measurement)
        )
    as_samples = isinstance(reader, VictoriaMetrics)
    return await job.compare(Comparison(source, reader, as_samples=as_samples))


def _lookup(reader: endpoints.Opened | None) -> InfluxQlReader:
    """Return what finds the points of the service in the target.

    Raises:
        SettingsError: it cannot be searched for them.
    """
    if isinstance(reader, InfluxQlReader):
        return reader
    raise SettingsError(
        "copy: --to-schema homeiq writes to InfluxDB 1 or 2, which can be searched for points that"
        " are there already. Set INFLUXDB_URL to one"
    )


class _Copy:
    """One copy: what is found in the source, and how far it is."""

    def __init__(
        self,
        source: Source,
        found: Sequence[Measurement],
        within: Period,
        *,
        progress: CopyProgress,
        refused: RefusedPoints,
        out: TextIO,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.source = source
        self._found = found
        self._within = within
        self._progress = progress
        self._refused = refused
        self._out = out
        self._sleep = sleep
        self._backoff = Backoff(max_s=_MAX_WAIT_S)
        self._bar = ProgressBar(out, "", total=0, unit="")
        self._waited_for = ""
        self.copied = 0
        """Values that were written by this run."""
        self.compared = 0
        """Values of the source that were compared by this run, about."""
        self.incomplete: list[str] = []
        """What the source counts and did not return."""

    async def write(self, sink: Sink, *, max_points: int, pace: _Pace) -> None:
        """Copy the days that are not copied."""
        writer = LineWriter(
            sink,
            refuse=self._refused.add_line,
            backoff=Backoff(max_s=_MAX_WAIT_S),
            max_points=max_points,
            waiting=self._waiting,
            sleep=self._sleep,
        )
        self._bar = await self._bar_of("Copying", {"copied", "verified"})
        for measurement in self._found:
            states = await self._progress.states(measurement.name)
            for span in spans_of(measurement, self._within, states):
                read = await self._patiently(
                    lambda: self._write(measurement, span, writer, pace)  # noqa: B023 - awaited at once
                )
                await self._refused.store()
                if self.source.counts_exactly and read < span.values:
                    self.incomplete.append(_incomplete(measurement, span, read))
                else:
                    await self._progress.record(measurement.name, span.days, "copied")
        self._bar.finish()

    async def compare(self, comparison: Comparison | ConversionComparison) -> list[DayDifference]:
        """Compare the days that are not compared, and return where the target lacks values."""
        self._bar = await self._bar_of("Comparing", {"verified"})
        found: list[DayDifference] = []
        for measurement in self._found:
            states = await self._progress.states(measurement.name)
            verified = {day for day, state in states.items() if state == "verified"}
            for span in spans_of(measurement, self._within, verified):
                different = await self._patiently(
                    lambda: comparison.differences(measurement.name, measurement.fields, span.days)  # noqa: B023 - awaited at once
                )
                await self._record(measurement, span, different)
                found += different
                self.compared += span.values
                self._bar.advance(span.values)
        self._bar.finish()
        return found

    async def _record(
        self, measurement: Measurement, span: ReadSpan, different: Sequence[DayDifference]
    ) -> None:
        lacking = {each.day for each in different if each.missing}
        equal = [day for day in span.days if day not in lacking]
        await self._progress.record(measurement.name, equal, "verified")
        # The next run copies them again.
        await self._progress.forget(measurement.name, lacking)

    async def _bar_of(self, what: str, done: set[str]) -> ProgressBar:
        total = 0
        for measurement in self._found:
            states = await self._progress.states(measurement.name)
            total += sum(
                values
                for day, values in days_of(measurement, self._within)
                if states.get(day) not in done
            )
        return ProgressBar(self._out, what, total=total, unit=self.source.unit)

    async def _write(
        self, measurement: Measurement, span: ReadSpan, writer: LineWriter, pace: _Pace
    ) -> int:
        """Copy a span and return how many values were read."""
        times = Period(span.days[0].start_ns, span.days[-1].end_ns)
        chunks = self.source.read(measurement.name, measurement.fields, times)
        copied = read_values = 0
        await self._refused.restart(measurement.name, times)
        async with aclosing(_ahead(chunks)) as read:
            async for chunk in read:
                for each in chunk.refused:
                    self._refused.add(each.text, each.reason, time_ns=each.time_ns)
                await pace.wait(len(chunk.rows))
                await writer.write([line_of(row) for row in chunk.rows])
                await self._refused.store_many()
                copied += sum(len(fields) for _, fields, _ in chunk.rows)
                read_values += chunk.values
                self._bar.advance(chunk.values)
        self.copied += copied
        self._waited_for = ""
        return read_values

    async def _patiently(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        """Return the result of an attempt, repeated while a database is down."""
        done = self._bar.done
        while True:
            try:
                result = await attempt()
            except QueryFailed as exc:
                self._waiting(str(exc))
                self._bar.done = done
                await self._sleep(self._backoff.next_s())
            else:
                self._backoff.reset()
                return result

    def _waiting(self, reason: str) -> None:
        if reason != self._waited_for:
            self._waited_for = reason
            self._bar.print(f"Waiting: {reason}")


class _Pace:
    """Bounds the points of a second."""

    def __init__(
        self,
        points_per_s: float | None,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._points_per_s = points_per_s
        self._clock = clock
        self._sleep = sleep
        self._free_at_s = clock()

    async def wait(self, points: int) -> None:
        """Wait until as many points may be sent."""
        if self._points_per_s is None:
            return
        if (wait_s := self._free_at_s - self._clock()) > 0:
            await self._sleep(wait_s)
        self._free_at_s = max(self._clock(), self._free_at_s) + points / self._points_per_s


async def _reader(client: QueryClient) -> endpoints.Opened | None:
    """Return what reads the target; None for InfluxDB 3, and what does not say what it is.

    Raises:
        QueryFailed: it does not respond.
    """
    try:
        return endpoints.reader_of(client, await client.kind())
    except DatabaseRefused:
        return None


async def _ahead(chunks: AsyncGenerator[Chunk, None]) -> AsyncGenerator[Chunk, None]:
    """Yield the chunks; the next one is read meanwhile."""

    async def following() -> Chunk | None:
        return await anext(chunks, None)

    reading = asyncio.create_task(following(), name="reading the source")
    try:
        while (chunk := await reading) is not None:
            reading = asyncio.create_task(following(), name="reading the source")
            yield chunk
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await chunks.aclose()


def _times(arguments: argparse.Namespace, *, is_converted: bool) -> Period:
    # What the service has not written yet cannot be found, and would be written twice.
    last = datetime.now(UTC) - (_UNSETTLED if is_converted else timedelta())
    since = -MAX_TIME_NS if arguments.since is None else nanoseconds(arguments.since)
    until = nanoseconds(arguments.until or last)
    if since >= until:
        raise SettingsError("copy: --since must lie before --until, and in the past")
    return Period(since, until)


def _print_omitted(source: Source, out: TextIO) -> None:
    if source.omitted:
        out.write(f"Not copied: {', '.join(source.omitted)}\n")


async def _show(source: Source, found: Sequence[Measurement], within: Period, out: TextIO) -> None:
    """Print what would be copied."""
    total = 0
    for measurement in found:
        values = sum(measurement.days.values)
        total += values
        first, last = (_day(measurement.days.numbers[at] * DAY_NS) for at in (0, -1))
        out.write(
            f"  {measurement.name}: about {values:,} {source.unit} on {len(measurement.days):,}"
            f" days, {first} to {last}\n"
        )
    out.write(f"In all about {total:,} {source.unit} of {len(found):,} measurements\n")
    for measurement in found[:_EXAMPLE_MEASUREMENTS]:
        day, _ = next(days_of(measurement, within))
        read = source.read(measurement.name, measurement.fields, day)
        async with aclosing(read):
            chunk = await anext(read, Chunk())
        examples = [*map(line_of, chunk.rows[:1]), *(each.text for each in chunk.refused[:1])]
        texts = (example.decode(errors="replace")[:_EXAMPLE_CHARS] for example in examples)
        out.writelines(f"Example: {text}\n" for text in texts)
    out.write("Nothing was written\n")


def _summarized(
    job: _Copy, differences: Sequence[DayDifference], out: TextIO, *, has_refusals: bool
) -> int:
    """Print the result and return the exit status."""
    out.write(f"Read and sent {job.copied:,} values\n")
    if isinstance(job.source, ConvertedSource):
        _print_conversion(job.source, out)
    out.writelines(f"{_difference(each)}\n" for each in differences[:_LISTED_DIFFERENCES])
    if len(differences) > _LISTED_DIFFERENCES:
        out.write(f"… and {len(differences) - _LISTED_DIFFERENCES:,} more days differ\n")
    out.writelines(f"{text}\n" for text in job.incomplete)
    lacking = [each for each in differences if each.missing]
    if lacking:
        out.write(
            f"Different: on {len(lacking):,} days the target lacks values; the next run copies"
            " these days again\n"
        )
    elif job.compared:
        out.write("Compared: the target has every value of the source\n")
    elif not job.copied:
        out.write("Everything was copied and compared before; --again starts over\n")
    return FAILED if lacking or has_refusals or job.incomplete else OK


def _print_conversion(source: ConvertedSource, out: TextIO) -> None:
    if source.existing:
        out.write(f"Left out: {source.existing:,} points that the target has already\n")
    unregistered = source.unregistered
    if unregistered:
        listed = [f"{entity_id} ({count:,})" for entity_id, count in sorted(unregistered.items())]
        more = f" and {len(listed) - _LISTED_ENTITIES:,} more" * (len(listed) > _LISTED_ENTITIES)
        out.write(
            f"Without area and device: {unregistered.total():,} points of {len(listed):,} entities"
            f" that are not in the catalog: {', '.join(listed[:_LISTED_ENTITIES])}{more}\n"
        )


def _difference(each: DayDifference) -> str:
    counts = (
        f"  {each.measurement} {_day(each.day.start_ns)}: {each.source.values:,} values in the"
        f" source, {each.target.values:,} in the target; {each.missing:,} are missing,"
        f" {each.extra:,} are only in the target"
    )
    missing = [f"    missing: {example[:_EXAMPLE_CHARS]}" for example in each.examples]
    return "\n".join([counts, *missing])


def _incomplete(measurement: Measurement, span: ReadSpan, read: int) -> str:
    return (
        f"Incomplete: of {measurement.name}, {_day(span.days[0].start_ns)} to"
        f" {_day(span.days[-1].start_ns)}, the source counts {span.values:,} values and returned"
        f" {read:,}; the next run copies these days again"
    )


def _day(time_ns: int) -> str:
    return moment_of(time_ns).date().isoformat()
