"""What was measured, for people and for programs."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

_RESULTS = Path(__file__).with_name("results")
_CPUS = Path("/proc/cpuinfo")


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table, numbers to the right."""
    table = [list(heads), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    print()
    for line in (table[0], rule, *table[1:]):
        first, *others = zip(line, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]
        print(f"| {' | '.join(cells)} |", flush=True)


def percentile(values: Sequence[float], part: float) -> float:
    """Return the value below which this part of the values lies; 0 of nothing."""
    ordered = sorted(values)
    return ordered[int((len(ordered) - 1) * part)] if ordered else 0.0


def save(name: str, measured: object, *, published: bool) -> Path:
    """Write figures as `results/<name>.json`; those not `published` stay out of git."""
    path = _RESULTS / (f"{name}.json" if published else f"{name}.local.json")
    document = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "results": measured,
    }
    _RESULTS.mkdir(exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    return path


def machine() -> str:
    """Return a line about where it was measured."""
    names = [
        line.partition(":")[2].strip()
        for line in (_CPUS.read_text().splitlines() if _CPUS.exists() else ())
        if line.startswith("model name")
    ]
    processor = names[0] if names else platform.processor() or platform.machine()
    return f"{processor}, {os.cpu_count()} cores, Python {platform.python_version()}"
