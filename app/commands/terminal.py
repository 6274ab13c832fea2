"""Color for people at a terminal, and only there."""

from __future__ import annotations

import os
from typing import TextIO

GREEN, YELLOW, RED, BOLD = 32, 33, 31, 1


def colored(text: str, code: int, out: TextIO) -> str:
    """Return the text in a color if `out` is a terminal and NO_COLOR (no-color.org) is unset."""
    if not out.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


def bold(text: str, out: TextIO) -> str:
    """Return the text in bold, under the same conditions."""
    return colored(text, BOLD, out)
