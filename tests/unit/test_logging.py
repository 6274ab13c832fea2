"""One line per record, whatever is in it."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.runtime.logging import (
    JsonLine,
    LogFormat,
    LogOutput,
    RateLimitedLog,
    TextLine,
    configure,
    repeats,
)
from app.runtime.text import duration

NOISY = ("websockets", "httpx", "httpcore", "uvicorn.access", "asyncio")


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Logging belongs to the process: leave it as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    names = (*NOISY, "uvicorn", "uvicorn.error")
    levels = {name: logging.getLogger(name).level for name in names}
    root.handlers = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def configured(
    file: Path,
    *,
    level: str = "INFO",
    log_format: LogFormat = "text",
    output: LogOutput = "stdout",
    max_bytes: int = 1_000_000,
) -> logging.Logger:
    """Configure the process and return a logger of it."""
    configure(
        level=level,
        log_format=log_format,
        output=output,
        file=file,
        max_bytes=max_bytes,
        backups=2,
    )
    return logging.getLogger("app.test")


def record_of(message: str, *, failed: bool = False) -> logging.LogRecord:
    """Return a record of noon, with a traceback if something failed."""
    exc_info = None
    if failed:
        try:
            int("two\nlines")
        except ValueError:
            exc_info = sys.exc_info()
    record = logging.LogRecord("app.homeassistant", logging.WARNING, "", 1, message, (), exc_info)
    record.created = 1_795_435_200.1239
    return record


def test_a_json_line_has_every_part_of_a_record() -> None:
    """Programs read it; the message is whole, letters of every language are themselves."""
    line = JsonLine().format(record_of("Lost 'Küche'\nfor a while"))

    assert "\n" not in line
    assert "Küche" in line
    assert json.loads(line) == {
        "timestamp": "2026-11-23T12:00:00.123Z",
        "level": "WARNING",
        "logger": "app.homeassistant",
        "message": "Lost 'Küche'\nfor a while",
    }


def test_a_traceback_is_a_member_of_its_json_line() -> None:
    """It is one more member of the object, on the same line."""
    line = JsonLine().format(record_of("Broke", failed=True))

    assert "\n" not in line
    assert "ValueError: invalid literal" in json.loads(line)["exception"]


def test_a_text_line_holds_a_record_with_its_newlines_escaped() -> None:
    """People read it; nothing in a message can fake a second line."""
    line = TextLine().format(record_of("Lost\r\nfor a while"))

    assert line == "2026-11-23T12:00:00.123Z WARNING  app.homeassistant: Lost\\r\\nfor a while"


def test_a_traceback_stays_on_its_text_line() -> None:
    """One record is one line, also then."""
    line = TextLine().format(record_of("Broke", failed=True))

    assert "\n" not in line
    assert line.endswith("ValueError: invalid literal for int() with base 10: 'two\\nlines'")


@pytest.mark.parametrize("formatter", [JsonLine(), TextLine()])
def test_half_a_surrogate_pair_does_not_break_the_log(formatter: logging.Formatter) -> None:
    """Foreign text may hold what UTF-8 cannot carry."""
    line = formatter.format(record_of("entity \ud800"))

    assert b"entity \\ud800" in line.encode()


@pytest.mark.parametrize(
    ("output", "on_stdout", "in_file"),
    [("stdout", True, False), ("file", False, True), ("both", True, True)],
)
def test_log_records_go_to_the_configured_output(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    output: LogOutput,
    *,
    on_stdout: bool,
    in_file: bool,
) -> None:
    """LOG_OUTPUT names stdout, a file, or both; the file's folder is made."""
    file = tmp_path / "deep" / "service.log"
    configured(file, output=output).info("Started")

    assert ("Started" in capsys.readouterr().out) == on_stdout
    assert (file.exists() and "Started" in file.read_text()) == in_file


@pytest.mark.parametrize(("log_format", "start"), [("json", "{"), ("text", "2")])
def test_log_records_have_the_configured_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], log_format: LogFormat, start: str
) -> None:
    """LOG_FORMAT is json or text."""
    configured(tmp_path / "log", log_format=log_format).info("Started")

    assert capsys.readouterr().out.startswith(start)


