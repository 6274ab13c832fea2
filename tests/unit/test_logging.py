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
    spoken,
)

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


def test_a_record_as_json() -> None:
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


def test_a_traceback_as_json() -> None:
    """It is one more member of the object, on the same line."""
    line = JsonLine().format(record_of("Broke", failed=True))

    assert "\n" not in line
    assert "ValueError: invalid literal" in json.loads(line)["exception"]


def test_a_record_as_text() -> None:
    """People read it; nothing in a message can fake a second line."""
    line = TextLine().format(record_of("Lost\r\nfor a while"))

    assert line == "2026-11-23T12:00:00.123Z WARNING  app.homeassistant: Lost\\r\\nfor a while"


def test_a_traceback_as_text() -> None:
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
def test_records_go_where_the_setting_says(
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
def test_records_have_the_chosen_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], log_format: LogFormat, start: str
) -> None:
    """LOG_FORMAT is json or text."""
    configured(tmp_path / "log", log_format=log_format).info("Started")

    assert capsys.readouterr().out.startswith(start)


def test_the_level_cuts_off_what_is_below(
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
def test_libraries_are_quiet(tmp_path: Path, name: str, level: str) -> None:
    """They print whole frames and URLs at DEBUG, secrets included."""
    configured(tmp_path / "log", level=level)

    assert not logging.getLogger(name).isEnabledFor(logging.INFO)
    assert logging.getLogger(name).isEnabledFor(logging.WARNING)


def test_configuring_twice_prints_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


class Hearing:
    """A trouble, a clock that a test moves, and what was logged."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.now_s = 0.0
        self._caplog = caplog
        self.log = RateLimitedLog(logging.getLogger("hearing"))
        caplog.set_level(logging.INFO, "hearing")

    def fail_every(self, step_s: float, *, until_s: float, kind: str = "") -> None:
        """Have it happen again and again, with the look that the service takes in between."""
        while self.now_s < until_s:
            self.log.warning("Lost %s", "it", kind=kind)
            self.now_s += step_s
            repeats.summarize()

    def said(self) -> list[str]:
        """Return the lines since the last time."""
        lines = [record.message for record in self._caplog.records if record.name == "hearing"]
        self._caplog.clear()
        return lines


@pytest.fixture
def hearing(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Hearing:
    """Return a problem that has not happened yet."""
    found = Hearing(caplog)
    monkeypatch.setattr(repeats, "clock", lambda: found.now_s)
    return found


def test_what_repeats_is_summed_up_ever_more_rarely(hearing: Hearing) -> None:
    """The first is told in full, then how often and for how long, at the latest every 15 min."""
    hearing.fail_every(1.0, until_s=3_600.0)

    assert hearing.said() == [
        "Lost it",
        "Lost it (60 times in 59 s)",
        "Lost it (180 times in 3 min)",
        "Lost it (420 times in 7 min)",
        "Lost it (900 times in 15 min)",
        "Lost it (1,800 times in 30 min)",
        "Lost it (2,700 times in 45 min)",
        "Lost it (3,600 times in 60 min)",
    ]


def test_the_end_says_how_often_and_how_long(hearing: Hearing) -> None:
    """One line when all is well again, and nothing when nothing was wrong."""
    hearing.log.resolved("It is back")
    hearing.fail_every(10.0, until_s=30.0)
    hearing.log.resolved("It is back after %s", "all")
    hearing.log.resolved("It is back")
    hearing.now_s = 1_000.0
    repeats.summarize()

    assert hearing.said() == ["Lost it", "It is back after all (failed 3 times in 30 s)"]


def test_a_new_trouble_is_told_in_full(hearing: Hearing) -> None:
    """What was over for a minute has nothing to do with what comes now."""
    hearing.fail_every(10.0, until_s=300.0)
    hearing.log.resolved("It is back")
    hearing.now_s += 60.0
    hearing.said()

    hearing.fail_every(10.0, until_s=hearing.now_s + 10.0)
    hearing.log.resolved("It is back")

    assert hearing.said() == ["Lost it", "It is back (after 10 s)"]


def test_what_comes_and_goes_is_one_trouble(hearing: Hearing) -> None:
    """A server that hangs up every second fills no log, neither with its ends."""
    while hearing.now_s < 3_600.0:
        hearing.fail_every(1.0, until_s=hearing.now_s + 1.0)
        hearing.log.resolved("It is back")

    said = hearing.said()
    assert said[:2] == ["Lost it", "It is back (after 1 s)"]
    assert "Lost it (1,800 times in 30 min)" in said
    assert len(said) <= 16


def test_what_has_stopped_is_summed_up_all_the_same(hearing: Hearing) -> None:
    """Five hundred bad messages in five seconds, and none after: their number is told."""
    hearing.fail_every(0.01, until_s=5.0)
    hearing.now_s = 65.0
    repeats.summarize()
    repeats.summarize()

    first, summary = hearing.said()
    assert first == "Lost it"
    assert re.fullmatch(r"Lost it \(50\d times in 5 s, the last 60 s ago\)", summary)


def test_each_kind_is_told_for_itself(hearing: Hearing) -> None:
    """Another reason is news; too many of them are one."""
    for kind in range(1_000):
        hearing.log.warning("Kind %d", kind, kind=str(kind))

    assert [f"Kind {kind}" for kind in range(51)] == hearing.said()


def test_the_first_has_the_traceback(hearing: Hearing, caplog: pytest.LogCaptureFixture) -> None:
    """A bug repeats its traceback for nobody."""
    for hearing.now_s in (0.0, 60.0):
        hearing.log.error("Broken", exc_info=ValueError("why"))

    assert [record.exc_info is not None for record in caplog.records] == [True, False]


def test_at_debug_each_is_there(hearing: Hearing, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever looks for a pattern can have them all."""
    caplog.set_level(logging.DEBUG, "hearing")

    hearing.fail_every(1.0, until_s=3.0)

    assert [record.levelname for record in caplog.records] == ["WARNING", "DEBUG", "DEBUG"]


def test_topics_of_one_logger_are_resolved_on_their_own(hearing: Hearing) -> None:
    """A database that answers again says nothing about the points it refused."""
    hearing.log.warning("Lost it", topic="connection")
    hearing.log.warning("Refused %d points", 3, topic="points")

    hearing.log.resolved("It is back", topic="connection")
    hearing.log.warning("Refused %d points", 4, topic="points")

    assert hearing.said() == ["Lost it", "Refused 3 points", "It is back (after 0 s)"]


def test_loggers_with_the_same_words_do_not_share_a_count(
    hearing: Hearing, caplog: pytest.LogCaptureFixture
) -> None:
    """What one module logs does not hide the message of another."""
    hearing.log.warning("Lost it")
    RateLimitedLog(logging.getLogger("neighbor")).warning("Lost it")

    assert [record.name for record in caplog.records] == ["hearing", "neighbor"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-1.0, "0 s"), (119.0, "119 s"), (120.0, "2 min"), (7_200.0, "2 h"), (172_800.0, "2 d")],
)
def test_lengths_of_time(seconds: float, words: str) -> None:
    """No more than a person wants to know."""
    assert words == spoken(seconds)


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
