"""Scans of foreign text take time proportional to its length."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from app.homeassistant.protocol import Session
from app.model import Lines
from app.runtime.errors import IngestError
from app.runtime.text import one_line
from app.schema.line_protocol import parse_line
from app.sinks.influxdb.dialects import Target, dialect_for
from app.sinks.influxdb.http import Reply
from app.sinks.influxdb.response import outcome_of, retry_after_s
from app.sinks.report import impersonal
from tests.fakes.cpu import cpu_s

_SHORT, _LONG = 8_000, 64_000
_SECRET = "tokentokentoken1"
_DIALECT = dialect_for("v2", Target(bucket="b", org="o", token=_SECRET))

Scan = Callable[[str], object]


def _reply(text: str) -> object:
    body = text.encode()
    for status in (400, 404, 500, 503):
        headers = {"Retry-After": text, "Location": text}
        reply = Reply(status=status, headers=headers, body=body)
        outcome_of(reply, dialect=_DIALECT, secrets=[_SECRET, "p"])
    return outcome_of(Reply(status=302, headers={"Location": text}), dialect=_DIALECT)


def _command_error(text: str) -> object:
    session = Session("t" * 40, subscribe=False)
    session.feed(b'{"type":"auth_required"}')
    session.feed(b'{"type":"auth_ok"}')
    number, _ = session.command("get_states")
    error = b'{"code":"x","message":"%b"}' % text.encode().replace(b"\\", b"").replace(b'"', b"'")
    frame = b'{"id":%d,"type":"result","success":false,"error":%b}' % (number, error)
    return session.feed(frame)


def _broken_frame(text: str) -> object:
    session = Session("t" * 40, subscribe=False)
    session.feed(b'{"type":"auth_required"}')
    session.feed(b'{"type":"auth_ok"}')
    return session.feed(text.encode())


def _rows_of_a_journal(text: str) -> object:
    data = text.encode() + b"\n"
    return Lines(data, points=data.count(b"\n") + 1).split()


def _line_of_a_dead_letter(text: str) -> object:
    with contextlib.suppress(ValueError):
        parse_line(rb"m\,,%b x=1 1" % text.encode())
    return parse_line(b"m x=1,%b 1" % text.encode())


SCANS: dict[str, Scan] = {
    "a line of a dead letter": _line_of_a_dead_letter,
    "the lines of a damaged row": _rows_of_a_journal,
    "a database's reply": _reply,
    "one_line": lambda text: one_line(text, [_SECRET, "p"]),
    "impersonal": impersonal,
    "Retry-After": lambda text: retry_after_s(text, now=datetime.now(UTC)),
    "the message of a failed command": _command_error,
    "a broken frame": _broken_frame,
}

REPEATED = (
    "<",
    "<a ",
    "`",
    "'",
    '"',
    "\\",
    r"\,",
    " ",
    "a",
    "a1",
    ",",
    ",a",
    'a="',
    "=",
    "[",
    "{",
    '{"id":',
    '{"type":',
    ',{"id":[',
    ',{"id":1,"x":[',
    "1,",
    "a b\n",
    "\\\n",
    'a b="\n',
    "unable to parse '",
    "': ",
    '"message"',
    '"message" ',
    'requestURI: "',
    'remoteAddr: "',
    "token",
    "p",
    "-",
    "0",
    "é",
    "\ud7ff",
    "(",
    "Mon, ",
    "dropped=",
    "dropped 1 points ",
    "partial write: ",
    " - oldest point ",
    ' value="',
    "'",
    "01 Jan ",
    ":",
)

PREFIXES = (
    "",
    "partial write: ",
    "[",
    '{"message":"',
    "{",
    "unable to parse '",
    '[{"id":1,"type":"',
)


def _cost_s(scan: Scan, text: str) -> float:
    def scanned() -> None:
        with contextlib.suppress(ValueError, IngestError):  # a quick refusal is fine
            scan(text)

    return cpu_s(scanned)


@pytest.mark.parametrize("name", SCANS)
def test_a_scan_of_foreign_text_is_linear(name: str) -> None:
    """Eight times the text takes about eight times as long, whatever it repeats."""
    slow = []
    for prefix in PREFIXES:
        for unit in REPEATED:
            texts = [prefix + unit * (size // len(unit)) for size in (_SHORT, _LONG)]
            short_s, long_s = (_cost_s(SCANS[name], text) for text in texts)
            if long_s > 0.1 and long_s > 24 * short_s:
                slow.append((prefix, unit, round(short_s, 4), round(long_s, 3)))

    assert slow == []
