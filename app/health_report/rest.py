"""Publishes health by Home Assistant's REST API.

https://developers.home-assistant.io/docs/api/rest. Setting a state requires an administrator's
token; a notification requires any.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

import httpx

from app.health_report.reporter import ReportRefused
from app.health_report.sensors import SENSORS, Notice, Reading, prefix_of, title_of
from app.runtime.connection_errors import HOME_ASSISTANT, obstacle
from app.runtime.tls import ClientTls

_REFUSED = {
    HTTPStatus.UNAUTHORIZED: "HOME_ASSISTANT_TOKEN is not accepted, or is not an administrator's,"
    " which HEALTH_IN_HOME_ASSISTANT=rest requires",
    HTTPStatus.FORBIDDEN: "HOME_ASSISTANT_TOKEN may not do this",
    HTTPStatus.BAD_GATEWAY: "it does not run",
}


class RestApi:
    """Home Assistant's REST API, below the address of its WebSocket API."""

    def __init__(
        self,
        websocket_url: str,
        *,
        token: str,
        ssl_verify: bool,
        headers: Mapping[str, str] | None = None,
        client_cert: Path | None = None,
        client_key: Path | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        """`websocket_url` ends in `/websocket`; the others are as for the WebSocket API."""
        url = httpx.URL(websocket_url)
        # A user in the address would replace the token, as both are sent in one header.
        self._url = url.copy_with(
            scheme={"ws": "http", "wss": "https"}[url.scheme],
            path=f"{url.path.removesuffix('/websocket').removesuffix('/api')}/api",
            userinfo=b"",
        )
        self._token = token
        self._tls = ClientTls(verify=ssl_verify, client_cert=client_cert, client_key=client_key)
        self._headers = dict(headers or {})
        self._timeout_s = timeout_s

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[RestClient]:
        """Return a client for as long as the block lasts.

        Raises:
            ReportRefused: the client certificate cannot be used.
        """
        try:
            context = self._tls.context()
        except OSError as exc:
            raise ReportRefused(str(exc)) from exc
        async with httpx.AsyncClient(
            headers=self._headers | {"Authorization": f"Bearer {self._token}"},
            timeout=self._timeout_s,
            follow_redirects=False,
            # Without the environment's proxy, which is meant for downloads.
            transport=httpx.AsyncHTTPTransport(verify=context),
        ) as client:
            yield RestClient(client, str(self._url))


class RestClient:
    """Sends requests to the REST API."""

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client = client
        self._url = url

    async def post(self, path: str, body: Mapping[str, object]) -> None:
        """Send a request.

        Raises:
            ReportRefused: it was not accepted.
        """
        url = f"{self._url}/{path}"
        try:
            # The body of the response is not read.
            async with self._client.stream("POST", url, json=body) as response:
                status = response.status_code
        except httpx.TimeoutException as exc:
            raise ReportRefused("no answer in time") from exc
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise ReportRefused(obstacle(HOME_ASSISTANT, exc, url=url).why) from exc
        if not httpx.codes.is_success(status):
            phrase = httpx.codes.get_reason_phrase(status)
            why = _REFUSED.get(HTTPStatus(status)) if phrase else None
            raise ReportRefused(f"{status} {why or phrase}")


class RestSensors:
    """Sensors as states, which Home Assistant forgets when it restarts."""

    name = "health sensors"

    def __init__(self, api: RestApi, *, instance: str | None) -> None:
        self._api = api
        self._instance = instance

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[_RestSensors]:
        """Return a publisher for as long as the block lasts."""
        async with self._api.opened() as client:
            yield _RestSensors(client, self._instance)


class _RestSensors:
    def __init__(self, client: RestClient, instance: str | None) -> None:
        self._client = client
        self._prefix, self._title = prefix_of(instance), title_of(instance)

    async def publish(self, values: Mapping[str, Reading]) -> None:
        """Set the states."""
        for sensor in SENSORS:
            if (reading := values.get(sensor.key)) is None:
                continue
            name = {"friendly_name": f"{self._title} {sensor.name}"}
            await self._client.post(
                f"states/{sensor.entity_id(self._prefix)}",
                {
                    "state": "unknown" if reading.state is None else reading.state,
                    "attributes": {**name, **sensor.description, **reading.attributes},
                },
            )

    async def goodbye(self) -> None:
        """Make the sensors unavailable."""
        unavailable = Reading(state="unavailable")
        await self.publish(dict.fromkeys((sensor.key for sensor in SENSORS), unavailable))


class RestNotifications:
    """A persistent notification."""

    name = "health notification"

    def __init__(self, api: RestApi, *, instance: str | None) -> None:
        self._api = api
        self._instance = instance

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[_RestNotifications]:
        """Return a publisher for as long as the block lasts."""
        async with self._api.opened() as client:
            yield _RestNotifications(client, self._instance)


class _RestNotifications:
    def __init__(self, client: RestClient, instance: str | None) -> None:
        self._client = client
        self._id = f"{prefix_of(instance)}_data_at_risk"
        self._title = f"{title_of(instance)}: data is at risk"

    async def publish(self, values: Mapping[str, Notice | None]) -> None:
        """Create the notification, or dismiss it, also one of the run before."""
        for notice in values.values():
            body = {"notification_id": self._id}
            action = "dismiss"
            if notice is not None:
                body |= {"title": self._title, "message": notice.text}
                action = "create"
            await self._client.post(f"services/persistent_notification/{action}", body)

    async def goodbye(self) -> None:
        """Leave the notification: what it says is still true while nothing runs."""
