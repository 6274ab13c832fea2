"""One line per record, whatever is in it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.logs import Brake, JsonLine, LogFormat, LogOutput, TextLine, configure

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
    record = logging.LogRecord("app.source", logging.WARNING, "", 1, message, (), exc_info)
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
        "logger": "app.source",
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

    assert line == "2026-11-23T12:00:00.123Z WARNING  app.source: Lost\\r\\nfor a while"


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


def test_the_brake_lets_one_line_per_interval_through() -> None:
    """It says how many it held back, by kind."""
    now_s = 0.0
    brake = Brake(every_s=60.0, clock=lambda: now_s)
    assert [brake.admit("a"), brake.admit("a"), brake.admit("a")] == [0, None, None]
    assert brake.admit("b") == 0

    now_s = 60.0

    assert [brake.admit("a"), brake.admit("b")] == [2, 0]
