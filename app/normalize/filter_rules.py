"""The rules of the entity filter: which changes pass; pure.

    {"mode": "exclude", "patterns": [{"domain": "sun"}], "exceptions": [{"entity_id": "sun.sun"}]}

`exclude` passes what no pattern matches, `include` only what one matches; an exception always
passes. A pattern matches if one of its keys does. Values are globs, or lists of them:
`entity_id`, `domain`, `device_class`, `area_id`, and, by their ids, `label` and `floor`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import msgspec

from app.model import Change, Placement
from app.runtime.errors import FilterInvalid
from app.runtime.globs import glob_matcher
from app.runtime.text import one_line

_MAX_VERDICTS = 50_000
_PLACED = re.compile(r"(.*) - at `(\$[^`]*)`", re.DOTALL)
"""A message of msgspec with its place; without one it concerns the whole document."""

Globs: TypeAlias = str | tuple[str, ...]


class Pattern(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A rule; it matches if one of its keys does."""

    entity_id: Globs = ()
    domain: Globs = ()
    device_class: Globs = ()
    area_id: Globs = ()
    label: Globs = ()
    floor: Globs = ()


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The filter as a user writes it."""

    mode: Literal["exclude", "include"] = "exclude"
    patterns: tuple[Pattern, ...] = ()
    exceptions: tuple[Pattern, ...] = ()


def read_rules(text: str) -> Rules:
    """Return the rules in a JSON document.

    Raises:
        FilterInvalid: the message states what is wrong, and where.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as exc:
        raise FilterInvalid(f"line {exc.lineno}, column {exc.colno}: {exc.msg}") from exc
    except ValueError as exc:  # CPython's limit of digits
        raise FilterInvalid("$: a number in it has too many digits") from exc
    except RecursionError as exc:
        raise FilterInvalid("$: it is nested too deep") from exc
    for place in _lone_surrogates(document, "$"):
        raise FilterInvalid(f"{place}: a text holds half a surrogate pair, which fits nothing")
    try:
        rules = msgspec.convert(document, Rules)
    except msgspec.ValidationError as exc:
        placed = _PLACED.fullmatch(str(exc))
        what, where = placed.groups() if placed else (str(exc), "$")
        raise FilterInvalid(f"{where}: {one_line(what)}") from exc
    for name in ("patterns", "exceptions"):
        for number, pattern in enumerate(getattr(rules, name)):
            if not any(getattr(pattern, key) for key in Pattern.__struct_fields__):
                raise FilterInvalid(f"$.{name}[{number}]: it names nothing, so it fits nothing")
    if rules.mode == "include" and not rules.patterns and not rules.exceptions:
        raise FilterInvalid("$.patterns: `include` without a pattern would keep nothing")
    return rules


def _lone_surrogates(value: object, place: str) -> Iterator[str]:
    """Yield the places of texts with lone surrogates, which JSON's escapes can express."""
    match value:
        case str():
            if any("\ud800" <= sign <= "\udfff" for sign in value):
                yield place
        case list():
            for number, inner in enumerate(value):
                yield from _lone_surrogates(inner, f"{place}[{number}]")
        case dict():
            for key, inner in value.items():
                yield from _lone_surrogates(key, place)
                yield from _lone_surrogates(inner, f"{place}.{key if key.isidentifier() else '…'}")
        case _:
            pass


class Filter:
    """Applies the rules to changes; caches the verdict on each entity, within a bound."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.matched = [0] * (len(rules.patterns) + len(rules.exceptions))
        """How many changes each pattern decided, then each exception."""
        self._patterns = tuple(map(_compiled, rules.patterns))
        self._exceptions = tuple(map(_compiled, rules.exceptions))
        self._verdicts: dict[str, _Verdict] = {}

    def passes(self, change: Change) -> bool:
        """Whether the change passes."""
        return self._verdict(change).passes

    def selected(self, changes: Sequence[Change]) -> list[Change]:
        """Return the changes that pass, in order, and count which rules decided."""
        matched = self.matched
        passed = []
        for change in changes:
            verdict = self._verdict(change)
            if verdict.rule is not None:
                matched[verdict.rule] += 1
            if verdict.passes:
                passed.append(change)
        return passed

    def _verdict(self, change: Change) -> _Verdict:
        # The catalog returns the same object until a placement changes.
        verdict = self._verdicts.get(change.entity_id)
        if (
            verdict is None
            or verdict.placement is not change.placement
            or verdict.device_class != change.device_class
        ):
            if len(self._verdicts) >= _MAX_VERDICTS:
                self._verdicts.clear()
            verdict = self._verdicts[change.entity_id] = self._judge(change)
        return verdict

    def _judge(self, change: Change) -> _Verdict:
        passes = self.rules.mode == "exclude"
        rule = next((n for n, matches in enumerate(self._patterns) if matches(change)), None)
        if rule is not None:
            passes = not passes
        for number, matches in enumerate(self._exceptions, start=len(self._patterns)):
            if matches(change):
                passes, rule = True, number
                break
        return _Verdict(change.placement, change.device_class, passes, rule)


class _Verdict(msgspec.Struct, frozen=True, gc=False):
    """What was decided for an entity, and its properties then."""

    placement: Placement
    device_class: str | None
    passes: bool
    rule: int | None
    """The index of the pattern or exception that decided; None when none matched."""


_READ: Mapping[str, Callable[[Change], Sequence[str | None]]] = {
    "entity_id": lambda change: (change.entity_id,),
    "domain": lambda change: (change.domain,),
    "device_class": lambda change: (change.device_class,),
    "area_id": lambda change: (change.placement.area_id,),
    "label": lambda change: change.placement.labels,
    "floor": lambda change: (change.placement.floor_id,),
}


def _compiled(pattern: Pattern) -> Callable[[Change], bool]:
    keys = [
        (_READ[key], glob_matcher((globs,) if isinstance(globs, str) else globs))
        for key in Pattern.__struct_fields__
        if (globs := getattr(pattern, key))
    ]

    def matches(change: Change) -> bool:
        return any(
            value is not None and is_match(value)
            for read, is_match in keys
            for value in read(change)
        )

    return matches
