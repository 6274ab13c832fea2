"""What a check found, as lines for people and as JSON for programs. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Literal, TextIO, TypeAlias

from app.commands.terminal import GREEN, RED, YELLOW, colored
from app.doctor.findings import Finding, Status

Verdict: TypeAlias = Literal["ok", "warning", "failed", "unusable"]

_SETTINGS = "settings"
_COLORS: Mapping[Status, int] = {"ok": GREEN, "warning": YELLOW, "failed": RED}
_MOST_PROBLEMS = 4
_EXAMPLES = {
    "HOME_ASSISTANT_URL": "HOME_ASSISTANT_URL=http://homeassistant.local:8123",
    "HOME_ASSISTANT_TOKEN": "HOME_ASSISTANT_TOKEN=...  # Home Assistant: your profile, Security,"
    " long-lived access tokens",
}


def line(finding: Finding, out: TextIO) -> str:
    """Return a finding as one line for `out`."""
    advice = f" {finding.advice}" if finding.advice else ""
    return f"{_head(finding, out)}{finding.what}{advice}"


def unusable(findings: Sequence[Finding], out: TextIO) -> str:
    """Return what to show when the settings cannot be used: ten lines at most."""
    problems = [finding for finding in findings if finding.status == "failed"]
    lines = [f"{_head(each, out)}{each.what}" for each in problems[:_MOST_PROBLEMS]]
    if more := problems[_MOST_PROBLEMS:]:
        lines[-1] += (
            f" And {len(more)} more: {', '.join(each.what.split(':')[0] for each in more)}."
        )
    text = " ".join(each.what for each in problems)
    examples = [f"  {example}" for name, example in _EXAMPLES.items() if name in text]
    lines += ["", "The settings cannot be used, so nothing else was checked."]
    if examples:
        lines += ["Put this into .env (.env.example describes all settings), then run this again:"]
        if len(examples) == len(_EXAMPLES):
            examples += ["Or run `python -m app run` without them, and set it up in the browser."]
        return "\n".join((*lines, *examples))
    return "\n".join((*lines, "Correct them in the environment or in .env, then run this again."))


def _head(finding: Finding, out: TextIO) -> str:
    color = _COLORS.get(finding.status)
    status = f"{finding.status:<9}"
    status = status if color is None else colored(status, color, out)
    return f"{status}  {finding.name.replace('_', ' '):<20}  "


def verdict(findings: Sequence[Finding]) -> Verdict:
    """Return the result of all checks together."""
    statuses = {finding.status for finding in findings}
    if any(each.name == _SETTINGS and each.status == "failed" for each in findings):
        return "unusable"
    if "failed" in statuses:
        return "failed"
    return "warning" if "warning" in statuses else "ok"


def summary(findings: Sequence[Finding]) -> str:
    """Return the last line for people."""
    match verdict(findings):
        case "ok":
            return "All is well."
        case _:
            parts = [
                _counted(findings, "failed", "check failed", "checks failed"),
                _counted(findings, "warning", "warning", "warnings"),
            ]
            return f"{', '.join(part for part in parts if part)}."


def document(findings: Sequence[Finding], *, version: str) -> str:
    """Return all findings as JSON, as docs/DOCTOR.md describes it."""
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
