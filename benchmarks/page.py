"""The tables of benchmarks/README.md, from results/*.json: `python -m benchmarks.page`."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from benchmarks.end_to_end import Outcome, outcome_rows
from benchmarks.growth import Point, print_growth
from benchmarks.stages import Cost, print_stages
from benchmarks.start import Start, print_start
from benchmarks.tables import print_table

Results = TypeVar("Results")

_HERE = Path(__file__).parent
_README = _HERE / "README.md"
_COLUMNS = 3
"""Of outcomes in one table: more are not readable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What the plain way costs on the same events."""

    events: int
    cpu_us_per_event: float


class _Document(msgspec.Struct, frozen=True):
    """A file of results."""

    measured_at: str
    machine: str
    results: msgspec.Raw


def print_ratios(baseline: Baseline, outcomes: Sequence[Outcome]) -> None:
    """Print the plain way beside the whole service."""
    plain = baseline.cpu_us_per_event
    rows = [["the plain way, without its WebSocket", f"{plain:.1f}", "1.0"]]
    rows += [
        [
            f"the service, {outcome.name}",
            f"{outcome.cpu_us_per_event:.1f}",
            f"{plain / outcome.cpu_us_per_event:.1f}",
        ]
        for outcome in outcomes
    ]
    print_table(["compared in this run", "CPU µs per event", "times cheaper"], rows)


def refresh() -> None:
    """Write the tables of what was measured last into the page, each between its marks."""
    text = _README.read_text()
    for name, tables in _sections():
        marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        assert marks.search(text), f"the page has no place for {name}"
        text = marks.sub(partial(_between, tables), text)
    _README.write_text(text)


def _between(tables: str, marks: re.Match[str]) -> str:
    return f"{marks[1]}{tables}\n{marks[2]}"


def _sections() -> Iterator[tuple[str, str]]:
    """Yield what was measured on this machine or is published; parts may be missing."""
    if _measured("stages"):
        yield "stages", _printed("stages", list[Cost], print_stages)
    if _measured("end-to-end"):
        yield "end-to-end", _printed("end-to-end", list[Outcome], _print_outcomes)
    if _measured("baseline", "end-to-end"):
        outcomes = _results("end-to-end", list[Outcome])
        yield "ratios", _printed("baseline", Baseline, partial(print_ratios, outcomes=outcomes))
    if _measured("start"):
        yield "start", _printed("start", Start, print_start)
    if _measured("growth-entities"):
        yield "entities", _printed("growth-entities", list[Point], print_growth)
    if _measured("growth-journal"):
        yield "journal", _printed("growth-journal", list[Point], print_growth)


def _measured(*names: str) -> bool:
    return all((_HERE / "results" / f"{name}.json").exists() for name in names)


def _print_outcomes(outcomes: Sequence[Outcome]) -> None:
    for start in range(0, len(outcomes), _COLUMNS):
        some = outcomes[start : start + _COLUMNS]
        print_table(["", *(outcome.name for outcome in some)], outcome_rows(some))


def _printed(name: str, kind: type[Results], show: Callable[[Results], None]) -> str:
    """Return a table as it is printed, and when and where it was measured."""
    document = _document(name)
    page = io.StringIO()
    with contextlib.redirect_stdout(page):
        show(_results(name, kind))
    return f"{page.getvalue()}\n*{document.measured_at}, {document.machine}*\n"


def _results(name: str, kind: type[Results]) -> Results:
    return msgspec.json.decode(_document(name).results, type=kind)


def _document(name: str) -> _Document:
    return msgspec.json.decode((_HERE / "results" / f"{name}.json").read_bytes(), type=_Document)


if __name__ == "__main__":
    refresh()
