"""Reads settings from the environment, a `.env` file and mounted secret files."""

from __future__ import annotations

import io
import os
import stat
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from app.runtime.errors import SettingsError

_MAX_ENV_FILE_BYTES = 1_048_576
_MAX_SECRET_FILE_BYTES = 65_536
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’"}  # noqa: RUF001 - what word processors make of quotes
_ZERO_WIDTH = "\ufeff\u200b"  # byte order mark and zero-width space, which `str.strip` leaves
_DIRECTION_MARKS = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Invisible, and often copied along with text from web pages and Windows dialogs."""
_LINE_BREAKS = "\r\n\t"
_UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}  # control characters, bytes that are not UTF-8, line breaks


def cleaned(text: str) -> str:
    """Return a value without surrounding white space and without one pair of quotes around it.

    Secret files end with a newline, and `docker run --env-file` keeps quotes.
    """
    text = _stripped(text)
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
        text = _stripped(text[1:-1])
    return text


def is_printable(text: str, *, multi_line: bool = False) -> bool:
    """Whether the text has no control or invisible characters; line breaks only if allowed."""
    return not any(
        (unicodedata.category(char) in _UNPRINTABLE or char in _ZERO_WIDTH)
        and not (multi_line and char in _LINE_BREAKS)
        for char in text
    )


@dataclass(frozen=True, slots=True)
class Environment:
    """Cleaned values by upper-case name; an empty one counts as unset."""

    sources: Sequence[Mapping[str, str]]
    """The environment, then the `.env` file."""

    unparsed: Sequence[tuple[int, str]] = ()
    """Number and text of each line of the `.env` file that is not an assignment."""

    def find(self, names: Sequence[str]) -> tuple[str, str] | None:
        """Return the first name that is set, in the first source that has one, and its value."""
        pairs = ((name, source.get(name)) for source in self.sources for name in names)
        return next(((name, value) for name, value in pairs if value), None)

    def names(self) -> set[str]:
        """Return all names, also those set to nothing."""
        return {name for source in self.sources for name in source}

    def names_with_values(self) -> set[str]:
        """Return the names that are set."""
        return {name for source in self.sources for name, value in source.items() if value}


class UnusableFile(ValueError):
    """A file cannot be used; the message is a sentence without its subject."""


def read_text(path: Path, *, max_bytes: int) -> str:
    """Return the text of a regular file of bounded size.

    Raises:
        FileNotFoundError: there is no such file.
        UnusableFile: it cannot be read as text.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UnusableFile("is a folder")  # Docker makes one where a mounted file is missing
        if not stat.S_ISREG(mode):  # reading a pipe or a device may never end
            raise UnusableFile("is not a regular file")
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as exc:
        if isinstance(exc, UnusableFile):
            raise
        why = getattr(exc, "strerror", None) or "the name is not usable"
        raise UnusableFile(f"cannot be read ({why})") from exc
    if len(content) > max_bytes:
        raise UnusableFile(f"is larger than {max_bytes // 1024} KiB")
    return _decoded(content)


def read_environment(env_file: Path | None) -> Environment:
    """Return the environment, and `env_file` for what the environment does not set.

    Raises:
        SettingsError: the file exists and cannot be used.
    """
    text = "" if env_file is None else _env_file_text(env_file)
    values = dotenv_values(stream=io.StringIO(text))
    from_file = {name: value for name, value in values.items() if value is not None}
    return Environment(
        (_by_name(os.environ), _by_name(from_file)),
        unparsed=tuple(
            (binding.original.line, binding.original.string.strip())
            for binding in parse_stream(io.StringIO(text))
            if binding.error
        ),
    )


def read_secret_file(path: Path) -> str:
    """Return the cleaned content of a mounted secret.

    Raises:
        ValueError: it cannot be used; the message never shows the path, which may be the
            secret itself written into the wrong variable, nor the content.
    """
    try:
        content = cleaned(read_text(path.expanduser(), max_bytes=_MAX_SECRET_FILE_BYTES))
    except FileNotFoundError:
        raise UnusableFile("names a file that does not exist") from None
    except RuntimeError:
        raise UnusableFile("names a file in the home folder of an unknown user") from None
    except UnusableFile as exc:
        raise UnusableFile(f"names a file that cannot be used: it {exc}") from None
    if not content:
        raise UnusableFile("names a file that is empty")
    return content


def _env_file_text(path: Path) -> str:
    try:
        return read_text(path, max_bytes=_MAX_ENV_FILE_BYTES)
    except FileNotFoundError:
        return ""
    except UnusableFile as exc:
        raise SettingsError(
            f"{path}: {exc}. Make it a text file in UTF-8 that the user of the service may read,"
            " or remove it"
        ) from exc


def _decoded(content: bytes) -> str:
    if b"\0" in content:  # every second byte of UTF-16 is one, with or without a byte order mark
        raise UnusableFile("is UTF-16 or binary, and not text in UTF-8")
    try:
        return content.decode("utf-8-sig")  # editors on Windows write the byte order mark
    except UnicodeDecodeError:
        raise UnusableFile("is not text in UTF-8") from None


def _by_name(values: Mapping[str, str]) -> Mapping[str, str]:
    # Names are accepted in any case; the exact one wins.
    exact = {name: value for name, value in values.items() if name.isupper()}
    other = {name.upper(): value for name, value in values.items() if not name.isupper()}
    return {name: cleaned(value) for name, value in (other | exact).items()}


def _stripped(text: str) -> str:
    while (shorter := text.strip().strip(_ZERO_WIDTH + _DIRECTION_MARKS)) != text:
        text = shorter
    return text
