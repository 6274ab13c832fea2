"""Logging: one line per record as JSON or text, and repeated messages summarized."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partialmethod
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

from app.runtime.text import duration

LogFormat = Literal["json", "text"]
LogOutput = Literal["stdout", "file", "both"]

_FIRST_S, _MAX_S = 60.0, 900.0
"""The shortest and the longest time between two lines about one problem."""
_MAX_KINDS = 50
"""More kinds of one topic share one entry."""
_LONG_AGO_S = 10.0
"""A shorter silence needs no mention in a summary."""


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
    # These log every request or frame at INFO.
    for name in ("websockets", "httpx", "httpcore", "uvicorn.access", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level)))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.error").addFilter(_is_not_refused_handshake)


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
        return _UNSAFE.sub(_as_json, json.dumps(line, ensure_ascii=False))


class TextLine(logging.Formatter):
    """A record as one line of text; newlines and other control characters are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        text = f"{_timestamp(record)} {record.levelname:<8} {record.name}: {record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return _UNSAFE.sub(_as_python, text)


class Repeats:
    """Rate limiter for repeated log messages: the first in full, then summaries.

    The first message of a kind is logged as it is. Later ones are counted and summarized after 1,
    2, 4, 8 and every 15 minutes. A problem that comes and goes counts as one that persists. Kinds
    of one topic are resolved together.
    """

    def __init__(self) -> None:
        self.clock: Callable[[], float] = time.monotonic
        self._topics: defaultdict[_Topic, dict[str, _Repeated]] = defaultdict(dict)
        self._lock = threading.Lock()  # the journal and the stores log from their threads

    def count(self, topic: _Topic, kind: str, message: _Message) -> _Message:
        """Return what to log for this occurrence: the message, a summary, or itself at DEBUG."""
        with self._lock:
            now_s = self.clock()
            kinds = self._topics[topic]
            _forget_old(kinds, now_s)
            if kind not in kinds and len(kinds) >= _MAX_KINDS:
                kind = ""
            if (seen := kinds.get(kind)) is None:
                kinds[kind] = _Repeated(message, first_s=now_s)
                return message
            seen.again(message, now_s)
            if seen.is_due(now_s):
                return seen.summarized(now_s)
            return replace(message, level=logging.DEBUG, exc_info=None)

    def resolve(self, topic: _Topic) -> str | None:
        """End all kinds of a topic; return how often and how long, None if nothing was logged."""
        if not self._topics.get(topic):
            return None
        with self._lock:
            now_s = self.clock()
            kinds = [seen for seen in self._topics[topic].values() if seen.resolved_s is None]
            was_logged = any(seen.is_open for seen in kinds)
            for seen in kinds:
                seen.resolve(now_s, is_logged=was_logged)
        if not was_logged:
            return None
        # INFO messages accompany a failure; don't count them as failures.
        times = sum(seen.count for seen in kinds if seen.message.level > logging.INFO)
        lasted = duration(now_s - min(seen.first_s for seen in kinds))
        return f"failed {times:,} times in {lasted}" if times > 1 else f"after {lasted}"

    def summarize(self) -> None:
        """Log the summaries that are due, also of messages that have stopped."""
        with self._lock:
            now_s = self.clock()
            due = []
            for (logger, _), kinds in self._topics.items():
                due += [
                    (logger, seen.summarized(now_s))
                    for seen in kinds.values()
                    if seen.unreported and (seen.is_due(now_s) or seen.is_past(now_s))
                ]
                _forget_old(kinds, now_s)
        for logger, message in due:
            message.log(logger)

    def clear(self) -> None:
        """Forget everything that was logged."""
        self._topics.clear()


repeats = Repeats()
"""What the loggers of this process have repeated; like them, there is one per process."""


