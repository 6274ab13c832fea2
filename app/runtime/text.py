"""Text for logs and pages: foreign text made safe, and durations. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote, quote_plus

MAX_FOREIGN_CHARS = 65_536
"""Longer text is cut before anything else looks at it."""
_LONG_SECRET = 6


def one_line(text: str, secrets: Sequence[str] = (), *, max_chars: int = 500) -> str:
    """Return the text on one line, without control characters and with each secret masked."""
    text = text[:MAX_FOREIGN_CHARS]
    for secret in secrets:
        for form in {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)}:
            # A password of one letter must neither be shown nor make every word unreadable.
            is_long = len(form) >= _LONG_SECRET
            exact = re.escape(form)
            text = re.sub(exact if is_long else rf"(?<!\w){exact}(?!\w)", "***", text)
    text = " ".join(text.split())
    if not text.isprintable():  # looking at each character of a long text takes milliseconds
        text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text[:max_chars]


def duration(seconds: float) -> str:
    """Return a length of time for a person: `90 s`, `5 min`."""
    for unit, size_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size_s:
            return f"{seconds / size_s:.0f} {unit}"
    return f"{max(seconds, 0.0):.0f} s"
