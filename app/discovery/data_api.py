"""Devices and entities sent to a data API, in chunks, behind ingestion and never in its way.

`POST /internal/devices/bulk_upsert` and `/internal/entities/bulk_upsert` take a JSON array of
rows. What could not be sent waits, by id and so within a bound, until it can.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Literal, NamedTuple, NoReturn, TypeAlias

import httpx
import msgspec

from app.discovery.columns import Row, difference, row_to_send
from app.discovery.refresh import RegistryUpdate
from app.discovery.registries import Kind, domains_of
from app.health import BreakerStatus, DataApiStatus
from app.runtime.connection_errors import DATA_API, is_os_error, obstacle, redirect, sentence
from app.runtime.errors import Unforeseen
from app.runtime.logging import RateLimitedLog, shown_url
from app.runtime.retry import Backoff, Breaker, contained
from app.runtime.tolerant_json import UNREADABLE

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

Meaning = Literal["taken", "too_much", "hold"]

_PATHS: Mapping[Kind, str] = {
    "device": "/internal/devices/bulk_upsert",
    "entity": "/internal/entities/bulk_upsert",
}
"""In the order they are sent: an entity follows its device."""

_ADVICE = "Check DATA_API_URL and DATA_API_KEY, and that the data API runs."
_MAX_REASON = 200
_ANSWER_BYTES = 65_536
_FAILURES_BEFORE_HALVING = 3


def meaning_of(status: int) -> Meaning:
    """Say what a status means for the rows in hand."""
    if httpx.codes.is_success(status):
        return "taken"
    # Too many rows, or one among them that it cannot take: less at a time finds out.
    return "too_much" if status in {400, 413, 422} else "hold"


class _Letter:
    """One row as it was when it was noted; another of the same row is another letter."""

    __slots__ = ("removed", "row")

    def __init__(self, row: bytes, *, removed: bool = False) -> None:
        self.row = row
        self.removed = removed


_Chunk: TypeAlias = Mapping[str, _Letter]


class DataApi:
    """Sends rows to the data API; `refreshed` notes what must be sent, `run` sends it."""

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
        """Take its address, the key (empty for none) and the name of this Home Assistant."""
        self._url = url
        self._key = key
        self._source = source
        self._backoff = backoff
        self._breaker = breaker
        self._timeout_s = timeout_s
        self._max_rows = self._chunk_rows = chunk_rows
        self._sleep = sleep
        self._domains: Mapping[str, str | None] = {}
        self._outbox: dict[Kind, dict[str, _Letter]] = {kind: {} for kind in _PATHS}
        """What waits to be sent, by id: the newest row only."""
        self._filled = asyncio.Event()
        self._sent = 0
        self._refused = 0
        self._last_sent: datetime | None = None
        self._trouble: str | None = None
        self._failures_in_a_row = 0
        """How often in a row the chunk in hand was not taken."""

    async def refreshed(self, news: RegistryUpdate) -> None:
        """Note what must be sent: all there is after a whole refresh, else what changed."""
        self._domains = domains_of(news.now)
        for kind, waiting in self._outbox.items():
            found = difference(news.former, news.now, kind)
            former, now = news.former.raw.get(kind, {}), news.now.raw.get(kind, {})
            for row_id in now if news.whole else found.changed:
                waiting[row_id] = _Letter(now[row_id])
            for row_id in found.removed:
                waiting[row_id] = _Letter(former[row_id], removed=True)
        if any(self._outbox.values()):
            self._filled.set()

    def status(self) -> DataApiStatus:
        """Return how far it is."""
        waiting = sum(map(len, self._outbox.values()))
        reason = None
        if self._trouble is not None:
            reason = (
                f"The data API does not take rows: {self._trouble}. {waiting} rows wait. {_ADVICE}"
            )
        return DataApiStatus(
            rows_sent=self._sent,
            rows_waiting=waiting,
            rows_refused=self._refused,
            last_sent=self._last_sent,
            reason=reason,
            breaker=BreakerStatus(
                state=self._breaker.state,
                failure_count=self._breaker.failure_count,
                last_failure=self._breaker.last_failure,
            ),
        )

    async def run(self) -> NoReturn:
        """Send what waits, for ever."""
        async with self._client() as client:
            while True:
                await self._filled.wait()
                try:
                    with contained("sending rows"):
                        wait_s = await self._send_chunk(client)
                except Unforeseen as exc:
                    wait_s = self._hold(str(exc))
                if wait_s > 0:
                    await self._sleep(wait_s)

    async def probe(self) -> str | None:
        """Send a list without a row, and return why it is not taken; None when it is."""
        async with self._client() as client:
            try:
                answer = await _post(client, _PATHS["device"], b"[]")
            except (httpx.HTTPError, httpx.InvalidURL) as exc:
                return _why_unanswered(exc, self._url)
        return None if meaning_of(answer.status) == "taken" else self._told(answer)

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
            # Of its own, so that a proxy set for downloads is not asked for a neighbor.
            transport=httpx.AsyncHTTPTransport(),
        )

    async def _send_chunk(self, client: httpx.AsyncClient) -> float:
        """Send one chunk and return the seconds to wait before the next."""
        kind = next((kind for kind, waiting in self._outbox.items() if waiting), None)
        if kind is None:
            self._filled.clear()
            return 0.0
        chunk = dict(islice(self._outbox[kind].items(), self._chunk_rows))
        try:
            answer = await _post(
                client, _PATHS[kind], msgspec.json.encode(list(self._rows(kind, chunk)))
            )
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            return self._hold(_why_unanswered(exc, self._url))
        return self._answered(kind, chunk, answer)

    def _answered(self, kind: Kind, chunk: _Chunk, answer: _Answer) -> float:
        meaning, told = meaning_of(answer.status), self._told(answer)
        if meaning == "taken":
            self._taken(kind, chunk)
            return 0.0
        if meaning == "too_much":
            self._halve(kind, chunk, told)
            return 0.0
        wait_s = self._hold(told)
        failing = answer.status == httpx.codes.INTERNAL_SERVER_ERROR
        if failing and self._failures_in_a_row >= _FAILURES_BEFORE_HALVING:
            self._halve(kind, chunk, told)  # one of the rows may be the reason
        return wait_s

    def _told(self, answer: _Answer) -> str:
        """Return why rows were not taken, in one line."""
        if answer.location is None:
            return reason_of(answer.status, answer.text)
        return sentence(
            redirect(DATA_API, answer.url, location=answer.location, status=answer.status)
        )

    def _rows(self, kind: Kind, chunk: _Chunk) -> Iterator[Row]:
        for letter in chunk.values():
            row = row_to_send(kind, letter.row, domains=self._domains, source=self._source)
            yield {**row, "removed": True} if letter.removed else row

    def _taken(self, kind: Kind, chunk: _Chunk) -> None:
        self._forget(kind, chunk)
        self._sent += len(chunk)
        self._last_sent = datetime.now(UTC)
        self._chunk_rows = min(2 * self._chunk_rows, self._max_rows)
        self._failures_in_a_row = 0
        self._backoff.reset()
        self._breaker.succeeded()
        self._trouble = None
        limited_log.resolved("The data API takes rows again")

    def _halve(self, kind: Kind, chunk: _Chunk, told: str) -> None:
        """Send less at a time; a single row that is refused is given up until it changes."""
        if len(chunk) > 1:
            self._chunk_rows = max(1, len(chunk) // 2)
            return
        self._forget(kind, chunk)
        self._refused += 1
        limited_log.warning(
            "The data API refused %s %r: %s", kind, next(iter(chunk)), told, topic="refusals"
        )

    def _forget(self, kind: Kind, chunk: _Chunk) -> None:
        """Take rows out of the outbox, but not those that changed while they were sent."""
        waiting = self._outbox[kind]
        for row_id, letter in chunk.items():
            if waiting.get(row_id) is letter:
                del waiting[row_id]

    def _hold(self, trouble: str) -> float:
        self._failures_in_a_row += 1
        self._breaker.failed(trouble)
        limited_log.warning(
            "The data API at %s does not take rows: %s",
            shown_url(self._url),
            trouble,
            kind=trouble,
        )
        self._trouble = trouble
        return max(self._backoff.next_s(), self._breaker.wait_s)


class _Answer(NamedTuple):
    url: str
    status: int
    text: bytes
    """The beginning of the body."""
    location: str | None
    """Where a redirect points to."""


async def _post(client: httpx.AsyncClient, path: str, rows: bytes) -> _Answer:
    """Send rows and read no more of the answer than is looked at: it may be of any length."""
    async with client.stream("POST", path, content=rows) as response:
        text = b""
        # Raw: a body that is decompressed may be a thousand times as long.
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
    if is_os_error(exc):
        return obstacle(DATA_API, exc, url=url).why
    if isinstance(exc, httpx.RemoteProtocolError):
        return "the response is incomplete or not HTTP"
    if not str(exc):  # as when the server hangs up during the TLS handshake
        return "the connection is cut at once"
    return f"{type(exc).__name__} {exc}"


def reason_of(status: int, text: bytes) -> str:
    """Return status and reason in one line."""
    try:
        reason = msgspec.json.decode(text, type=_Refusal).detail
    except UNREADABLE:
        reason = httpx.codes.get_reason_phrase(status)
    return f"{status} {reason}"[:_MAX_REASON]


class _Refusal(msgspec.Struct):
    detail: str