def test_records_below_the_level_are_not_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LOG_LEVEL is the least that is shown."""
    logger = configured(tmp_path / "log", level="WARNING")
    logger.info("Not this")
    logger.warning("But this")

    assert "Not this" not in (shown := capsys.readouterr().out)
    assert "But this" in shown


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize("level", ["DEBUG", "INFO"])
def test_libraries_log_only_warnings(tmp_path: Path, name: str, level: str) -> None:
    """They print whole frames and URLs at DEBUG, secrets included."""
    configured(tmp_path / "log", level=level)

    assert not logging.getLogger(name).isEnabledFor(logging.INFO)
    assert logging.getLogger(name).isEnabledFor(logging.WARNING)


def test_configuring_the_log_twice_prints_a_record_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second call replaces the first, and closes its file."""
    configured(tmp_path / "log", output="both")
    configured(tmp_path / "log", output="stdout").info("Started")

    assert capsys.readouterr().out.count("Started") == 1


def test_log_files_rotate(tmp_path: Path) -> None:
    """The log may not fill the disk."""
    logger = configured(tmp_path / "log", output="file", max_bytes=1000)
    for _ in range(100):
        logger.info("Something of about a hundred bytes, all in all, with its time")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1", "log.2"]


class Repeating:
    """A problem, a clock that a test moves, and the lines that were logged."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.now_s = 0.0
        self._caplog = caplog
        self.log = RateLimitedLog(logging.getLogger("repeating"))
        caplog.set_level(logging.INFO, "repeating")

    def fail_every(self, step_s: float, *, until_s: float, kind: str = "") -> None:
        """Log it again and again, with the service's regular summaries in between."""
        while self.now_s < until_s:
            self.log.warning("Lost %s", "it", kind=kind)
            self.now_s += step_s
            repeats.summarize()

    def logged(self) -> list[str]:
        """Return the lines since the last time."""
        lines = [record.message for record in self._caplog.records if record.name == "repeating"]
        self._caplog.clear()
        return lines


