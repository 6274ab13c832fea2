"""`docs/GUARANTEES.md` names the tests of each guarantee; these tests check that they exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "GUARANTEES.md").read_text()
PROMISES = re.split(r"^## (?=G\d+ )", TEXT, flags=re.MULTILINE)[1:]

_NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def defined_in(path: Path) -> set[str]:
    """Return the names of all functions and classes of a file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)}


@pytest.mark.parametrize("path", sorted({path for path, _ in _NAMED.findall(TEXT)}))
def test_every_test_that_a_guarantee_names_exists(path: str) -> None:
    """Renaming a test means renaming it there."""
    named = {name for file, name in _NAMED.findall(TEXT) if file == path}

    assert named - defined_in(ROOT / path) == set()


def test_every_guarantee_names_its_tests() -> None:
    """G1 to G10, in order; one that is not built yet is marked as such."""
    numbers = [promise.partition(" ")[0] for promise in PROMISES]

    assert numbers == [f"G{number}" for number in range(1, 11)]
    for promise in PROMISES:
        assert ("Not built yet." in promise) != bool(_NAMED.search(promise)), promise[:40]
