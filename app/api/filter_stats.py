"""`/api/v1/filter/stats`: what the entity filter does."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from fastapi import APIRouter

from app.api.dependencies import ComponentsDep
from app.api.models import FilterRule, FilterStats
from app.normalize.filter_rules import Pattern

router = APIRouter(tags=["status"])


@router.get("/api/v1/filter/stats", summary="What the entity filter passed and held back")
async def filter_stats(components: ComponentsDep) -> FilterStats:
    """Return the rules in use and how often each decided; without a filter all passes."""
    if components.entity_filter is None:
        return FilterStats(
            active=False,
            source=None,
            mode=None,
            passed=0,
            filtered=0,
            patterns=[],
            exceptions=[],
            loaded_at=None,
            problem=None,
        )
    status = components.entity_filter.status()
    first_exception = len(status.rules.patterns)
    return FilterStats(
        active=True,
        source=status.source,
        mode=status.rules.mode,
        passed=status.passed,
        filtered=status.filtered,
        patterns=_rules(status.rules.patterns, status.matched),
        exceptions=_rules(status.rules.exceptions, status.matched[first_exception:]),
        loaded_at=status.loaded_at,
        problem=status.problem,
    )


def _rules(patterns: Sequence[Pattern], matched: Sequence[int]) -> list[FilterRule]:
    return [
        FilterRule(rule=msgspec.to_builtins(pattern), matched=count)
        for pattern, count in zip(patterns, matched, strict=False)
    ]
