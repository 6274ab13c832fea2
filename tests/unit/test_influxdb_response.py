"""What InfluxDB's responses mean."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import aiohttp
import pytest

from app.sinks.influxdb.dialects import Target, dialect_for
from app.sinks.influxdb.http import Reply
from app.sinks.influxdb.response import failure, outcome_of, retry_after_s
from app.sinks.outcomes import (
    Busy,
    Failure,
    Held,
    Refused,
    ServerFailed,
    TimedOut,
    TooLarge,
    Unavailable,
)

SECRET = "a-secret/token=="
DIALECT = dialect_for("v2", Target(bucket="b", org="o", token=SECRET))
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def reply(status: int, message: str = "", **headers: str) -> Reply:
    """Return a response with InfluxDB's error document."""
    body = json.dumps({"code": "x", "message": message}).encode() if message else b""
    return Reply(
        status=status,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        body=body,
    )


@pytest.mark.parametrize(
    ("status", "meaning"),
    [
        (200, Unavailable),
        (201, Unavailable),
        (202, Unavailable),
        (301, Unavailable),
        (302, Unavailable),
        (400, Refused),
        (401, Held),
        (403, Held),
        (404, Held),
        (405, Held),
        (407, Held),
        (408, TimedOut),
        (413, TooLarge),
        (418, Held),
        (422, Refused),
        (429, Busy),
        (499, Held),
        (500, ServerFailed),
        (502, ServerFailed),
        (503, Busy),
        (504, ServerFailed),
        (599, ServerFailed),
    ],
)
def test_every_status_has_one_meaning(status: int, meaning: type[Failure]) -> None:
    """Only 204 is a success, and the sink handles that one itself."""
    assert meaning is type(outcome_of(reply(status), dialect=DIALECT, secrets=[SECRET]))


@pytest.mark.parametrize(
    ("status", "message", "names"),
    [
        (401, "unauthorized access", ["INFLUXDB_TOKEN"]),
        (403, "insufficient permissions for write", ["INFLUXDB_TOKEN", "INFLUXDB_BUCKET"]),
        (404, 'organization name "x" not found', ["INFLUXDB_ORG"]),
        (404, 'bucket "x" not found', ["INFLUXDB_BUCKET", "INFLUXDB_TOKEN"]),
        (404, "", ["INFLUXDB_URL"]),
        (405, "", ["INFLUXDB_URL"]),
    ],
)
def test_advice_names_what_a_person_must_fix(status: int, message: str, names: list[str]) -> None:
    """By the variable that holds it."""
    held = outcome_of(reply(status, message), dialect=DIALECT, secrets=[SECRET])

    assert isinstance(held, Held)
    assert held.status == status
    assert [name for name in names if name in held.advice] == names


def test_a_database_of_version_1_that_is_missing_is_a_bucket() -> None:
    """Its compatible write API returns `database not found`, in a document of its own."""
    body = b'{"error":"database not found: \\"x\\""}'
    held = outcome_of(Reply(status=404, headers={}, body=body), dialect=DIALECT, secrets=[SECRET])

    assert isinstance(held, Held)
    assert "INFLUXDB_BUCKET" in held.advice
    assert held.reason == 'database not found: "x"'


@pytest.mark.parametrize(
    ("cause", "shown"),
    [
        ('": cannot parse timestamp "none": unparsed tail; see', ": cannot parse timestamp"),
        (
            '": cannot parse field value for "bed": missing closing quote for quoted "bed; see',
            ": cannot parse field value for",
        ),
        ('": unknown bed', ""),
        ("", ""),
    ],
)
def test_a_line_that_victoria_metrics_quotes_is_not_repeated(cause: str, shown: str) -> None:
    """It quotes everything from the line to the end of the request; the cause may name a field."""
    begin = "cannot process influx line protocol data: incorrect influx line"
    body = f'{begin} "m,room=bed v=\\"a \\\\\\" bed\\" none\\nm v=1 1{cause}'

    refused = outcome_of(Reply(status=400, headers={}, body=body.encode()), dialect=DIALECT)

    assert isinstance(refused, Refused)
    assert refused.reason == begin + shown


