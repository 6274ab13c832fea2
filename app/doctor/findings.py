"""What a check found. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

Status: TypeAlias = Literal["ok", "warning", "failed", "not tried"]
Reading: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check: how it went, what was seen, and what a person can do about it."""

    name: str
    """Stable, for programs; words joined by `_`."""
    status: Status
    what: str
    """One or more whole sentences."""
    advice: str | None = None
    """Whole sentences; None when there is nothing to do."""
    readings: Mapping[str, Reading] = field(default_factory=dict)
    """What was measured, by name with its unit."""


def ok(name: str, what: str, **readings: Reading) -> Finding:
    """Return a finding that all is well."""
    return Finding(name=name, status="ok", what=what, readings=readings)


def warning(name: str, what: str, advice: str, **readings: Reading) -> Finding:
    """Return a finding that a person should look at, although the service works."""
    return Finding(name=name, status="warning", what=what, advice=advice, readings=readings)


def failed(name: str, what: str, advice: str, **readings: Reading) -> Finding:
    """Return a finding that keeps the service from doing its work."""
    return Finding(name=name, status="failed", what=what, advice=advice, readings=readings)


def not_tried(name: str, why: str) -> Finding:
    """Return that a check was not run; `why` is the rest of the sentence after "because"."""
    return Finding(name=name, status="not tried", what=f"Not tried, because {why}.")


def without_secrets(finding: Finding, hidden: Callable[[str], str]) -> Finding:
    """Return the finding with `hidden` applied to each of its texts."""
    return replace(
        finding,
        what=hidden(finding.what),
        advice=None if finding.advice is None else hidden(finding.advice),
        readings={
            name: hidden(value) if isinstance(value, str) else value
            for name, value in finding.readings.items()
        },
    )
