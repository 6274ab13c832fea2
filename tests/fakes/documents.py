"""Fenced blocks, prose and queries of the documentation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))
"""The Markdown files of this project."""

_FENCE = re.compile(r"^```([a-z]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block."""

    document: Path
    language: str
    text: str


def blocks(document: Path) -> list[Block]:
    """Return the fenced blocks of a document, in order."""
    found = _FENCE.findall(document.read_text())
    return [Block(document, language, text) for language, text in found]


def prose(document: Path) -> str:
    """Return a document without its fenced blocks."""
    return _FENCE.sub("", document.read_text())


def queries() -> dict[str, dict[str, str]]:
    """Return the queries of docs/SCHEMA.md by their title and language."""
    text = (ROOT / "docs" / "SCHEMA.md").read_text()
    chapter = text.partition("\n## Queries\n")[2].partition("\n## ")[0]
    _, *sections = chapter.split("\n### ")
    return {
        section.partition("\n")[0]: {
            language: query.strip() for language, query in _FENCE.findall(section)
        }
        for section in sections
    }
