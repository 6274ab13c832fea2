"""`/api/v1/filter/stats`: the rules of the entity filter and how often each matched."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from fastapi import APIRouter

from app.api.dependencies import ComponentsDep
from app.api.models import FilterRule, FilterStats
from app.normalize.filter_rules import Pattern

router = APIRouter(tags=["status"])


@router.get("/api/v1/filter/stats", summary="Statistics of the entity filter")
async def filter_stats(components: ComponentsDep) -> FilterStats:
    """Return the current rules and how many changes each matched."""
    if components.entity_filter is None:
        return FilterStats()
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
