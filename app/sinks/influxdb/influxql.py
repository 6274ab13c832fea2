"""InfluxQL: statements, and the chunked answers of InfluxDB 1; pure.

Answers are read as MessagePack and not as JSON: it has integers apart from floats, `-0.0`, and
the bytes of a string as they are stored.

https://archive.docs.influxdata.com/influxdb/v1.6/tools/api/#query-http-endpoint
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import msgpack

from app.runtime.errors import DatabaseRefused, QueryFailed
from app.runtime.text import one_line

CONTENT_TYPE = "application/x-msgpack"

Value: TypeAlias = bytes | float | bool | int | None
Values: TypeAlias = Sequence[Value]

_MAX_CHUNK_BYTES = 256_000_000


class Series(NamedTuple):
    """A part of one series of an answer."""

    name: bytes
    tags: Mapping[bytes, bytes]
    columns: Sequence[bytes]
    rows: Sequence[Values]


class ChunkedAnswer:
    """Decodes an answer from its parts, which may be cut anywhere."""

    def __init__(self) -> None:
        self._unpacker = msgpack.Unpacker(
            raw=True, use_list=False, max_buffer_size=_MAX_CHUNK_BYTES, strict_map_key=False
        )
        self._is_whole = False

    def feed(self, data: bytes) -> Iterator[Series]:
        """Yield the series that are complete with this part.

        Raises:
            QueryFailed: it is no answer of InfluxDB.
            DatabaseRefused: the answer is the error of a statement.
        """
        try:
            self._unpacker.feed(data)
            for document in self._unpacker:
                yield from self._series(document)
        except (ValueError, TypeError, AttributeError, KeyError, msgpack.BufferFull) as exc:
            raise QueryFailed("the answer is not what InfluxDB 1 answers to a query") from exc

    def close(self) -> None:
        """Check that nothing is missing.

        Raises:
            QueryFailed: the answer ended early.
        """
        if not self._is_whole:
            raise QueryFailed("the answer to a query ended early")

    def _series(self, document: Mapping[bytes, Any]) -> Iterator[Series]:
        if error := document.get(b"error"):
            raise _refused(error)
        results = document[b"results"]
        is_partial = False
        for result in results:
            if error := result.get(b"error"):
                raise _refused(error)
            is_partial = is_partial or bool(result.get(b"partial"))
            for each in result.get(b"series", ()):
                yield Series(
                    each.get(b"name", b""),
                    each.get(b"tags", {}),
                    each[b"columns"],
                    each.get(b"values", ()),
                )
        self._is_whole = not is_partial


def quoted(name: str) -> str:
    """Return a name as an identifier, which may hold anything."""
    escaped = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _refused(error: object) -> DatabaseRefused:
    text = error.decode(errors="replace") if isinstance(error, bytes) else repr(error)
    return DatabaseRefused(f"The database refuses a query: {one_line(text)}")
