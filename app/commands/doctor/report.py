"""What a check found, and how all of them are told to a person and to a program. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

Status: TypeAlias = Literal["ok", "warning", "failed", "not tried"]
Verdict: TypeAlias = Literal["ok", "warning", "failed", "unusable"]
Reading: TypeAlias = str | int | float | bool | None

_SETTINGS = "settings"


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
    """Return that all is well."""
    return Finding(name=name, status="ok", what=what, readings=readings)


def warning(name: str, what: str, advice: str, **readings: Reading) -> Finding:
    """Return that a person should look, and that the service works all the same."""
    return Finding(name=name, status="warning", what=what, advice=advice, readings=readings)


def failed(name: str, what: str, advice: str, **readings: Reading) -> Finding:
    """Return that the service cannot do its work like this."""
    return Finding(name=name, status="failed", what=what, advice=advice, readings=readings)


def not_tried(name: str, why: str) -> Finding:
    """Return that nothing can be said, because of `why`: the rest of a sentence."""
    return Finding(name=name, status="not tried", what=f"Not tried, because {why}.")


def told(finding: Finding) -> str:
    """Return a finding as one line."""
    name = finding.name.replace("_", " ")
    advice = f" {finding.advice}" if finding.advice else ""
    return f"{finding.status:<9}  {name:<20}  {finding.what}{advice}"


def without_secrets(finding: Finding, hidden: Callable[[str], str]) -> Finding:
    """Return the finding with `hidden` done to each of its texts."""
    return replace(
        finding,
        what=hidden(finding.what),
        advice=None if finding.advice is None else hidden(finding.advice),
        readings={
            name: hidden(value) if isinstance(value, str) else value
            for name, value in finding.readings.items()
        },
    )


def verdict(findings: Sequence[Finding]) -> Verdict:
    """Return how it went on the whole."""
    statuses = {finding.status for finding in findings}
    if any(each.name == _SETTINGS and each.status == "failed" for each in findings):
        return "unusable"
    if "failed" in statuses:
        return "failed"
    return "warning" if "warning" in statuses else "ok"


def summary(findings: Sequence[Finding]) -> str:
    """Return the last line for a person."""
    match verdict(findings):
        case "ok":
            return "All is well."
        case "unusable":
            return "The settings cannot be used: mend them, then ask again."
        case _:
            parts = [
                _counted(findings, "failed", "check failed", "checks failed"),
                _counted(findings, "warning", "warning", "warnings"),
            ]
            return f"{', '.join(part for part in parts if part)}."


def document(findings: Sequence[Finding], *, version: str) -> str:
    """Return everything as JSON for programs; its shape is described in docs/DOCTOR.md."""
    return json.dumps(
        {
            "verdict": verdict(findings),
            "version": version,
            "checks": [
                {
                    "name": finding.name,
                    "status": finding.status,
                    "what": finding.what,
                    "advice": finding.advice,
                    "readings": dict(finding.readings),
                }
                for finding in findings
            ],
        },
        indent=2,
    )


def _counted(findings: Sequence[Finding], status: Status, one: str, several: str) -> str:
    count = sum(finding.status == status for finding in findings)
    return f"{count} {one if count == 1 else several}" if count else ""
