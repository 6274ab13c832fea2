"""The time of day, from the one clock that can be replaced: `time.time`."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def utc_now() -> datetime:
    """Return the current time in UTC.

    `datetime.now` reads the system's clock past `time.time`, so a simulation could not set it.
    """
    return datetime.fromtimestamp(time.time(), UTC)