class RateLimitedLog:
    """Logger for messages that may repeat; see `Repeats`."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def log(
        self,
        level: int,
        message: str,
        *args: object,
        topic: str = "",
        kind: str = "",
        exc_info: BaseException | None = None,
    ) -> None:
        """Log a message or count it: `kind` makes it news, `topic` is what `resolved` ends."""
        occurrence = _Message(level, message, args, exc_info)
        repeats.count((self._logger, topic), kind, occurrence).log(self._logger)

    info = partialmethod(log, logging.INFO)
    warning = partialmethod(log, logging.WARNING)
    error = partialmethod(log, logging.ERROR)

    def resolved(self, message: str, *args: object, topic: str = "") -> None:
        """Log that a topic is resolved and how often it failed; nothing if it did not."""
        if (account := repeats.resolve((self._logger, topic))) is not None:
            self._logger.info("%s (%s)", message % args if args else message, account)


_Topic: TypeAlias = tuple[logging.Logger, str]


@dataclass(frozen=True, slots=True)
class _Message:
    """The arguments of a call to a logger."""

    level: int
    text: str
    args: tuple[object, ...]
    exc_info: BaseException | None = None

    def log(self, logger: logging.Logger) -> None:
        logger.log(self.level, self.text, *self.args, exc_info=self.exc_info)


class _Repeated:
    """One kind of message: how often, since when, and its newest text."""

    def __init__(self, message: _Message, *, first_s: float) -> None:
        self.message = message
        self.first_s = self.last_s = self._logged_s = first_s
        self.count = 1
        self.unreported = 0
        self.resolved_s: float | None = None
        self.is_open = True
        """Whether it was logged since it was last logged as resolved."""
        self._interval_s = _FIRST_S

    def again(self, message: _Message, now_s: float) -> None:
        self.message = message
        self.last_s = now_s
        self.count += 1
        self.unreported += 1
        self.resolved_s = None

    def is_due(self, now_s: float) -> bool:
        return now_s - self._logged_s >= self._interval_s

    def is_past(self, now_s: float) -> bool:
        """Whether it was resolved or silent long enough to count as new."""
        is_over = self.resolved_s is not None and now_s - self.resolved_s >= _FIRST_S
        return is_over or now_s - self.last_s >= _MAX_S

    def summarized(self, now_s: float) -> _Message:
        self._logged_s = now_s
        self._interval_s = min(2 * self._interval_s, _MAX_S)
        self.unreported = 0
        self.is_open = self.resolved_s is None
        account = f"{self.count:,} times in {duration(self.last_s - self.first_s)}"
        if (ago_s := now_s - self.last_s) >= _LONG_AGO_S:
            account += f", the last {duration(ago_s)} ago"
        args = (*self.message.args, account)
        return _Message(self.message.level, f"{self.message.text} (%s)", args)

    def resolve(self, now_s: float, *, is_logged: bool) -> None:
        self.resolved_s = now_s
        self.is_open = False
        if is_logged:
            self.unreported = 0


def _forget_old(kinds: dict[str, _Repeated], now_s: float) -> None:
    for kind, seen in list(kinds.items()):
        if not seen.unreported and seen.is_past(now_s):
            del kinds[kind]


def shown_url(url: str) -> str:
    """Return an address without user, password and query, as people may see it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _is_not_refused_handshake(record: logging.LogRecord) -> bool:
    """Leave out what uvicorn logs as an error when a WebSocket is refused with a response."""
    return record.msg != "ASGI callable returned without completing handshake."


_UNSAFE = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0, DEL and C1: newlines, and what a terminal obeys
    "\u2028\u2029"  # line and paragraph separators
    "\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f"  # invisible, or changing the direction
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
    "\ud800-\udfff"  # half a surrogate pair, which UTF-8 cannot carry
    "]"
)
"""Characters that could forge a log line or change how a terminal shows it."""


def _as_python(unsafe: re.Match[str]) -> str:
    return unsafe[0].encode("unicode_escape").decode()


def _as_json(unsafe: re.Match[str]) -> str:
    return json.dumps(unsafe[0])[1:-1]


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
