"""Numbered points, so that a test can identify the ones it received."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from app.model import Lines, Row
from app.runtime.metrics import Telemetry
from app.sinks.batches import Batch, whole_rows

_NUMBER = re.compile(rb" value=(\d+)i")
_GZIP_WINDOW = 31


def numbered_lines(first: int, count: int, *, padding: bytes = b"") -> Lines:
    """Return `count` lines whose values count up from `first`."""
    data = b"".join(
        b'events value=%di,text="%s" %d\n' % (number, padding, number)
        for number in range(first, first + count)
    )
    return Lines(data, count)


def numbers_in(rows: Sequence[Row]) -> list[int]:
    """Return the values that the rows hold, in order."""
    return [
        int(number)
        for row in rows
        for number in _NUMBER.findall(zlib.decompress(row.gzip, _GZIP_WINDOW))
    ]


def new_telemetry() -> Telemetry:
    """Return telemetry with a separate registry, for one test."""
    return Telemetry(CollectorRegistry())


def batch_of(lines: Sequence[bytes]) -> Batch:
    """Return lines as a batch of a sink."""
    data = gzip.compress(b"".join(line + b"\n" for line in lines))
    return whole_rows([Row(1, len(lines), data, 0.0)])
