"""Client of a data API: sends devices and entities in chunks, apart from the event pipeline.

`POST /internal/devices/bulk_upsert` and `/internal/entities/bulk_upsert` accept a JSON array of
rows. Rows that could not be sent stay pending, the newest row per id.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Literal, NamedTuple, NoReturn, TypeAlias

import httpx
import msgspec

from app.discovery.columns import difference, row_to_send
from app.discovery.refresh import RegistryUpdate
from app.discovery.registries import Kind, domains_of
from app.health import DataApiStatus
from app.runtime.connection_errors import DATA_API, obstacle, redirect
from app.runtime.errors import IngestError
from app.runtime.logging import RateLimitedLog, shown_url
from app.runtime.retry import Backoff, Breaker, contained, until_success
from app.runtime.time import utc_now
from app.runtime.tolerant_json import UNREADABLE

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

Verdict = Literal["accepted", "halve", "retry"]

_PATHS: Mapping[Kind, str] = {
    "device": "/internal/devices/bulk_upsert",
    "entity": "/internal/entities/bulk_upsert",
}
"""In the order they are sent: an entity follows its device."""

_ADVICE = "Check DATA_API_URL and DATA_API_KEY, and that the data API runs."
_MAX_REASON = 200
_ANSWER_BYTES = 65_536
_FAILURES_BEFORE_HALVING = 3


def verdict_on(status: int) -> Verdict:
    """Return what a status means for the chunk that was sent."""
    if httpx.codes.is_success(status):
        return "accepted"
    # Too many rows, or one that is refused: halving finds out which.
    return "halve" if status in {400, 413, 422} else "retry"


@dataclass(frozen=True, slots=True, eq=False)
class _PendingRow:
    """One version of a row; a newer version of the same row is another object."""

    row: bytes
    removed: bool = False


_Chunk: TypeAlias = Mapping[str, _PendingRow]


class _PendingRows:
    """The newest version of each row that is to be sent, in chunks that shrink and grow."""

    def __init__(self, *, source: str, chunk_rows: int) -> None:
        self._source = source
        self._max_rows = self._chunk_rows = chunk_rows
        self._domains: Mapping[str, str | None] = {}
        self._rows: dict[Kind, dict[str, _PendingRow]] = {kind: {} for kind in _PATHS}

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))

    def add(self, update: RegistryUpdate) -> None:
        """Add all rows after a full refresh, otherwise those that changed."""
        self._domains = domains_of(update.now)
        for kind, pending in self._rows.items():
            found = difference(update.former, update.now, kind)
            former, now = update.former.raw.get(kind, {}), update.now.raw.get(kind, {})
            for row_id in now if update.is_full else found.changed:
                pending[row_id] = _PendingRow(now[row_id])
            for row_id in found.removed:
                pending[row_id] = _PendingRow(former[row_id], removed=True)

    def next_chunk(self) -> tuple[Kind, _Chunk]:
        """Return rows of one kind."""
        kind = next(kind for kind, pending in self._rows.items() if pending)
        return kind, dict(islice(self._rows[kind].items(), self._chunk_rows))

    def encoded(self, kind: Kind, chunk: _Chunk) -> bytes:
        """Return the JSON array of a chunk."""
        return msgspec.json.encode(
            [
                row_to_send(kind, pending.row, domains=self._domains, source=self._source)
                | ({"removed": True} if pending.removed else {})
                for pending in chunk.values()
            ]
        )

    def accepted(self, kind: Kind, chunk: _Chunk) -> None:
        """Remove accepted rows; the next chunk is larger."""
        self.remove(kind, chunk)
        self._chunk_rows = min(2 * self._chunk_rows, self._max_rows)

    def halve(self, chunk: _Chunk) -> None:
        """Make the next chunks half as large as this one."""
        self._chunk_rows = max(1, len(chunk) // 2)

    def remove(self, kind: Kind, chunk: _Chunk) -> None:
        """Remove rows, except those that changed while they were sent."""
        pending = self._rows[kind]
        for row_id, sent in chunk.items():
            if pending.get(row_id) is sent:
                del pending[row_id]


class _NotAccepted(IngestError):
    """A chunk was not accepted; the message says why."""


class DataApi:
    """Sends rows to the data API: `refreshed` queues them, `run` sends them."""

    def __init__(
        self,
        url: str,
        *,
        key: str,
        source: str,
        backoff: Backoff,
        breaker: Breaker,
        timeout_s: float = 30.0,
        chunk_rows: int = 500,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`key` is empty for none, `source` the name of this Home Assistant."""
        self._url = url
        self._key = key
        self._backoff = backoff
        self._breaker = breaker
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._pending = _PendingRows(source=source, chunk_rows=chunk_rows)
        self._filled = asyncio.Event()
        self._sent = 0
        self._refused = 0
        self._last_sent: datetime | None = None
        self._problem: str | None = None

    async def refreshed(self, update: RegistryUpdate) -> None:
        """Queue all rows after a full refresh, otherwise those that changed."""
        self._pending.add(update)
        if self._pending:
            self._filled.set()

    def status(self) -> DataApiStatus:
        """Return what was sent and what is pending."""
        waiting = len(self._pending)
        reason = None
        if self._problem is not None:
            reason = (
                f"The data API does not take rows: {self._problem}. {waiting} rows wait. {_ADVICE}"
            )
        return DataApiStatus(
            rows_sent=self._sent,
            rows_waiting=waiting,
            rows_refused=self._refused,
            last_sent=self._last_sent,
            reason=reason,
            breaker=self._breaker.status(),
        )

    async def run(self) -> NoReturn:
        """Send pending rows, indefinitely."""
        async with self._client() as client:
            while True:
                await self._filled.wait()
                await until_success(
                    partial(self._send_chunk, client),
                    backoff=self._backoff,
                    breaker=self._breaker,
                    failed=self._failed,
                    sleep=self._sleep,
                )

    async def probe(self) -> str | None:
        """Send an empty list; return why it was not accepted, None when it was."""
        async with self._client() as client:
            try:
                answer = await _post(client, _PATHS["device"], b"[]")
            except (httpx.HTTPError, httpx.InvalidURL) as exc:
                return _why_unanswered(exc, self._url)
        return None if verdict_on(answer.status) == "accepted" else _reason(answer)

    def _client(self) -> httpx.AsyncClient:
        headers = {b"Content-Type": b"application/json", b"Accept-Encoding": b"identity"}
        if self._key:
            # As bytes, because httpx refuses text that is not ASCII.
            headers[b"Authorization"] = f"Bearer {self._key}".encode()
        return httpx.AsyncClient(
            base_url=self._url,
            headers=headers,
            timeout=self._timeout_s,
            follow_redirects=False,
            # Without the environment's proxy, which is meant for downloads.
            transport=httpx.AsyncHTTPTransport(),
        )

    async def _send_chunk(self, client: httpx.AsyncClient) -> None:
        """Send one chunk.

        Raises:
            IngestError: it was not accepted; try again later.
        """
        if not self._pending:
            self._filled.clear()
            return
        with contained("sending rows"):
            kind, chunk = self._pending.next_chunk()
            rows = self._pending.encoded(kind, chunk)
            try:
                answer = await _post(client, _PATHS[kind], rows)
            except (httpx.HTTPError, httpx.InvalidURL) as exc:
                raise _NotAccepted(_why_unanswered(exc, self._url)) from exc
            self._answered(kind, chunk, answer)

    def _answered(self, kind: Kind, chunk: _Chunk, answer: _Answer) -> None:
        match verdict_on(answer.status):
            case "accepted":
                self._accepted(kind, chunk)
            case "halve":
                self._halve(kind, chunk, _reason(answer))
            case "retry":
                failures = self._breaker.failure_count + 1
                failing = answer.status == httpx.codes.INTERNAL_SERVER_ERROR
                if failing and failures >= _FAILURES_BEFORE_HALVING:
                    self._halve(kind, chunk, _reason(answer))  # one of the rows may be the cause
                raise _NotAccepted(_reason(answer))

    def _accepted(self, kind: Kind, chunk: _Chunk) -> None:
        self._pending.accepted(kind, chunk)
        self._sent += len(chunk)
        self._last_sent = utc_now()
        self._breaker.succeeded()
        self._problem = None
        limited_log.resolved("The data API takes rows again")

    def _halve(self, kind: Kind, chunk: _Chunk, reason: str) -> None:
        """Send fewer rows at a time; give up a single refused row until it changes."""
        if len(chunk) > 1:
            self._pending.halve(chunk)
            return
        self._pending.remove(kind, chunk)
        self._refused += 1
        limited_log.warning(
            "The data API refused %s %r: %s", kind, next(iter(chunk)), reason, topic="refusals"
        )

    def _failed(self, exc: IngestError, _: float) -> None:
        self._problem = str(exc)
        limited_log.warning(
            "The data API at %s does not take rows: %s",
            shown_url(self._url),
            exc,
            kind=str(exc),
        )


