"""Client of a data API: sends devices and entities in chunks, apart from the event pipeline.

`POST /internal/devices/bulk_upsert` and `/internal/entities/bulk_upsert` accept a JSON array of
rows. Rows that could not be sent stay pending, the newest row per id.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Literal, NamedTuple, NoReturn, TypeAlias

import httpx
import msgspec

from app.discovery.columns import Row, difference, row_to_send
from app.discovery.refresh import RegistryUpdate
from app.discovery.registries import Kind, domains_of
from app.health import DataApiStatus
from app.runtime.connection_errors import DATA_API, obstacle, redirect
from app.runtime.errors import IngestError
from app.runtime.logging import RateLimitedLog, shown_url
from app.runtime.retry import Backoff, Breaker, contained, until_success
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
        self._source = source
        self._backoff = backoff
        self._breaker = breaker
        self._timeout_s = timeout_s
        self._max_rows = self._chunk_rows = chunk_rows
        self._sleep = sleep
        self._domains: Mapping[str, str | None] = {}
        self._pending: dict[Kind, dict[str, _PendingRow]] = {kind: {} for kind in _PATHS}
        """The newest version of each row that is to be sent, by id."""
        self._filled = asyncio.Event()
        self._sent = 0
        self._refused = 0
        self._last_sent: datetime | None = None
        self._problem: str | None = None

    async def refreshed(self, update: RegistryUpdate) -> None:
        """Queue all rows after a full refresh, otherwise those that changed."""
        self._domains = domains_of(update.now)
        for kind, pending in self._pending.items():
            found = difference(update.former, update.now, kind)
            former, now = update.former.raw.get(kind, {}), update.now.raw.get(kind, {})
            for row_id in now if update.whole else found.changed:
                pending[row_id] = _PendingRow(now[row_id])
            for row_id in found.removed:
                pending[row_id] = _PendingRow(former[row_id], removed=True)
        if any(self._pending.values()):
            self._filled.set()

    def status(self) -> DataApiStatus:
        """Return what was sent and what is pending."""
        waiting = sum(map(len, self._pending.values()))
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
        kind = next((kind for kind, pending in self._pending.items() if pending), None)
        if kind is None:
            self._filled.clear()
            return
        chunk = dict(islice(self._pending[kind].items(), self._chunk_rows))
        with contained("sending rows"):
            rows = msgspec.json.encode(list(self._rows(kind, chunk)))
            try:
                answer = await _post(client, _PATHS[kind], rows)
            except (httpx.HTTPError, httpx.InvalidURL) as exc:
                raise _NotAccepted(_why_unanswered(exc, self._url)) from exc
            self._answered(kind, chunk, answer)

    def _rows(self, kind: Kind, chunk: _Chunk) -> Iterator[Row]:
        for pending in chunk.values():
            row = row_to_send(kind, pending.row, domains=self._domains, source=self._source)
            yield {**row, "removed": True} if pending.removed else row

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
        self._forget(kind, chunk)
        self._sent += len(chunk)
        self._last_sent = datetime.now(UTC)
        self._chunk_rows = min(2 * self._chunk_rows, self._max_rows)
        self._breaker.succeeded()
        self._problem = None
        limited_log.resolved("The data API takes rows again")

    def _halve(self, kind: Kind, chunk: _Chunk, reason: str) -> None:
        """Send fewer rows at a time; give up a single refused row until it changes."""
        if len(chunk) > 1:
            self._chunk_rows = max(1, len(chunk) // 2)
            return
        self._forget(kind, chunk)
        self._refused += 1
        limited_log.warning(
            "The data API refused %s %r: %s", kind, next(iter(chunk)), reason, topic="refusals"
        )

    def _forget(self, kind: Kind, chunk: _Chunk) -> None:
        """Remove rows from the pending ones, except those that changed while they were sent."""
        pending = self._pending[kind]
        for row_id, sent in chunk.items():
            if pending.get(row_id) is sent:
                del pending[row_id]

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
