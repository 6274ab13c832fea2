"""Encodes changes for the journal, and for a database that gets another schema; pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from app.model import Change, Lines
from app.schema.home_assistant import HomeAssistantEncoder
from app.schema.homeiq import HomeiqEncoder, identity_of


class TwoEncodings:
    """Encodes each change twice: as the journal's own record, and for the database."""

    def __init__(
        self,
        record: HomeiqEncoder,
        database: HomeAssistantEncoder,
        *,
        corrected: Callable[[Mapping[str, int]], None],
    ) -> None:
        """`corrected` is called with what was left out, by kind."""
        self._record = record
        self._database = database
        self._corrected = corrected

    def encode(self, changes: Sequence[Change]) -> Lines:
        """Return one line of each encoding for each change, in order."""
        encoded = self._database.encode(changes)
        if encoded.corrections:
            self._corrected({str(kind): count for kind, count in encoded.corrections.items()})
        database = b"".join([line or b"\n" for line in encoded.lines])
        return replace(self._record.encode(changes), database=database)


def is_for_database_only(line: bytes) -> bool:
    """Whether a line is of Home Assistant's schema, whose `entity_id` lacks the domain."""
    identity = identity_of(line)
    return identity is not None and "." not in identity[0]
