"""Names and sizes in `app/`: one class has one name, few files share theirs, classes stay small."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.fakes.documents import ROOT

_APP = ROOT / "app"
_MOST_FILES_OF_ONE_NAME = 2
"""A package and the routes or the command for it."""

_MOST_ATTRIBUTES = 15
_SHARED_FILE_NAMES = {"dead_letters.py"}
"""The store, the routes and the command of one thing, which the layout names alike."""


def _public_classes() -> Iterator[tuple[str, Path]]:
    for file in _APP.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield node.name, file.relative_to(ROOT)


def test_no_two_public_classes_of_app_share_a_name() -> None:
    """A search for a class finds one class."""
    files = defaultdict(list)
    for name, file in _public_classes():
        files[name].append(str(file))
    shared = {name: sorted(where) for name, where in files.items() if len(where) > 1}

    assert shared == {}


def test_no_three_files_of_app_share_a_name() -> None:
    """Except `__init__.py`; a file is recognized by its name alone."""
    folders = defaultdict(list)
    for file in _APP.rglob("*.py"):
        folders[file.name].append(str(file.parent.relative_to(ROOT)))
    shared = {
        name: sorted(where)
        for name, where in folders.items()
        if len(where) > _MOST_FILES_OF_ONE_NAME and name != "__init__.py"
    }

    assert {name: where for name, where in shared.items() if name not in _SHARED_FILE_NAMES} == {}
    assert _SHARED_FILE_NAMES - set(shared) == set(), "no longer shared: remove them above"


def _attributes(node: ast.ClassDef) -> set[str]:
    """Return the names that a class assigns to `self`."""
    return {
        target.attr
        for target in ast.walk(node)
        if isinstance(target, ast.Attribute)
        and isinstance(target.ctx, ast.Store)
        and isinstance(target.value, ast.Name)
        and target.value.id == "self"
    }


def test_no_class_of_app_has_more_attributes_than_allowed() -> None:
    """Fifteen are enough for each."""
    found = {
        node.name: len(_attributes(node))
        for file in _APP.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef)
    }

    assert {name: count for name, count in found.items() if count > _MOST_ATTRIBUTES} == {}
