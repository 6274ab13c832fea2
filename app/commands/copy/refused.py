"""The points that could not be copied, with the reasons: stored, and listed in a file."""

from __future__ import annotations

from pathlib import Path

from app.commands.copy.progress import CopyProgress, UncopiedPoint
from app.commands.copy.source import Period

_MAX_PENDING = 5_000


class RefusedPoints:
    """The refused points of one copy. Those of a span that is copied again are replaced."""

    def __init__(self, progress: CopyProgress, path: Path) -> None:
        """Assign where they are stored, and the file that lists them."""
        self.path = path
        self._progress = progress
        self._measurement = ""
        self._pending: list[UncopiedPoint] = []

    async def restart(self, measurement: str, times: Period) -> None:
        """Forget those of a span that is about to be copied."""
        self._measurement = measurement
        self._pending.clear()
        await self._progress.forget_refused(measurement, times)

    def add(self, line: bytes, reason: str, *, time_ns: int) -> None:
        """Add a point of that span; durable after `store`."""
        self._pending.append(UncopiedPoint(time_ns, line, reason))

    def add_line(self, line: bytes, reason: str) -> None:
        """Add a line of line protocol."""
        self.add(line, reason, time_ns=int(line[line.rfind(b" ") :]))

    async def store_many(self) -> None:
        """Store what was added once there is much of it, to bound memory."""
        if len(self._pending) >= _MAX_PENDING:
            await self.store()

    async def store(self) -> None:
        """Make what was added durable."""
        if self._pending:
            await self._progress.add_refused(self._measurement, self._pending)
            self._pending.clear()

    async def write_file(self) -> int:
        """Write every refused point to the file, after its reason, and return their number.

        Raises:
            StorageError: it cannot be written.
        """
        return await self._progress.list_refused(self.path)
