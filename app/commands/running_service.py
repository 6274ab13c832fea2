"""The service that holds DATA_DIR, asked over HTTP by a command."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TypeAlias

import httpx

from app.runtime.addresses import origin, redirect_target
from app.runtime.errors import SettingsError, StorageLocked
from app.settings import Settings

Query: TypeAlias = Mapping[str, str | int | Sequence[int]]

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound
_TIMEOUT = httpx.Timeout(10.0, read=300.0)


class RunningService:
    """Asks the service; whatever it does not answer well is raised as `StorageLocked`."""

    def __init__(self, client: httpx.AsyncClient, *, url: str) -> None:
        """Take a client that carries the key, and the address of the service."""
        self._client = client
        self._url = url

    async def ask(
        self, method: str, path: str, query: Query | None = None, *, body: object = None
    ) -> httpx.Response:
        """Return a good answer.

        Raises:
            StorageLocked: there is none, or it is an error; the message says what to do.
        """
        with self._translated_errors(path):
            answer = await self._client.request(method, self._url + path, params=query, json=body)
        return self._checked(answer)

    async def stream(self, path: str, query: Query) -> AsyncGenerator[bytes, None]:
        """Yield the body of a good answer, block by block.

        Raises:
            StorageLocked: there is none, or it is an error.
        """
        with self._translated_errors(path):
            async with self._client.stream("GET", self._url + path, params=query) as answer:
                if answer.is_error:
                    await answer.aread()
                self._checked(answer)
                async for block in answer.aiter_bytes():
                    yield block

    @contextmanager
    def _translated_errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise StorageLocked(
                f"a service holds DATA_DIR and does not answer at {self._url}{path}: {exc}."
                " Check WEBSOCKET_INGESTION_HOST and WEBSOCKET_INGESTION_PORT, or say --url"
            ) from exc

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if answer.is_success:
            return answer
        raise StorageLocked(
            f"the service that holds DATA_DIR answered {answer.status_code} at"
            f" {answer.request.url.copy_with(query=None)}: {_detail(answer)}"
        )


@asynccontextmanager
async def running_service(chosen: Settings, *, url: str | None) -> AsyncIterator[RunningService]:
    """Yield the service at `url`, else where the settings say.

    Raises:
        SettingsError: the settings do not say where it is.
    """
    address = url.rstrip("/") if url else address_of(chosen)
    key = chosen.serving.api_key
    async with httpx.AsyncClient(
        # As bytes, because httpx refuses text that is not ASCII.
        headers={b"Authorization": f"Bearer {key.get_secret_value()}".encode()} if key else {},
        follow_redirects=False,
        timeout=_TIMEOUT,
        trust_env=False,  # a proxy for the internet does not reach this machine
    ) as client:
        yield RunningService(client, url=address)


def _detail(answer: httpx.Response) -> str:
    if answer.has_redirect_location:
        target = redirect_target(str(answer.request.url), answer.headers["Location"])
        return (
            f"it redirects to {origin(target)}, where the key is not sent."
            " Say the address of the service itself with --url"
        )
    try:
        document = answer.json()
    except ValueError:
        document = None
    match document:
        case {"detail": str() as detail}:
            return detail
        case _:
            return answer.reason_phrase


def address_of(chosen: Settings) -> str:
    """Return where the service listens, as a program on this machine reaches it.

    Raises:
        SettingsError: with port 0 nobody knows.
    """
    host, port = chosen.serving.host, chosen.serving.port
    if not port:
        raise SettingsError(
            "WEBSOCKET_INGESTION_PORT: is 0, so only the log of the running service knows its"
            " port. Say it with --url"
        )
    host = _EVERYWHERE.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