@pytest.mark.parametrize(
    ("message", "name"),
    [
        ('field type conflict: input field "value" is float', "INFLUXDB_MEASUREMENT"),
        ("invalid point", "INFLUXDB_BUCKET"),
    ],
)
def test_a_refusal_comes_with_advice(message: str, name: str) -> None:
    """For the case that every point is refused like this."""
    refused = outcome_of(reply(422, message), dialect=DIALECT, secrets=[SECRET])

    assert isinstance(refused, Refused)
    assert refused.reason == message
    assert name in (refused.advice or "")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "Internal Server Error"),
        (b"  \n", "Internal Server Error"),
        (b"broken\r\n\tpipe\x00\x1b[0m", "broken pipe [0m"),
        (b"<html><title>502 Bad\nGateway</title><p>nginx</html>", "502 Bad Gateway nginx"),
        (b'{"code":"internal error","message":"disk full"}', "disk full"),
        (b'{"message":3}', '{"message":3}'),
        (b"[" * 16_000, "[" * 500),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"x" * 10_000, "x" * 500),
        (b"no such token a-secret/token== or a-secret/token%3D%3D", "no such token *** or ***"),
    ],
)
def test_a_reason_is_one_short_line_without_the_token(body: bytes, reason: str) -> None:
    """Whatever a server or a proxy sends."""
    failed = outcome_of(Reply(status=500, headers={}, body=body), dialect=DIALECT, secrets=[SECRET])

    assert ServerFailed(reason=reason, status=500) == failed


def test_an_unknown_status_has_a_reason() -> None:
    """Every sentence needs one."""
    assert ServerFailed(reason="no reason given", status=599) == outcome_of(
        reply(599), dialect=DIALECT
    )


def test_a_redirect_names_where_it_leads() -> None:
    """The address is what a person has to fix."""
    unavailable = outcome_of(
        reply(302, Location="https://login.example/"), dialect=DIALECT, secrets=[SECRET]
    )

    assert isinstance(unavailable, Unavailable)
    assert unavailable.reason.startswith("302 to https://login.example/ is not")
    assert "INFLUXDB_URL" in unavailable.reason


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_sink_says_when_to_come_back(status: int) -> None:
    """With the status, because 503 says more about its health than 429."""
    busy = outcome_of(
        reply(status, "slow down", Retry_After="12"), dialect=DIALECT, secrets=[SECRET]
    )

    assert Busy(reason="slow down", status=status, retry_after_s=12.0) == busy


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", None),
        ("0", 0.0),
        (" 17 ", 17.0),
        ("1.5", 1.5),
        ("-5", None),
        ("soon", None),
        ("inf", None),
        ("nan", None),
        ("1e3", None),
        ("9" * 15, 999999999999999.0),
        ("9" * 400, None),
        ("Fri, 02 Jan 2026 03:05:05 GMT", 60.0),
        ("Fri, 02 Jan 2026 03:05:05 -0000", 60.0),
        ("Fri, 02 Jan 2026 03:05:05 +0100", 0.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Fri, 99 Foo 2026 99:99:99 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_or_nonsense(text: str, seconds: float | None) -> None:
    """https://www.rfc-editor.org/rfc/rfc9110#field.retry-after."""
    assert retry_after_s(text, now=NOW) == seconds


@pytest.mark.parametrize(
    ("exc", "meaning"),
    [
        (TimeoutError(), TimedOut(reason="no answer in time")),
        (aiohttp.SocketTimeoutError(), TimedOut(reason="no answer in time")),
        (aiohttp.ConnectionTimeoutError(), Unavailable(reason="no connection in time")),
        (ConnectionResetError("peer\nreset"), Unavailable(reason="the connection is cut at once")),
        (aiohttp.ClientOSError(32, "Broken pipe"), Unavailable(reason="Broken pipe")),
        (aiohttp.ServerDisconnectedError(""), Unavailable(reason="ServerDisconnectedError")),
    ],
)
def test_a_missing_response_is_a_timeout_or_no_connection(exc: Exception, meaning: Failure) -> None:
    """Only a request that was under way says something about its size."""
    assert failure(exc) == meaning
