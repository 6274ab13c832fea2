"""What `--help` says: what a command does and needs, examples, and its exit statuses."""

from __future__ import annotations

import argparse
from typing import TypedDict


class Described(TypedDict):
    """The part of a parser's arguments that is text."""

    help: str
    description: str
    epilog: str
    formatter_class: type[argparse.HelpFormatter]


def described(summary: str, *, does: str, needs: str, examples: str, statuses: str) -> Described:
    """Return the texts of a command: `summary` for the list of all, the rest for its own page."""
    return Described(
        help=summary,
        description=does,
        epilog=f"needs:\n{_indented(needs)}\n\nexamples:\n{_indented(examples)}\n\n"
        f"exit status:\n{_indented(statuses)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines())
