"""Logs: one line per record, json or text, and a brake for repeated ones."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

LogFormat = Literal["json", "text"]
LogOutput = Literal["stdout", "file", "both"]


def configure(
    *,
    level: str,
    log_format: LogFormat,
    output: LogOutput,
    file: Path,
    max_bytes: int,
    backups: int,
) -> None:
    """Send every record of the process to the chosen outputs, one line each."""
    formatter = JsonLine() if log_format == "json" else TextLine()
    handlers: list[logging.Handler] = []
    if output in {"stdout", "both"}:
        handlers.append(logging.StreamHandler(sys.stdout))
    if output in {"file", "both"}:
        file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(RotatingFileHandler(file, maxBytes=max_bytes, backupCount=backups))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    root.setLevel(level)
    # These speak at INFO of every request or frame; our own lines say what matters.
    for name in ("websockets", "httpx", "httpcore", "uvicorn.access", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level)))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.error").addFilter(_is_no_refusal)


class JsonLine(logging.Formatter):
    """A record as one JSON object: timestamp, level, logger, message, and exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object on one line."""
        line: dict[str, object] = {
            "timestamp": _timestamp(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _writable(json.dumps(line, ensure_ascii=False))


class TextLine(logging.Formatter):
    """A record as one line of text; newlines in it are shown escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        text = f"{_timestamp(record)} {record.levelname:<8} {record.name}: {record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return _writable(text.replace("\r", "\\r").replace("\n", "\\n"))


class Brake:
    """Lets one log line per kind through in `every_s` seconds and counts the rest."""

    def __init__(self, *, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the interval in seconds."""
        self._every_s = every_s
        self._clock = clock
        self._last: dict[str, float] = {}
        self._held: dict[str, int] = {}

    def admit(self, kind: str) -> int | None:
        """Return how many of this kind were held back since the last line, or None to hold it."""
        now = self._clock()
        last = self._last.get(kind)
        if last is not None and now - last < self._every_s:
            self._held[kind] = self._held.get(kind, 0) + 1
            return None
        self._last[kind] = now
        return self._held.pop(kind, 0)


def shown_url(url: str) -> str:
    """Return an address without user, password and query, as people may see it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _is_no_refusal(record: logging.LogRecord) -> bool:
    """Leave out what uvicorn takes for an error: a WebSocket that was refused with an answer."""
    return record.msg != "ASGI callable returned without completing handshake."


def _writable(line: str) -> str:
    """Escape what UTF-8 cannot carry: foreign text may hold half a surrogate pair."""
    return line.encode(errors="backslashreplace").decode()


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
