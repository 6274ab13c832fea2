"""Shell-style patterns: `*`, `?` and `[…]`."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable


def glob_matcher(globs: Iterable[str]) -> Callable[[str], re.Match[str] | None]:
    """Return a function that tests whether a whole text matches any of the globs.

    Case matters. The time is bounded however many `*` a glob has: since Python 3.11
    `fnmatch.translate` makes each part an atomic group, which never backtracks.
    """
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs)).match
