"""docs/TROUBLESHOOTING.md quotes messages that exist in the code."""

from __future__ import annotations

import ast
import re
from dataclasses import asdict
from functools import cache

import pytest

from tests.fakes.documents import ROOT
from tests.fakes.snapshots import HEALTHY

DOCUMENT = (ROOT / "docs" / "TROUBLESHOOTING.md").read_text()
_QUOTE = re.compile(r"^ *> (.*)$", re.MULTILINE)
_LOGGED = re.compile(r"log says\s+`([^`]+)`")
_MEMBER = re.compile(
    r"`((?:connection|subscription|accounting|discovery|gaps|performance)\.[\w.]+)`"
)
_OF_LOGS = re.compile(r"%(?:\.\d+)?[sdrf]")
_FEW_WORDS = 3
_FOREIGN = {"SSL CERTIFICATE_VERIFY_FAILED", "401", "403", "404"}
"""Texts of other programs within our sentences."""


@cache
def _texts_of_the_code() -> frozenset[str]:
    """Return every text in app/, with `…` in place of each value."""
    return frozenset(
        _OF_LOGS.sub("…", text)
        for file in (ROOT / "app").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if (text := _text(node)) is not None
    )


def _text(node: ast.AST) -> str | None:
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=values):
            return "".join(_text(value) or "…" for value in values)
        case _:
            return None


def _words(text: str) -> list[str]:
    """Return the words of a text without punctuation."""
    return re.findall(r"\w[\w./-]*\w|\w", text)


@cache
def _parts() -> frozenset[str]:
    """Return the words between the values of every text in app/."""
    texts = _texts_of_the_code()
    return frozenset(" ".join(_words(part)) for text in texts for part in text.split("…"))


def _is_in_the_code(words: list[str]) -> bool:
    """Whether texts of the code contain these words in order, at least three at a time.

    A sentence is often composed of several texts: actor, fact, duration and advice.
    """
    for end in range(len(words), 0, -1):
        piece = " ".join(words[:end])
        whole = piece in _parts() or piece in _FOREIGN
        known = whole or (end >= _FEW_WORDS and any(piece in part for part in _parts()))
        if known and _is_in_the_code(words[end:]):
            return True
    return not words


@pytest.mark.parametrize("sentence", [*_QUOTE.findall(DOCUMENT), *_LOGGED.findall(DOCUMENT)])
def test_every_quoted_sentence_is_in_the_code(sentence: str) -> None:
    """A reader searches for the sentence they see."""
    pieces = [words for piece in sentence.split("…") if (words := _words(piece))]

    assert pieces != []
    assert [" ".join(words) for words in pieces if not _is_in_the_code(words)] == []


@pytest.mark.parametrize(
    "sentence", ["The journal is empty and drops points", "InfluxDB is sad", "Events Memory"]
)
def test_a_sentence_that_is_not_in_the_code_is_detected(sentence: str) -> None:
    """Even one that is similar to a real one."""
    assert not _is_in_the_code(_words(sentence))


@pytest.mark.parametrize("member", sorted({*_MEMBER.findall(DOCUMENT)}))
def test_every_quoted_member_of_health_exists(member: str) -> None:
    """Under the quoted name."""
    found: object = asdict(HEALTHY)
    for name in member.split("."):
        assert isinstance(found, dict)
        assert name in found
        found = found[name]


def test_every_reason_of_health_is_explained() -> None:
    """Each is recognized by words that only it has."""
    expected = {
        "Home Assistant cannot be reached for",
        "Home Assistant refused the token",
        "Home Assistant says it is",
        "Home Assistant runs in recovery mode",
        "Home Assistant runs in safe mode",
        "Events are not durable",
        "The journal is full",
        "The journal file was damaged",
        "could not be read any more and are missing",
        "recovers everything that can be read",
        "dead letters were saved",
        "has not been taking writes",
        "has been refusing writes",
        "has been refusing every point",
        "were not refreshed for",
        "The data API does not take rows",
        "The entity filter in",
        "cannot be read back from Home Assistant",
        "Events were dropped before they were durable",
        "Events are being dropped",
        "were refused by the database and wait as dead",
        "dead letters were lost because there were too many",
        "over MAX_MEMORY_MB",
        "loop ended",
    }

    texts = [" ".join(text.split()) for text in _texts_of_the_code()]
    assert [words for words in expected if not any(words in text for text in texts)] == []
    assert [words for words in expected if words not in DOCUMENT] == []
