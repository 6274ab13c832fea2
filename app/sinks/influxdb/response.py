"""Translates HTTP responses to failed writes into outcomes; pure.

All versions of InfluxDB agree on the statuses; the dialect knows which variables to check.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from http import HTTPStatus

import aiohttp

from app.model import http_date
from app.runtime.addresses import is_upgrade, origin, redirect_target
from app.runtime.connection_errors import DATABASE, is_tls_failure, obstacle
from app.runtime.text import one_line
from app.runtime.time import utc_now
from app.sinks.influxdb.dialects import Dialect
from app.sinks.influxdb.http import Reply, message
from app.sinks.influxdb.refusals import is_partial_write, verdict
from app.sinks.outcomes import (
    Busy,
    Failure,
    Held,
    ServerFailed,
    TimedOut,
    TooLarge,
    Unavailable,
)

NO_ANSWER = (aiohttp.ClientError, OSError, ValueError)
"""What a request raises: TimeoutError is an OSError, an unusable address a ValueError."""

_WRONG_ADDRESS = "Check INFLUXDB_URL and INFLUXDB_API: what answers there is not {path}."
_WRONG_SETTINGS = (
    # VictoriaMetrics responds with 400 and InfluxDB 3 with 400 or 422 where others use 404 or
    # 401: no line is accepted, whatever it holds. Only the beginning of a message is compared,
    # because a database may quote the line behind it.
    ("unsupported path requested", _WRONG_ADDRESS),
    ("Authorization header was malformed", "Check INFLUXDB_TOKEN."),
    ("invalid character in database", "Set INFLUXDB_BUCKET to letters, digits, - and _."),
    ("db name ", "Set INFLUXDB_BUCKET to letters, digits, - and _; a letter or digit first."),
    ("Adding a new database would exceed", "Set INFLUXDB_BUCKET to a database that exists."),
)
# Every pattern here is linear: after a mismatch no pattern scans the same text again.
_QUOTED: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    # A quoted line names things in a home, and /health shows reasons to everyone. Cut from the
    # first quotation mark to the last one, because a line may hold any text.
    (re.compile(r"(unable to parse) '(.*': |.*)", re.DOTALL), r"\1 a point: "),
    # A current VictoriaMetrics quotes the whole rest of the request, and then the cause.
    (
        re.compile(
            r'(incorrect influx line) "(?:[^"\\]|\\.)*+(?:": ([A-Za-z ]{1,60}) "|).*', re.DOTALL
        ),
        lambda found: f"{found[1]}: {found[2]}" if found[2] else str(found[1]),
    ),
    (re.compile(r"`.*", re.DOTALL), "`…`"),
)
_TOO_LARGE = re.compile(r"max request size \(\d+ bytes\) exceeded")


def outcome_of(  # noqa: PLR0911 - a table: a row each
    reply: Reply, *, dialect: Dialect, secrets: Sequence[str] = (), url: str = ""
) -> Failure:
    """Return the outcome of a write with any response but 204; its reason has no secret."""
    text = _error_text(reply)
    reason = one_line(text, secrets)
    match reply.status:
        case HTTPStatus.BAD_REQUEST | HTTPStatus.UNPROCESSABLE_ENTITY:
            if (advice := _wrong_setting(text, dialect)) is not None:
                return Held(reason=reason, status=reply.status, advice=advice)
            return verdict(text, reason=reason, status=reply.status)
        case HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return TooLarge(reason=f"{reply.status} {reason}")
        case HTTPStatus.TOO_MANY_REQUESTS | HTTPStatus.SERVICE_UNAVAILABLE:
            asked_s = retry_after_s(reply.headers.get("Retry-After", ""), now=utc_now())
            return Busy(reason=reason, status=reply.status, retry_after_s=asked_s)
        case HTTPStatus.REQUEST_TIMEOUT:
            return TimedOut(reason=f"{reply.status} {reason}")
        case status if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            if _TOO_LARGE.fullmatch(text):  # InfluxDB 3 has no 413
                return TooLarge(reason=f"{status} {reason}")
            if is_partial_write(text):  # InfluxDB 2.0
                return verdict(text, reason=reason, status=status)
            return ServerFailed(reason=reason, status=status)
        case status if status >= HTTPStatus.BAD_REQUEST:
            advice = dialect.advice(status, message(reply)) or _wrong_address(dialect)
            return Held(reason=reason, status=status, advice=advice)
        case _:
            return Unavailable(reason=_not_influxdb(reply, secrets, url))


def failure(exc: Exception) -> TimedOut | Unavailable | Held:
    """Return the outcome of a request without a response."""
    match exc:
        case aiohttp.ClientConnectorCertificateError():  # which is a ValueError, too
            return Unavailable(reason=str(obstacle(DATABASE, exc.certificate_error)))
        case ValueError():
            # Its text may hold what must not be shown: a password in the address, the token.
            return Held(
                reason="no request can be made of the settings",
                advice="Check INFLUXDB_URL for a misspelt host and INFLUXDB_TOKEN for line breaks.",
            )
        case aiohttp.ConnectionTimeoutError():
            return Unavailable(reason="no connection in time")
        case TimeoutError():
            return TimedOut(reason="no answer in time")
        case _:
            return Unavailable(reason=_no_response(exc))


def _no_response(exc: Exception) -> str:
    closed_in_tls = isinstance(exc, aiohttp.ClientConnectorError) and exc.strerror is None
    if closed_in_tls or is_tls_failure(exc):
        return str(obstacle(DATABASE, exc, url="https:"))
    match exc:
        case aiohttp.ClientConnectorError():
            return f"no connection to {exc.host}:{exc.port}: {obstacle(DATABASE, exc).why}"
        case aiohttp.ServerDisconnectedError() if not isinstance(exc.message, str):
            return "the server disconnected in the middle of its response"
        case aiohttp.ClientResponseError() | aiohttp.ClientPayloadError():
            return "the response is incomplete or not HTTP"
        case OSError():
            return obstacle(DATABASE, exc).why
        case _:
            return one_line(str(exc)) or type(exc).__name__


def retry_after_s(text: str, *, now: datetime) -> float | None:
    """Read a Retry-After header, seconds or a date, as seconds; None when it is neither.

    https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
    """
    text = text.strip()
    if re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,15})?", text):
        return float(text)
    moment = http_date(text)
    return None if moment is None else max(0.0, (moment - now).total_seconds())


def _wrong_setting(text: str, dialect: Dialect) -> str | None:
    for beginning, advice in _WRONG_SETTINGS:
        if text.startswith(beginning):
            return advice.format(path=dialect.write_path)
    return None


def _wrong_address(dialect: Dialect) -> str:
    return _WRONG_ADDRESS.format(path=f"InfluxDB's {dialect.write_path}")


def _not_influxdb(reply: Reply, secrets: Sequence[str], url: str) -> str:
    what = f"{answered(reply)} is not InfluxDB's answer to a write"
    location = reply.headers.get("Location", "")
    if url and is_upgrade(url, target := redirect_target(url, location)):
        return one_line(f"{what}; write {origin(target)} in INFLUXDB_URL", secrets)
    return one_line(f"{what}; check INFLUXDB_URL", secrets)


def answered(reply: Reply) -> str:
    """Return the status of a response that is not InfluxDB's, and the target of a redirect.

    Without its query, which often holds the whole request for a login page.
    """
    location = reply.headers.get("Location", "").partition("?")[0]
    return f"{reply.status} to {location}" if location else f"{reply.status} instead of 204"


def _error_text(reply: Reply) -> str:
    text = message(reply)
    for quoted, instead in _QUOTED:
        text = quoted.sub(instead, text)
    if text.strip():
        return text
    known = {status.value: status.phrase for status in HTTPStatus}
    return known.get(reply.status, "no reason given")
