"""The HTTP API of the service that uses DATA_DIR, for commands.

A DATA_DIR belongs to one process. While a service uses it, a command sends its requests there;
otherwise it opens the parts it needs in this process and sends the same requests to those.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from typing import TypeAlias

import httpx

from app.container import Container
from app.main import create_app
from app.runtime.addresses import origin, redirect_target
from app.runtime.connection_errors import SERVICE, obstacle
from app.runtime.errors import SettingsError, StorageLocked
from app.settings import Settings

Query: TypeAlias = Mapping[str, str | int | bool | Sequence[int] | None]
Open: TypeAlias = Callable[[Container], AbstractAsyncContextManager[None]]
"""Locks DATA_DIR and opens the parts of a container that a command needs."""

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound
_TIMEOUT = httpx.Timeout(10.0, read=300.0)
_UNPROCESSABLE = httpx.codes.UNPROCESSABLE_ENTITY


class ServiceApi:
    """Sends requests, and raises every answer that is an error."""

    def __init__(self, client: httpx.AsyncClient, *, url: str, is_local: bool) -> None:
        self.is_local = is_local
        """Whether the parts run in this process, because no service uses DATA_DIR."""
        self._client = client
        self._url = url

    async def request(
        self, method: str, path: str, query: Query | None = None, *, body: object = None
    ) -> httpx.Response:
        """Return a successful answer.

        Raises:
            SettingsError: the request is not valid; the message says why.
            StorageLocked: there is no answer, or it is another error.
        """
        with self._translated_errors(path):
            answer = await self._client.request(
                method, self._url + path, params=_given(query), json=body
            )
        return self._checked(answer)

    async def stream(self, path: str, query: Query) -> AsyncGenerator[bytes, None]:
        """Yield the body of a successful answer in blocks.

        Raises:
            StorageLocked: there is no answer, or it is an error.
        """
        with self._translated_errors(path):
            async with self._client.stream("GET", self._url + path, params=_given(query)) as answer:
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
                f"another process uses DATA_DIR and does not answer at {self._url}{path}:"
                f" {obstacle(SERVICE, exc, url=self._url).why}."
                " Check WEBSOCKET_INGESTION_HOST and WEBSOCKET_INGESTION_PORT, or set --url"
            ) from exc

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if answer.is_success:
            return answer
        if answer.status_code == _UNPROCESSABLE:
            raise SettingsError(_detail(answer))
        raise StorageLocked(
            f"the service that uses DATA_DIR answered {answer.status_code} at"
            f" {answer.request.url.copy_with(query=None)}: {_detail(answer)}"
        )


@asynccontextmanager
async def service_api(
    chosen: Settings, *, url: str | None, opened: Open
) -> AsyncIterator[ServiceApi]:
    """Yield the API of the service that uses DATA_DIR, else that of the parts opened here.

    Args:
        chosen: the settings.
        url: where the service listens; None for the address in the settings.
        opened: opens what the command needs if no service uses DATA_DIR.

    Raises:
        SettingsError: a service uses DATA_DIR, and the settings do not contain its address.
        StorageError: a file cannot be read or written.
    """
    container = Container(settings=chosen)
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(opened(container))
        except StorageLocked:
            address, transport = url.rstrip("/") if url else address_of(chosen), None
        else:
            address, transport = "http://127.0.0.1", httpx.ASGITransport(create_app(container))
        key = chosen.serving.api_key
        client = httpx.AsyncClient(
            # As bytes, because httpx refuses text that is not ASCII.
            headers={b"Authorization": f"Bearer {key.get_secret_value()}".encode()} if key else {},
            follow_redirects=False,
            timeout=_TIMEOUT,
            transport=transport,
            trust_env=False,  # a proxy for the internet does not reach this machine
        )
        await stack.enter_async_context(client)
        yield ServiceApi(client, url=address, is_local=transport is not None)


def _given(query: Query | None) -> dict[str, str | int | bool | Sequence[int]]:
    return {name: value for name, value in (query or {}).items() if value is not None}


def _detail(answer: httpx.Response) -> str:
    if answer.has_redirect_location:
        target = redirect_target(str(answer.request.url), answer.headers["Location"])
        return (
            f"it redirects to {origin(target)}, where the key is not sent."
            " Set --url to the address of the service itself"
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
        SettingsError: the port is 0, so it is not known.
    """
    host, port = chosen.serving.host, chosen.serving.port
    if not port:
        raise SettingsError(
            "WEBSOCKET_INGESTION_PORT: is 0, so only the log of the running service contains its"
            " port. Set --url"
        )
    host = _EVERYWHERE.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
