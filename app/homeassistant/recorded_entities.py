"""Which entities may have changed in a span, from every source that a read-only token has.

Home Assistant has no list of the entities that its recorder holds, so they are collected: from
what is there now, what was there before, and what other parts of Home Assistant mention.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass

from app.homeassistant.recorder import Recorder, is_entity_id
from app.model import Lifecycle, Times
from app.runtime.errors import CommandFailed

NOT_LISTED = (
    "An entity that was created and removed in this span, and that no source lists, is missing: the"
    " logbook leaves out sensors with a unit, counters, and entities with a single state."
)
NO_LOGBOOK = (
    "Without the logbook, entities that were created and removed in this span are missing, and"
    " only the newest restart of Home Assistant is recognized."
)
"""What cannot be known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entities:
    """The entities of one span, and where they come from."""

    entity_ids: Collection[str]
    sources: tuple[str, ...]
    limitations: tuple[str, ...]
    lifecycle: Lifecycle


async def find_entities(
    recorder: Recorder, times: Times, *, own: Mapping[str, Collection[str]]
) -> Entities:
    """Return all entities that may have rows in a span.

    `own` has the sources that are known here, by name. A source that Home Assistant refuses is
    left out, and named among the limitations.

    Raises:
        SourceError: the connection was lost.
    """
    found = set[str]().union(*own.values())
    sources = list(own)
    limitations: list[str] = []
    lists: Mapping[str, Callable[[], Awaitable[Collection[str]]]] = {
        "entity_registry": recorder.registered,
        "statistics": recorder.with_statistics,
    }
    for name, entity_ids in lists.items():
        try:
            found |= {*await entity_ids()}
            sources.append(name)
        except CommandFailed as exc:
            limitations.append(f"Home Assistant does not show {name}: {exc}.")
    lifecycle = Lifecycle()
    try:
        logbook = await recorder.logbook(times)
        found |= {*logbook.entity_ids}
        lifecycle = logbook.lifecycle
        sources.append("logbook")
        limitations.append(NOT_LISTED)
    except CommandFailed as exc:
        limitations += [f"Home Assistant does not show logbook: {exc}.", NO_LOGBOOK]
    # An entity that has a state may have an id that Home Assistant would not give today.
    states = own.get("states", ())
    return Entities(
        entity_ids=sorted(name for name in found if name in states or is_entity_id(name)),
        sources=tuple(sources),
        limitations=tuple(limitations),
        lifecycle=lifecycle,
    )
