"""Reads one section of Home Assistant's YAML configuration, with the place of each value.

`!secret`, `!include` and the four `!include_dir_…` tags are resolved as by Home Assistant, on the
way to the section and inside it. Nothing else is executed: any other tag there is an error.
https://www.home-assistant.io/docs/configuration/splitting_configuration/
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from yaml.constructor import ConstructorError, SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from app.runtime.environment import UnusableFile, read_text
from app.runtime.text import one_line

_MAX_BYTES = 1_048_576
_MAX_FILES = 10_000
_MAIN = "configuration.yaml"
_SECRETS = "secrets.yaml"
_STANDARD = "tag:yaml.org,2002:"
_MAP, _SEQ = _STANDARD + "map", _STANDARD + "seq"


class ConfigurationInvalid(ValueError):
    """The YAML cannot be read; the message names the place."""


class Section(NamedTuple):
    """A section, and the nodes that it was made of."""

    value: Mapping[object, object]
    unread: frozenset[str]
    """Keys whose values are tagged and were not resolved."""
    node: Node

    def place(self, path: Sequence[str | int]) -> str:
        """Return `file:line` of a value, or of the nearest one around it."""
        place, node = self.node, self.node
        for part in path:
            found = _child(node, part)
            if found is None:
                break
            place, node = found
        return _place(place)


def read_section(name: str, source: str, *, label: str, opaque: frozenset[str]) -> Section:
    """Return a section from a file, a folder with `configuration.yaml`, or YAML itself.

    A file, or YAML, without the name of the section holds what stands below it. `label` names
    YAML in places. Tagged values of the keys in `opaque` are not resolved: a person who copies
    the section need not copy its secrets.

    Raises:
        ConfigurationInvalid: it cannot be read.
    """
    try:
        return _Reader(label).section(name, source, opaque)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        place = f"{mark.name}:{mark.line + 1}" if mark else label
        raise ConfigurationInvalid(f"{place}: {one_line(exc.problem or str(exc))}") from exc
    except RecursionError as exc:
        raise ConfigurationInvalid(f"{label}: is nested too deep, or includes itself") from exc
    except yaml.YAMLError as exc:
        raise ConfigurationInvalid(f"{label}: is not YAML: {one_line(str(exc))}") from exc


class _Constructor(SafeConstructor):
    """Makes values of nodes, and names the place of one that cannot be made."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:  # noqa: FBT001, FBT002 - PyYAML's
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError, LookupError, AttributeError) as exc:
            kind = node.tag.removeprefix(_STANDARD)  # the value itself may be a secret
            raise ConstructorError(
                None, None, f"is not a valid {kind}; quote it if it is text", node.start_mark
            ) from exc