class _Answer(NamedTuple):
    url: str
    status: int
    text: bytes
    """The beginning of the body."""
    location: str | None
    """Target of a redirect."""


def _reason(answer: _Answer) -> str:
    """Return why rows were not accepted, in one line."""
    if answer.location is None:
        return reason_of(answer.status, answer.text)
    return str(redirect(DATA_API, answer.url, location=answer.location, status=answer.status))


async def _post(client: httpx.AsyncClient, path: str, rows: bytes) -> _Answer:
    """Send rows; read only the beginning of the response, which may have any length."""
    async with client.stream("POST", path, content=rows) as response:
        text = b""
        # Raw, because decompression may expand a body a thousandfold.
        async for chunk in response.aiter_raw(_ANSWER_BYTES):
            text += chunk
            if len(text) >= _ANSWER_BYTES:
                break
    location = response.headers["Location"] if response.has_redirect_location else None
    return _Answer(str(response.url), response.status_code, text[:_ANSWER_BYTES], location)


def _why_unanswered(exc: Exception, url: str) -> str:
    """Return why there was no response."""
    if isinstance(exc, httpx.TimeoutException):
        return "no answer in time"
    if isinstance(exc, httpx.RemoteProtocolError):
        return "the response is incomplete or not HTTP"
    return obstacle(DATA_API, exc, url=url).why


def reason_of(status: int, text: bytes) -> str:
    """Return status and reason in one line."""
    try:
        reason = msgspec.json.decode(text, type=_Refusal).detail
    except UNREADABLE:
        reason = httpx.codes.get_reason_phrase(status)
    return f"{status} {reason}"[:_MAX_REASON]


class _Refusal(msgspec.Struct):
    detail: str
