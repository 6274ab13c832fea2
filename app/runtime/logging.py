"""Logs: one line per record, json or text, and repeated ones summed up."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
import weakref
from collections.abc import Callable
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

LogFormat = Literal["json", "text"]
LogOutput = Literal["stdout", "file", "both"]

_LONG_AGO_S = 10.0
"""What was so recent is still going on."""


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
        return _UNSAFE.sub(_as_json, json.dumps(line, ensure_ascii=False))


class TextLine(logging.Formatter):
    """A record as one line of text; newlines and other control characters are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        text = f"{_timestamp(record)} {record.levelname:<8} {record.name}: {record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return _UNSAFE.sub(_as_python, text)


class RateLimitedLog:
    """Tells a trouble that comes again and again in full once, then how often, ever more rarely.

    The first of its kind is logged as it is. Those after it are counted and summed up in one
    line after a minute, two, four and so on; at DEBUG each is there. `over` tells the end. What
    comes and goes by turns is one trouble that goes on, and its ends are told as rarely.
    """

    def __init__(
        self,
        logger: logging.Logger,
        *,
        first_s: float = 60.0,
        max_s: float = 900.0,
        max_kinds: int = 50,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the shortest and the longest time between two lines of one kind, in seconds."""
        self._logger = logger
        self._first_s = first_s
        self._max_s = max_s
        self._max_kinds = max_kinds
        self._clock = clock
        self._kinds: dict[str, _Repeated] = {}
        self._lock = threading.Lock()  # the journal and the stores speak from their threads
        with _REPEATS_LOCK:
            _REPEATS.add(self)

    def tell(
        self,
        level: int,
        message: str,
        *args: object,
        kind: str = "",
        exc_info: BaseException | None = None,
    ) -> None:
        """Log this one, or count it until it is summed up with others of its kind."""
        with self._lock:
            now_s = self._clock()
            self._forget(now_s)
            if kind not in self._kinds and len(self._kinds) >= self._max_kinds:
                kind = ""
            seen = self._kinds.get(kind)
            if seen is None:
                self._kinds[kind] = _Repeated(now_s, self._first_s, level, message, args)
            else:
                exc_info = None  # it was in the first line
                seen.again(now_s, level, message, args)
                if seen.is_due(now_s):
                    message, args = seen.summed_up(now_s, max_s=self._max_s)
                else:
                    level = logging.DEBUG
        self._logger.log(level, message, *args, exc_info=exc_info)

    def over(self, message: str, *args: object) -> None:
        """Log that all is well again and how often it was not; nothing if nothing was told."""
        if not self._kinds:
            return
        with self._lock:
            now_s = self._clock()
            kinds = [seen for seen in self._kinds.values() if seen.over_s is None]
            told = any(seen.is_open for seen in kinds)
            for seen in kinds:
                seen.end(now_s, told=told)
        if told:
            # What is said at INFO stands beside a trouble and is none of its own.
            times = sum(seen.count for seen in kinds if seen.level > logging.INFO)
            lasted = spoken(now_s - min(seen.first_s for seen in kinds))
            words = message % args if args else message
            account = f"failed {times:,} times in {lasted}" if times > 1 else f"after {lasted}"
            self._logger.info("%s (%s)", words, account)

    def sum_up(self) -> None:
        """Log what was counted and is due, though nothing more of it has come."""
        with self._lock:
            now_s = self._clock()
            due = [
                (seen.level, *seen.summed_up(now_s, max_s=self._max_s))
                for seen in self._kinds.values()
                if seen.untold and (seen.is_due(now_s) or self._is_past(seen, now_s))
            ]
            self._forget(now_s)
        for level, message, args in due:
            self._logger.log(level, message, *args)

    def _forget(self, now_s: float) -> None:
        """Let go of what has been over, or quiet, for so long that it would be a new trouble."""
        for kind, seen in list(self._kinds.items()):
            if not seen.untold and self._is_past(seen, now_s):
                del self._kinds[kind]

    def _is_past(self, seen: _Repeated, now_s: float) -> bool:
        over = seen.over_s is not None and now_s - seen.over_s >= self._first_s
        return over or now_s - seen.last_s >= self._max_s


def sum_up_repeats() -> None:
    """Log the summaries that are due; called every few seconds."""
    with _REPEATS_LOCK:
        everyone = list(_REPEATS)
    for repeats in everyone:
        repeats.sum_up()


# As with the loggers themselves: whoever has something to repeat is known by having it.
_REPEATS: weakref.WeakSet[RateLimitedLog] = weakref.WeakSet()
_REPEATS_LOCK = threading.Lock()


class _Repeated:
    """One kind of trouble: how often, since when, and what was last told of it."""

    def __init__(
        self, now_s: float, interval_s: float, level: int, message: str, args: tuple[object, ...]
    ) -> None:
        self.first_s = self.last_s = now_s
        self.count = 1
        self.untold = 0
        self.over_s: float | None = None
        self.is_open = True
        """Whether it was told since it was last told to be over."""
        self.level = level
        self._told_s = now_s
        self._interval_s = interval_s
        self._message = message
        self._args = args

    def again(self, now_s: float, level: int, message: str, args: tuple[object, ...]) -> None:
        self.level, self._message, self._args = level, message, args
        self.last_s = now_s
        self.count += 1
        self.untold += 1
        self.over_s = None

    def is_due(self, now_s: float) -> bool:
        return now_s - self._told_s >= self._interval_s

    def summed_up(self, now_s: float, *, max_s: float) -> tuple[str, tuple[object, ...]]:
        self._told_s = now_s
        self._interval_s = min(2 * self._interval_s, max_s)
        self.untold = 0
        self.is_open = self.over_s is None
        lasted = spoken(self.last_s - self.first_s)
        account = f"{self.count:,} times in {lasted}"
        if (ago_s := now_s - self.last_s) >= _LONG_AGO_S:
            account += f", the last {spoken(ago_s)} ago"
        return self._message + " (%s)", (*self._args, account)

    def end(self, now_s: float, *, told: bool) -> None:
        self.over_s = now_s
        self.is_open = False
        if told:
            self.untold = 0


def spoken(seconds: float) -> str:
    """Return a length of time for a person."""
    for unit, size_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size_s:
            return f"{seconds / size_s:.0f} {unit}"
    return f"{max(seconds, 0.0):.0f} s"


def shown_url(url: str) -> str:
    """Return an address without user, password and query, as people may see it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _is_no_refusal(record: logging.LogRecord) -> bool:
    """Leave out what uvicorn takes for an error: a WebSocket that was refused with an answer."""
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
"""Characters that would forge a line, or make it look like another one: text comes from outside."""


def _as_python(unsafe: re.Match[str]) -> str:
    return unsafe[0].encode("unicode_escape").decode()


def _as_json(unsafe: re.Match[str]) -> str:
    return json.dumps(unsafe[0])[1:-1]


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