class _Reader:
    """Composes files into nodes, and resolves the tags in them."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._home: Path | None = None
        """Home Assistant's configuration folder; None for YAML that is in no file."""
        self._files = 0
        self._resolved: dict[int, Node | None] = {}
        """By node, which is in `_nodes` so that no other one gets its id."""
        self._nodes: list[Node] = []

    def section(self, name: str, source: str, opaque: frozenset[str]) -> Section:
        root, is_main = self._root(source)
        found = list(self._sections(root, name))
        if len(found) > 1:
            places = ", ".join(map(_place, found))
            raise ConfigurationInvalid(f"{name}: is defined in several places: {places}")
        if not found and is_main:
            raise ConfigurationInvalid(f"{_place(root)}: has no {name}:")
        node = self._one(found[0] if found else root)
        if isinstance(node, ScalarNode) and node.tag == _STANDARD + "null":
            node = MappingNode(_MAP, [], node.start_mark, node.end_mark)
        if not isinstance(node, MappingNode):
            instead = ", and is a list" if isinstance(node, SequenceNode) else ""
            raise ConfigurationInvalid(f"{_place(node)}: {name}: must be a mapping{instead}")
        is_unread = [_key(key) in opaque and not _is_plain(value) for key, value in node.value]
        pairs = [pair for pair, skipped in zip(node.value, is_unread, strict=True) if not skipped]
        unread = [_key(key) for key, _ in node.value if _key(key) in opaque]
        resolved = self._all(MappingNode(_MAP, pairs, node.start_mark, node.end_mark))
        value = _Constructor().construct_document(resolved)
        return Section(value, frozenset(unread) - set(value), resolved)

    def _root(self, source: str) -> tuple[Node, bool]:
        """Return the root node, and whether it is that of Home Assistant's main file."""
        path = Path(source)
        node = None if _exists(path) else self._composed(source, self._label)
        if isinstance(node, MappingNode | SequenceNode):
            return node, False
        self._home = path.absolute() if path.is_dir() else path.absolute().parent
        file = self._home / _MAIN if path.is_dir() else path.absolute()
        return self._file(file), file.name == _MAIN

    def _sections(self, root: Node, name: str) -> Iterator[Node]:
        """Yield the section of the file, and those of its packages."""
        if (found := _child(root, name)) is not None:
            yield found[1]
        packages: Node = root
        for key in ("homeassistant", "packages"):
            if (found := _child(packages, key)) is None:
                return
            packages = self._one(found[1])
        for _, package in packages.value if isinstance(packages, MappingNode) else ():
            if (found := _child(self._one(package), name)) is not None:
                yield found[1]

    def _all(self, node: Node) -> Node:
        """Return a node whose tags are resolved, at any depth."""
        key = id(node)
        if key in self._resolved:
            resolved = self._resolved[key]
            if resolved is None:
                raise ConfigurationInvalid(f"{_place(node)}: contains itself")
            return resolved
        self._nodes.append(node)
        self._resolved[key] = None
        resolved = self._one(node)
        if isinstance(resolved, MappingNode):
            pairs = [(self._all(key), self._all(value)) for key, value in resolved.value]
            resolved = MappingNode(resolved.tag, pairs, resolved.start_mark, resolved.end_mark)
        elif isinstance(resolved, SequenceNode):
            values = [self._all(value) for value in resolved.value]
            resolved = SequenceNode(resolved.tag, values, resolved.start_mark, resolved.end_mark)
        self._resolved[key] = resolved
        return resolved

    def _one(self, node: Node) -> Node:
        """Return what the tag of a node stands for; its children stay as they are."""
        while not _is_plain(node):
            resolve = self._tags().get(node.tag)
            if resolve is None or not isinstance(node, ScalarNode) or not node.value:
                raise ConfigurationInvalid(f"{_place(node)}: {node.tag} cannot be used here")
            if self._home is None:
                raise ConfigurationInvalid(f"{_place(node)}: {node.tag} needs a file or a folder")
            node = resolve(node)
        return node

    def _tags(self) -> Mapping[str, Callable[[ScalarNode], Node]]:
        return {
            "!secret": self._secret,
            "!include": lambda node: self._file(_beside(node), node),
            "!include_dir_list": lambda node: _sequence(node, self._in_folder(node)),
            "!include_dir_named": lambda node: _mapping(
                node, [(_name(root, file), root) for file, root in self._files_in(node)]
            ),
            "!include_dir_merge_list": lambda node: _sequence(
                node,
                [item for root in self._in_folder(node, SequenceNode) for item in root.value],
            ),
            "!include_dir_merge_named": lambda node: _mapping(
                node, [pair for root in self._in_folder(node, MappingNode) for pair in root.value]
            ),
        }

    def _secret(self, node: ScalarNode) -> Node:
        """Return a secret from the nearest `secrets.yaml`, up to Home Assistant's folder."""
        assert self._home is not None, "only files have secrets"
        folder = Path(node.start_mark.name).parent
        while folder.is_relative_to(self._home):
            if (file := folder / _SECRETS).is_file():
                found = _child(self._file(file, node), node.value)
                if found is not None:
                    return found[1]
            folder = folder.parent
        raise ConfigurationInvalid(f"{_place(node)}: {node.value!r} is in no {_SECRETS}")

    def _in_folder(self, node: ScalarNode, kind: type[Node] = Node) -> list[Node]:
        roots = (self._one(root) for _, root in self._files_in(node))
        return [root for root in roots if isinstance(root, kind) and not _is_null(root)]

    def _files_in(self, node: ScalarNode) -> Iterator[tuple[Path, Node]]:
        """Yield the YAML files below a folder, each with its root, in Home Assistant's order."""
        for folder, folders, files in os.walk(_beside(node)):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in sorted(files):
                if fnmatch(name, "[!.]*.yaml") and name != _SECRETS:
                    file = Path(folder, name)
                    yield file, self._file(file, node)

    def _file(self, file: Path, node: Node | None = None) -> Node:
        """Return the root of a file; an empty mapping if it is empty."""
        place = f"{_place(node)}: " if node else ""
        self._files += 1
        if self._files > _MAX_FILES:
            raise ConfigurationInvalid(f"{place}includes more than {_MAX_FILES} files")
        try:
            text = read_text(file, max_bytes=_MAX_BYTES)
        except OSError as exc:
            raise ConfigurationInvalid(f"{place}{file} cannot be read: {exc.strerror}") from exc
        except UnusableFile as exc:
            raise ConfigurationInvalid(f"{place}{file} cannot be used: it {exc}") from exc
        return self._composed(text, str(file))

    def _composed(self, text: str, name: str) -> Node:
        loader = yaml.SafeLoader(text)
        loader.name = name
        node = loader.get_single_node()
        if node is None:
            mark = yaml.Mark(name, 0, 0, 0, None, 0)
            node = MappingNode(_MAP, [], mark, mark)
        self._nodes.append(node)
        return node


def _place(node: Node) -> str:
    return f"{node.start_mark.name}:{node.start_mark.line + 1}"


def _child(node: Node, part: str | int) -> tuple[Node, Node] | None:
    """Return the key, or the value itself, and the value of a member; the last one wins."""
    if isinstance(node, SequenceNode):
        for value in node.value[part : part + 1] if isinstance(part, int) else ():
            return value, value
        return None
    pairs: list[tuple[Node, Node]] = node.value if isinstance(node, MappingNode) else []
    found = [pair for pair in pairs if _key(pair[0]) == str(part)]
    return found[-1] if found else None


def _key(node: Node) -> str:
    return str(node.value) if isinstance(node, ScalarNode) else ""


def _is_plain(node: Node) -> bool:
    return node.tag.startswith(_STANDARD)


def _is_null(node: Node) -> bool:
    """Whether it stands for an empty file."""
    return isinstance(node, MappingNode) and not node.value and node.start_mark.buffer is None


def _beside(node: ScalarNode) -> Path:
    """Return the path in a tag, which is relative to the file with the tag."""
    return Path(node.start_mark.name).parent / str(node.value)


def _sequence(node: Node, values: list[Node]) -> Node:
    return SequenceNode(_SEQ, values, node.start_mark, node.end_mark)


def _mapping(node: Node, pairs: list[tuple[Node, Node]]) -> Node:
    return MappingNode(_MAP, pairs, node.start_mark, node.end_mark)


def _name(root: Node, file: Path) -> Node:
    """Return the name of a file as a key."""
    return ScalarNode(_STANDARD + "str", file.stem, root.start_mark, root.end_mark)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # YAML is no path
        return False
