"""The write APIs of InfluxDB 1, 2 and 3 as data; the lines are the same for all.

https://docs.influxdata.com/influxdb/v1/tools/api/
https://docs.influxdata.com/influxdb/v2/api/v2/#operation/PostWrite
https://docs.influxdata.com/influxdb3/core/api/v3/#operation/PostWriteLP
"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Literal, TypeAlias

from app.runtime.logging import RateLimitedLog
from app.sinks.influxdb.http import Ask, Reply, Request, message, parsed
from app.sinks.influxdb.influxql import quoted

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

Version: TypeAlias = Literal["v1", "v2", "v3"]

_JSON = {"Content-Type": "application/json"}
_LINES = {"Content-Type": "text/plain; charset=utf-8", "Accept": "application/json"}
_GZIPPED_LINES = {**_LINES, "Content-Encoding": "gzip"}
_DURATION = re.compile(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The bucket to write to, and the credentials."""

    bucket: str
    """The bucket of version 2, the database of versions 1 and 3."""
    org: str = ""
    token: str = field(default="", repr=False)
    username: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one version of InfluxDB is written to, for one target."""

    version: Version
    """Its name, as in INFLUXDB_API."""
    write_path: str
    write_query: Mapping[str, str]
    credentials: Mapping[str, str] = field(repr=False)
    """The header with the token or the password; empty without one."""
    create: Callable[[Ask], Awaitable[bool]]
    """Creates the bucket or database; returns whether it exists now."""
    advice_by_status: Mapping[int, str]
    """What a person can do about a 401 or 403."""
    advice_by_missing: Mapping[str, str]
    """What a person can do about a 404, by the word that its message names."""
    retention_request: Request | None = None
    """Reads how long points are retained; None when it does not matter."""
    retention_s: Callable[[Reply], float | None] = lambda _: None
    """Reads the reply to it, in seconds; None for forever, or when it does not say."""

    def authorized(self, request: Request) -> Request:
        """Return the request with the credentials."""
        return replace(request, headers={**request.headers, **self.credentials})

    def write(self, lines: bytes, *, is_gzip: bool) -> Request:
        """Return the request that writes lines, with the credentials."""
        return Request(
            method="POST",
            path=self.write_path,
            query=self.write_query,
            headers={**(_GZIPPED_LINES if is_gzip else _LINES), **self.credentials},
            body=lines,
        )

    def advice(self, status: int, text: str) -> str | None:
        """Return what a person can do about a 401, 403 or 404; None when that is not known."""
        if status != HTTPStatus.NOT_FOUND:
            return self.advice_by_status.get(status)
        found = (advice for word, advice in self.advice_by_missing.items() if word in text)
        return next(found, None)


def dialect_for(version: Version, target: Target) -> Dialect:
    """Return the dialect of a version."""
    return {"v1": _v1, "v2": _v2, "v3": _v3}[version](target)


def is_missing(reply: Reply) -> bool:
    """Whether a 404 means that the bucket or database does not exist."""
    text = message(reply)
    return "bucket" in text or "database" in text


def _v1(to: Target) -> Dialect:
    """InfluxDB 1, VictoriaMetrics and others."""
    pair = base64.b64encode(f"{to.username}:{to.password}".encode()).decode()
    name = quoted(to.bucket)
    return Dialect(
        version="v1",
        write_path="/write",
        write_query={"db": to.bucket, "precision": "ns"},
        # Without a user the token, for a proxy in front of the database.
        credentials={"Authorization": f"Basic {pair}"} if to.username else _token("Token", to),
        create=lambda ask: _create_database(
            ask, to.bucket, Request(method="POST", path="/query", query=_q("CREATE DATABASE", name))
        ),
        advice_by_status={
            HTTPStatus.UNAUTHORIZED: "Check INFLUXDB_USERNAME and INFLUXDB_PASSWORD.",
            HTTPStatus.FORBIDDEN: (
                "Check that INFLUXDB_USERNAME may write to the database INFLUXDB_BUCKET."
            ),
        },
        advice_by_missing={
            "database": (
                "Create the database or check INFLUXDB_BUCKET; INFLUXDB_USERNAME may not create it."
            ),
        },
        retention_request=Request(path="/query", query=_q("SHOW RETENTION POLICIES ON", name)),
        retention_s=_default_policy_s,
    )


def _v2(to: Target) -> Dialect:
    """InfluxDB 2, and others with its write API."""
    missing = (
        "Create the bucket or check INFLUXDB_BUCKET; INFLUXDB_TOKEN may not create it in"
        " INFLUXDB_ORG."
    )
    return Dialect(
        version="v2",
        write_path="/api/v2/write",
        write_query={"org": to.org, "bucket": to.bucket, "precision": "ns"},
        credentials=_token("Token", to),
        create=lambda ask: _create_bucket(ask, to),
        advice_by_status={
            HTTPStatus.UNAUTHORIZED: "Check INFLUXDB_TOKEN, and that it belongs to INFLUXDB_ORG.",
            HTTPStatus.FORBIDDEN: (
                "Check that INFLUXDB_TOKEN may write to INFLUXDB_BUCKET in INFLUXDB_ORG."
            ),
        },
        advice_by_missing={
            "organization": "Check INFLUXDB_ORG.",
            "bucket": missing,
            "database": missing,
        },
        retention_request=Request(path="/api/v2/buckets", query={"org": to.org, "name": to.bucket}),
        retention_s=_expiry_s,
    )


def _v3(to: Target) -> Dialect:
    """InfluxDB 3, which deletes points beyond the retention and refuses none."""
    return Dialect(
        version="v3",
        write_path="/api/v3/write_lp",
        write_query={
            "db": to.bucket,
            "precision": "nanosecond",
            "accept_partial": "true",
            "no_sync": "false",  # acknowledged means durable
        },
        credentials=_token("Bearer", to),
        create=lambda ask: _create_database(
            ask,
            to.bucket,
            Request(
                method="POST",
                path="/api/v3/configure/database",
                headers=_JSON,
                body={"db": to.bucket},
            ),
        ),
        advice_by_status={
            HTTPStatus.UNAUTHORIZED: "Check INFLUXDB_TOKEN.",
            HTTPStatus.FORBIDDEN: (
                "Check that INFLUXDB_TOKEN may write to the database INFLUXDB_BUCKET."
            ),
        },
        advice_by_missing={
            "database": (
                "Create the database or check INFLUXDB_BUCKET; INFLUXDB_TOKEN may not create it."
            ),
        },
    )


async def _create_database(ask: Ask, name: str, request: Request) -> bool:
    reply = await ask(request)
    # Version 1 answers a failed statement with 200, too.
    is_success = reply.status in {HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.NO_CONTENT}
    is_new = is_success and b'"error"' not in reply.body
    if is_new:
        limited_log.info("Created database %r", name)
    # 409: another client has just created it
    return is_new or reply.status == HTTPStatus.CONFLICT


async def _create_bucket(ask: Ask, to: Target) -> bool:
    match parsed(await ask(Request(path="/api/v2/orgs", query={"org": to.org}))):
        case {"orgs": [{"id": str() as org_id}, *_]}:
            pass
        case _:
            return False
    body: dict[str, object] = {"orgID": org_id, "name": to.bucket, "retentionRules": []}
    reply = await ask(Request(method="POST", path="/api/v2/buckets", headers=_JSON, body=body))
    if reply.status == HTTPStatus.CREATED:
        limited_log.info("Created bucket %r in organization %r", to.bucket, to.org)
    # 422: another client has just created it
    return reply.status in {HTTPStatus.CREATED, HTTPStatus.UNPROCESSABLE_ENTITY}


def _default_policy_s(reply: Reply) -> float | None:
    match parsed(reply):
        case {"results": [{"series": [{"columns": list(names), "values": list(rows)}]}]}:
            policies = [dict(zip(names, row, strict=False)) for row in rows]
        case _:
            return None
    durations = [str(each.get("duration")) for each in policies if each.get("default") is True]
    return _seconds(durations[0]) if durations else None


def _expiry_s(reply: Reply) -> float | None:
    match parsed(reply):
        case {"buckets": [{"retentionRules": [{"everySeconds": int(seconds)}, *_]}, *_]}:
            return float(seconds) or None
        case _:
            return None


def _token(scheme: str, to: Target) -> Mapping[str, str]:
    return {"Authorization": f"{scheme} {to.token}"} if to.token else {}


def _q(statement: str, name: str) -> Mapping[str, str]:
    return {"q": f"{statement} {name}"}


def _seconds(duration: str) -> float | None:
    """Read a duration as InfluxDB 1 writes it, such as `168h0m0s`; None for zero: forever."""
    found = _DURATION.fullmatch(duration)
    if found is None:
        return None
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(3600 * hours + 60 * minutes + seconds) or None
