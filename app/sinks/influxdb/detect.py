"""Detects the version of InfluxDB, for INFLUXDB_API=auto."""

from __future__ import annotations

import re
from http import HTTPStatus

from app.runtime.text import one_line
from app.sinks.influxdb.dialects import Version
from app.sinks.influxdb.http import Ask, Reply, Request, parsed
from app.sinks.influxdb.response import NO_ANSWER, failure
from app.sinks.outcomes import Held, ServerProcess, Unavailable

_REQUESTS = (
    Request(path="/ping"),
    Request(path="/health"),
    # VictoriaMetrics below a path like /influx has neither of the others.
    Request(path="/query", query={"q": "SHOW DATABASES"}),
)

_VICTORIA_METRICS_FLUSH_S = 10.0
"""It flushes accepted points to disk every 1 to 5 seconds, depending on its version."""
_STARTED = re.compile(rb"^process_start_time_seconds[ \t]+([0-9.e+]{1,30})", re.MULTILINE)


async def detect(ask: Ask) -> Version | Held | Unavailable:
    """Return the server's version; Held when it responds and the version remains unknown."""
    try:
        found = await stated_version(ask)
    except NO_ANSWER as exc:
        outcome = failure(exc)
        return outcome if isinstance(outcome, Held) else Unavailable(reason=outcome.reason)
    return unnamed(found) if isinstance(found, Reply) else found


async def stated_version(ask: Ask) -> Version | Reply:
    """Return the version that the server states, else its reply to `/ping`.

    Raises:
        one of NO_ANSWER: there was no response.
    """
    replies = []
    for request in _REQUESTS:
        reply = await ask(request)
        if (version := version_of(reply)) is not None:
            return version
        replies.append(reply)
    return replies[0]


def version_of(reply: Reply) -> Version | None:
    """Return the version in a reply's headers or JSON; None when neither states one."""
    stated = reply.headers.get("X-Influxdb-Version", "")
    match parsed(reply):
        case {"name": "influxdb", "version": str() as version} if not stated:
            stated = version
        case _:
            pass
    number = re.match(r"v?([123])\.", stated)
    if number is None:
        return None
    versions: dict[str, Version] = {"1": "v1", "2": "v2", "3": "v3"}
    return versions[number[1]]


def server_process(metrics: Reply, *, flush_s: float | None) -> ServerProcess:
    """Return the process that a database's Prometheus metrics describe.

    `flush_s` overrides the known flush interval.
    """
    is_victoria_metrics = metrics.status == HTTPStatus.OK and b"vm_app_version" in metrics.body
    if flush_s is None:
        flush_s = _VICTORIA_METRICS_FLUSH_S if is_victoria_metrics else 0.0
    started = _STARTED.search(metrics.body) if metrics.status == HTTPStatus.OK else None
    return ServerProcess(flush_s=flush_s, started=started[1].decode() if started else None)


def unnamed(ping: Reply) -> Version | Held | Unavailable:
    """Return the version of a server that states none, from its reply to `/ping`."""
    match ping.status:
        case HTTPStatus.NO_CONTENT:
            # VictoriaMetrics and most others accept lines at the path of version 1.
            return "v1"
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            return Held(
                reason="the server asks for credentials before it can be identified",
                status=ping.status,
                advice="Set INFLUXDB_TOKEN, or INFLUXDB_USERNAME and INFLUXDB_PASSWORD.",
            )
        case status if HTTPStatus.OK <= status < HTTPStatus.BAD_REQUEST:
            location = ping.headers.get("Location", "").partition("?")[0]
            what = f"{status} to {location}" if location else f"{status}"
            reason = f"{what} is not InfluxDB's /ping; check INFLUXDB_URL"
            return Unavailable(reason=one_line(reason))
        case status if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return Unavailable(reason=f"{status} instead of a version: it may be starting")
        case status:
            return Held(
                reason="what answers does not say which InfluxDB it is",
                status=status,
                advice="Check INFLUXDB_URL, or set INFLUXDB_API to v1, v2 or v3.",
            )
