"""How each version of InfluxDB is written to: one class for each, the lines the same for all.

A dialect describes requests and reads what they were answered; sending them is the sink's.
"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Literal, Protocol, TypeAlias

from app.runtime.logging import RateLimitedLog
from app.sinks.influxdb.response import Reply, message, parsed

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

Version: TypeAlias = Literal["v1", "v2", "v3"]

_LINES = {"Content-Type": "text/plain; charset=utf-8", "Accept": "application/json"}
_GZIPPED_LINES = {**_LINES, "Content-Encoding": "gzip"}
_JSON = {"Content-Type": "application/json"}
_DURATION = re.compile(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request, without the address of the server."""

    method: Literal["GET", "POST"] = "GET"
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """They may hold the token or the password."""
    body: bytes | dict[str, object] | None = None
    """Bytes are sent as they are, a dict as JSON."""


@dataclass(frozen=True, slots=True)
class Body:
    """Lines as they are sent."""

    data: bytes
    is_gzip: bool = True

    @property
    def headers(self) -> Mapping[str, str]:
        """What the lines are."""
        return _GZIPPED_LINES if self.is_gzip else _LINES


Ask: TypeAlias = Callable[[Request], Awaitable[Reply]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where points go, and as whom."""

    bucket: str
    """The bucket of version 2, the database of versions 1 and 3."""
    org: str = ""
    token: str = field(default="", repr=False)
    username: str = ""
    password: str = field(default="", repr=False)


class Dialect(Protocol):
    """One way to write to InfluxDB."""

    @property
    def version(self) -> Version:
        """Its name, as in INFLUXDB_API."""
        ...

    @property
    def write_path(self) -> str:
        """Where it writes to."""
        ...

    def authorized(self, request: Request) -> Request:
        """Return the request with this dialect's credentials, if there are any."""
        ...

    def write(self, body: Body) -> Request:
        """Return the request that writes lines."""
        ...

    def retention_question(self) -> Request | None:
        """Return the request that asks how long points are kept; None when there is none."""
        ...

    def retention_s(self, reply: Reply) -> float | None:
        """Read the answer to it in seconds; None for forever, or when it says nothing."""
        ...

    async def create(self, ask: Ask) -> bool:
        """Create the bucket or database and say whether it is there now."""
        ...

    def advice(self, status: int, message: str) -> str | None:
        """Say what a person can do about a 401, 403 or 404; None when it is not understood."""
        ...


class V1:
    """InfluxDB 1, VictoriaMetrics and others.

    https://docs.influxdata.com/influxdb/v1/tools/api/
    """

    version: Version = "v1"
    write_path = "/write"

    def __init__(self, target: Target) -> None:
        """Take the database and the user."""
        self._target = target

    def authorized(self, request: Request) -> Request:
        """Name user and password; without a user the token, for what stands in front."""
        to = self._target
        if to.username:
            pair = base64.b64encode(f"{to.username}:{to.password}".encode()).decode()
            return _authorized(request, f"Basic {pair}")
        return _authorized(request, f"Token {to.token}" if to.token else "")

    def write(self, body: Body) -> Request:
        """Return the request that writes lines."""
        query = {"db": self._target.bucket, "precision": "ns"}
        return Request(
            method="POST", path=self.write_path, query=query, headers=body.headers, body=body.data
        )

    async def create(self, ask: Ask) -> bool:
        """Create the database and say whether it is there now."""
        query = {"q": f"CREATE DATABASE {_quoted(self._target.bucket)}"}
        reply = await ask(Request(method="POST", path="/query", query=query))
        # Also a statement that failed is answered with 200.
        created = reply.status == HTTPStatus.OK and b'"error"' not in reply.body
        if created:
            limited_log.info("Created database %r", self._target.bucket)
        return created

    def retention_question(self) -> Request:
        """Return the request that asks for the retention policies of the database."""
        query = {"q": f"SHOW RETENTION POLICIES ON {_quoted(self._target.bucket)}"}
        return Request(path="/query", query=query)

    def retention_s(self, reply: Reply) -> float | None:
        """Read the duration of the default policy, in seconds; None for forever."""
        match parsed(reply):
            case {"results": [{"series": [{"columns": list(names), "values": list(rows)}]}]}:
                policies = [dict(zip(names, row, strict=False)) for row in rows]
            case _:
                return None
        durations = [str(each.get("duration")) for each in policies if each.get("default") is True]
        return _seconds(durations[0]) if durations else None

    def advice(self, status: int, message: str) -> str | None:
        """Say what a person can do about a 401, 403 or 404; None when it is not understood."""
        match status:
            case HTTPStatus.UNAUTHORIZED:
                return "Check INFLUXDB_USERNAME and INFLUXDB_PASSWORD."
            case HTTPStatus.FORBIDDEN:
                return "Check that INFLUXDB_USERNAME may write to the database INFLUXDB_BUCKET."
            case HTTPStatus.NOT_FOUND if "database" in message:
                return (
                    "Create the database or check INFLUXDB_BUCKET; INFLUXDB_USERNAME may not"
                    " create it."
                )
            case _:
                return None


class V2:
    """InfluxDB 2, and what speaks its write API.

    https://docs.influxdata.com/influxdb/v2/api/v2/#operation/PostWrite
    """

    version: Version = "v2"
    write_path = "/api/v2/write"

    def __init__(self, target: Target) -> None:
        """Take the bucket, its organization and the token."""
        self._target = target

    def authorized(self, request: Request) -> Request:
        """Name the token."""
        return _authorized(request, f"Token {self._target.token}" if self._target.token else "")

    def write(self, body: Body) -> Request:
        """Return the request that writes lines."""
        query = {"org": self._target.org, "bucket": self._target.bucket, "precision": "ns"}
        return Request(
            method="POST", path=self.write_path, query=query, headers=body.headers, body=body.data
        )

    async def create(self, ask: Ask) -> bool:
        """Create the bucket and say whether it is there now."""
        org, bucket = self._target.org, self._target.bucket
        found = await ask(Request(path="/api/v2/orgs", query={"org": org}))
        match parsed(found):
            case {"orgs": [{"id": str() as org_id}, *_]}:
                pass
            case _:
                return False
        wanted: dict[str, object] = {"orgID": org_id, "name": bucket, "retentionRules": []}
        created = await ask(
            Request(method="POST", path="/api/v2/buckets", headers=_JSON, body=wanted)
        )
        if created.status == HTTPStatus.CREATED:
            limited_log.info("Created bucket %r in organization %r", bucket, org)
        # 422: someone else has just created it
        return created.status in {HTTPStatus.CREATED, HTTPStatus.UNPROCESSABLE_ENTITY}

    def retention_question(self) -> Request:
        """Return the request that asks for the bucket."""
        query = {"org": self._target.org, "name": self._target.bucket}
        return Request(path="/api/v2/buckets", query=query)

    def retention_s(self, reply: Reply) -> float | None:
        """Read the rule that expires points, in seconds; None for forever."""
        match parsed(reply):
            case {"buckets": [{"retentionRules": [{"everySeconds": int(seconds)}, *_]}, *_]}:
                return float(seconds) or None
            case _:
                return None

    def advice(self, status: int, message: str) -> str | None:
        """Say what a person can do about a 401, 403 or 404; None when it is not understood."""
        match status:
            case HTTPStatus.UNAUTHORIZED:
                return "Check INFLUXDB_TOKEN, and that it belongs to INFLUXDB_ORG."
            case HTTPStatus.FORBIDDEN:
                return "Check that INFLUXDB_TOKEN may write to INFLUXDB_BUCKET in INFLUXDB_ORG."
            case HTTPStatus.NOT_FOUND if "organization" in message:
                return "Check INFLUXDB_ORG."
            case HTTPStatus.NOT_FOUND if "bucket" in message or "database" in message:
                return (
                    "Create the bucket or check INFLUXDB_BUCKET; INFLUXDB_TOKEN may not create"
                    " it in INFLUXDB_ORG."
                )
            case _:
                return None


class V3:
    """InfluxDB 3.

    https://docs.influxdata.com/influxdb3/core/api/v3/#operation/PostWriteLP
    """

    version: Version = "v3"
    write_path = "/api/v3/write_lp"

    def __init__(self, target: Target) -> None:
        """Take the database and the token."""
        self._target = target

    def authorized(self, request: Request) -> Request:
        """Name the token."""
        return _authorized(request, f"Bearer {self._target.token}" if self._target.token else "")

    def write(self, body: Body) -> Request:
        """Return the request that writes lines."""
        query = {
            "db": self._target.bucket,
            "precision": "nanosecond",
            "accept_partial": "true",
            # Acknowledged means durable, there too.
            "no_sync": "false",
        }
        return Request(
            method="POST", path=self.write_path, query=query, headers=body.headers, body=body.data
        )

    async def create(self, ask: Ask) -> bool:
        """Create the database and say whether it is there now."""
        wanted: dict[str, object] = {"db": self._target.bucket}
        created = await ask(
            Request(method="POST", path="/api/v3/configure/database", headers=_JSON, body=wanted)
        )
        is_new = created.status in {HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.NO_CONTENT}
        if is_new:
            limited_log.info("Created database %r", self._target.bucket)
        # 409: someone else has just created it
        return is_new or created.status == HTTPStatus.CONFLICT

    def retention_question(self) -> None:
        """Return None: version 3 deletes what is too old and refuses nothing."""

    def retention_s(self, reply: Reply) -> None:
        """Return None, for the same reason."""

    def advice(self, status: int, message: str) -> str | None:
        """Say what a person can do about a 401, 403 or 404; None when it is not understood."""
        match status:
            case HTTPStatus.UNAUTHORIZED:
                return "Check INFLUXDB_TOKEN."
            case HTTPStatus.FORBIDDEN:
                return "Check that INFLUXDB_TOKEN may write to the database INFLUXDB_BUCKET."
            case HTTPStatus.NOT_FOUND if "database" in message:
                return (
                    "Create the database or check INFLUXDB_BUCKET; INFLUXDB_TOKEN may not"
                    " create it."
                )
            case _:
                return None


def dialect(version: Version, target: Target) -> Dialect:
    """Return the dialect of a version."""
    match version:
        case "v1":
            return V1(target)
        case "v2":
            return V2(target)
        case "v3":
            return V3(target)


def is_missing(reply: Reply) -> bool:
    """Whether a write failed because its bucket or database does not exist."""
    said = message(reply)
    return reply.status == HTTPStatus.NOT_FOUND and ("bucket" in said or "database" in said)


def _authorized(request: Request, value: str) -> Request:
    if not value:
        return request
    return replace(request, headers={**request.headers, "Authorization": value})


def _quoted(name: str) -> str:
    # InfluxQL escapes within double quotes; names may hold anything but slashes.
    escaped = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _seconds(duration: str) -> float | None:
    """Read a duration as InfluxDB 1 writes it, for example `168h0m0s`; None for zero: forever."""
    found = _DURATION.fullmatch(duration)
    if found is None:
        return None
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(3600 * hours + 60 * minutes + seconds) or None