@pytest.fixture
def repeating(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Repeating:
    """Return a problem that has not happened yet."""
    found = Repeating(caplog)
    monkeypatch.setattr(repeats, "clock", lambda: found.now_s)
    return found


def test_a_repeated_message_is_summarized_at_growing_intervals(repeating: Repeating) -> None:
    """The first in full, then how often and for how long, at least every 15 minutes."""
    repeating.fail_every(1.0, until_s=3_600.0)

    assert repeating.logged() == [
        "Lost it",
        "Lost it (60 times in 59 s)",
        "Lost it (180 times in 3 min)",
        "Lost it (420 times in 7 min)",
        "Lost it (900 times in 15 min)",
        "Lost it (1,800 times in 30 min)",
        "Lost it (2,700 times in 45 min)",
        "Lost it (3,600 times in 60 min)",
    ]


def test_the_resolved_line_says_how_often_it_failed_and_for_how_long(repeating: Repeating) -> None:
    """One line, and none when nothing failed."""
    repeating.log.resolved("It is back")
    repeating.fail_every(10.0, until_s=30.0)
    repeating.log.resolved("It is back after %s", "all")
    repeating.log.resolved("It is back")
    repeating.now_s = 1_000.0
    repeats.summarize()

    assert repeating.logged() == ["Lost it", "It is back after all (failed 3 times in 30 s)"]


def test_a_problem_that_was_resolved_for_a_minute_is_logged_in_full_again(
    repeating: Repeating,
) -> None:
    """It is a new problem."""
    repeating.fail_every(10.0, until_s=300.0)
    repeating.log.resolved("It is back")
    repeating.now_s += 60.0
    repeating.logged()

    repeating.fail_every(10.0, until_s=repeating.now_s + 10.0)
    repeating.log.resolved("It is back")

    assert repeating.logged() == ["Lost it", "It is back (after 10 s)"]


def test_a_problem_that_comes_and_goes_is_counted_as_one(repeating: Repeating) -> None:
    """A server that hangs up every second does not fill the log, nor does its recovery."""
    while repeating.now_s < 3_600.0:
        repeating.fail_every(1.0, until_s=repeating.now_s + 1.0)
        repeating.log.resolved("It is back")

    lines = repeating.logged()
    assert lines[:2] == ["Lost it", "It is back (after 1 s)"]
    assert "Lost it (1,800 times in 30 min)" in lines
    assert len(lines) <= 16


def test_a_repeated_message_that_has_stopped_is_still_summarized(repeating: Repeating) -> None:
    """Five hundred bad messages in five seconds and none after: their number is logged."""
    repeating.fail_every(0.01, until_s=5.0)
    repeating.now_s = 65.0
    repeats.summarize()
    repeats.summarize()

    first, summary = repeating.logged()
    assert first == "Lost it"
    assert re.fullmatch(r"Lost it \(50\d times in 5 s, the last 60 s ago\)", summary)


def test_fifty_kinds_are_counted_separately_and_all_others_together(repeating: Repeating) -> None:
    """Another reason is news, but reasons that differ in a number must not fill the log."""
    for kind in range(1_000):
        repeating.log.warning("Kind %d", kind, kind=str(kind))

    assert [f"Kind {kind}" for kind in range(51)] == repeating.logged()


def test_only_the_first_of_a_repeated_error_has_the_traceback(
    repeating: Repeating, caplog: pytest.LogCaptureFixture
) -> None:
    """The summaries have none."""
    for repeating.now_s in (0.0, 60.0):
        repeating.log.error("Broken", exc_info=ValueError("why"))

    assert [record.exc_info is not None for record in caplog.records] == [True, False]


def test_every_repeated_message_is_logged_at_debug(
    repeating: Repeating, caplog: pytest.LogCaptureFixture
) -> None:
    """So that a pattern can be seen."""
    caplog.set_level(logging.DEBUG, "repeating")

    repeating.fail_every(1.0, until_s=3.0)

    assert [record.levelname for record in caplog.records] == ["WARNING", "DEBUG", "DEBUG"]


def test_topics_of_one_logger_are_resolved_on_their_own(repeating: Repeating) -> None:
    """A database that answers again does not resolve the refusal of points."""
    repeating.log.warning("Lost it", topic="connection")
    repeating.log.warning("Refused %d points", 3, topic="points")

    repeating.log.resolved("It is back", topic="connection")
    repeating.log.warning("Refused %d points", 4, topic="points")

    assert repeating.logged() == ["Lost it", "Refused 3 points", "It is back (after 0 s)"]


def test_loggers_with_the_same_words_do_not_share_a_count(
    repeating: Repeating, caplog: pytest.LogCaptureFixture
) -> None:
    """What one module logs does not hide the message of another."""
    repeating.log.warning("Lost it")
    RateLimitedLog(logging.getLogger("other")).warning("Lost it")

    assert [record.name for record in caplog.records] == ["repeating", "other"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-1.0, "0 s"), (119.0, "119 s"), (120.0, "2 min"), (7_200.0, "2 h"), (172_800.0, "2 d")],
)
def test_a_duration_has_one_unit(seconds: float, words: str) -> None:
    """No more precision than a person needs."""
    assert words == duration(seconds)


UNSAFE = [
    *map(chr, (*range(0x20), 0x7F, *range(0x80, 0xA0))),
    *"\u2028\u2029\u061c\u200b\u200e\u200f\u202a\u202e\u2066\u2069\ufeff\ud800\udfff\U000e0041",
]


@pytest.mark.parametrize("formatter", [TextLine(), JsonLine()])
@pytest.mark.parametrize("sign", UNSAFE, ids=lambda sign: f"U+{ord(sign):04X}")
def test_control_characters_from_outside_are_escaped(
    formatter: logging.Formatter, sign: str
) -> None:
    """Neither a message, nor an argument or an exception forges a line or steers a terminal."""
    forged = f"a{sign}2026-01-01 ERROR forged"
    failed = (ValueError, ValueError(forged), None)
    record = logging.LogRecord("app", logging.ERROR, "", 1, "Refused: %s", (forged,), failed)

    line = formatter.format(record)

    assert sign not in line
    assert line.encode().decode().splitlines() == [line]
    if isinstance(formatter, JsonLine):
        assert json.loads(line)["message"] == f"Refused: {forged}"


def test_text_of_every_language_is_shown_as_it_is() -> None:
    """Only what is not shown is escaped."""
    record = logging.LogRecord("app", logging.INFO, __file__, 1, "Küche 厨房 21 °C 😀", (), None)

    assert TextLine().format(record).endswith("Küche 厨房 21 °C 😀")
