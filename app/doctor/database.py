"""Checks of the database: writes a point as the service does, reads it back and deletes it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from datetime import datetime
from typing import TYPE_CHECKING

from app.container import Container
from app.doctor import checks
from app.doctor.findings import Finding, failed, ok, warning
from app.doctor.probe import MEASUREMENT, Probe, is_found, is_removed
from app.model import http_date
from app.runtime.connection_errors import DATABASE
from app.runtime.logging import shown_url
from app.sinks.influxdb.detect import detect, version_of
from app.sinks.influxdb.dialects import Target, Version
from app.sinks.influxdb.http import Reply, Request
from app.sinks.influxdb.response import NO_ANSWER, failure
from app.sinks.outcomes import Accepted, Held, Unavailable

if TYPE_CHECKING:
    from app.settings import Settings
    from app.sinks.influxdb.sink import InfluxSink

NAMES = ("database", "database_clock", "database_write", "database_read_back")

_REQUEST_S = 6.0
_LOOKS = 3
_BETWEEN_LOOKS_S = 0.5


def names(chosen: Settings) -> tuple[str, ...]:
    """Return the names of the checks; without an address there is no database to check."""
    return NAMES if chosen.influx.url is not None else NAMES[:1]


async def check(
    chosen: Settings, *, clock: Callable[[], datetime]
) -> AsyncGenerator[Finding, None]:
    """Yield the findings in the order of `names`, up to one that makes the rest impossible."""
    url = chosen.influx.url
    if url is None:
        yield ok("database", "INFLUXDB_URL is unset: the embedded store in DATA_DIR is used.")
        return
    sink = Container(settings=chosen).influx_sink(
        timeout_s=min(_REQUEST_S, chosen.influx.timeout_s), flush_s=None
    )
    assert sink is not None
    async with sink:
        try:
            reply = await sink.ask(Request(path="/ping"))
        except NO_ANSWER as exc:
            yield _unreachable(url, exc)
            return
        named = await _version(sink, reply, shown_url(url))
        if url.startswith("https:") and not chosen.influx.ssl_verify:
            named = checks.unchecked(named)
        yield named
        if named.status == "failed":
            return
        theirs = http_date(reply.headers.get("Date"))
        yield checks.clock(
            "database_clock",
            "The database",
            None if theirs is None else (theirs - clock()).total_seconds(),
            matters="Retention, and queries for the last hours, would be off by that.",
        )
        probe = Probe(time.time_ns())
        answer = await sink.write(probe.batch())
        version: Version = "v1" if sink.dialect is None else sink.dialect.version
        yield checks.written(answer, version=version, bucket=chosen.influx.bucket)
        if isinstance(answer, Accepted):
            target = Target(bucket=chosen.influx.bucket, org=chosen.influx.org)
            yield await _read_back(sink, probe, version=version, target=target)


def _unreachable(url: str, exc: Exception) -> Finding:
    meaning = failure(exc)
    if isinstance(meaning, Held):
        return failed("database", f"The database cannot be used: {meaning.reason}.", meaning.advice)
    return checks.not_reached("database", DATABASE, shown_url(url), exc)


async def _version(sink: InfluxSink, ping: Reply, address: str) -> Finding:
    if version_of(ping) is not None:
        stated = ping.headers.get("X-Influxdb-Version", "of an unknown version")
        return ok("database", f"InfluxDB {stated} answers at {address}.", version=stated)
    match await detect(sink.ask):
        case Held(reason=reason, advice=advice, status=status):
            what = f"Something answers at {address} ({status}): {reason}."
            return warning("database", what, advice)
        case Unavailable(reason=reason):
            what = f"The server at {address} is not a database: {reason}."
            return failed("database", what, "Check INFLUXDB_URL.")
        case version:
            return ok(
                "database",
                f"The server at {address} does not report its version; the API of InfluxDB"
                f" {version[1:]} is used.",
                version=None,
            )


async def _read_back(
    sink: InfluxSink, probe: Probe, *, version: Version, target: Target
) -> Finding:
    try:
        reply = await sink.ask(probe.question(version, target))
        for _ in range(_LOOKS):
            if is_found(reply) is not False:
                break
            # In some databases a query finds a point only a moment after it was accepted.
            await asyncio.sleep(_BETWEEN_LOOKS_S)
            reply = await sink.ask(probe.question(version, target))
        removal = probe.removal(version, target)
        removed = removal is not None and is_removed(await sink.ask(removal))
        # A server that does not find its points cannot be trusted about deleting them.
        removed = removed and is_found(reply) is not False
    except NO_ANSWER as exc:
        return warning(
            "database_read_back",
            f"The database accepted the point, then did not answer: {failure(exc).reason}.",
            "Try again; if it does not help, look at the log of the database.",
        )
    return checks.read_back(
        found=is_found(reply), status=reply.status, removed=removed, measurement=MEASUREMENT
    )
