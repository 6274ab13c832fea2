"""The events that everything here is measured with: 20,000 state changes of a large home.

They are shaped like the recordings of Home Assistant 2026.11, are always the same, and are
made in half a second, so nothing is stored on disk.
"""

from __future__ import annotations

import functools
import random
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle

import msgspec

from benchmarks.entities import KINDS, Entity, Look, make_entities, registry_rows
from simulator.fake_home_assistant import JsonObject, RegistryKind, timestamp

EVENTS = 20_000
ENTITIES = 2_000
EVENT_ID = 2
"""The id of the subscription that the events of the corpus answer."""

_SEED = 20_261_123
_ATTRIBUTES_ONLY_SHARE = 0.08
_UNAVAILABLE_SHARE = 0.01
_REMOVED_SHARE = 0.001
_USER = "6c066f03ab024990bc5a3187825fb811"

# What differs from one playing of an event to the next stands in it as a single byte that
# JSON cannot hold: replacing one of those costs a tenth of a microsecond.
_NOW, _UPDATED, _CHANGED, _CONTEXT, _FORMER_CONTEXT = b"\x01", b"\x02", b"\x03", b"\x04", b"\x05"
_HOLES = {
    b"@now@": _NOW,
    b"@updated@": _UPDATED,
    b"@changed@": _CHANGED,
    b"@context@": _CONTEXT,
    b"@former@": _FORMER_CONTEXT,
}


@dataclass(frozen=True, slots=True)
class Template:
    """One event with holes for its times and contexts."""

    entity_id: str
    data: bytes
    is_new_state: bool
    """Whether the state differs from the former one, not only the attributes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A home and what happens in it, over and over."""

    templates: Sequence[Template]
    states: Sequence[JsonObject]
    registries: Mapping[RegistryKind, Sequence[JsonObject]]


@functools.cache
def make_corpus(events: int = EVENTS, entities_in_home: int = ENTITIES) -> Corpus:
    """Return the corpus, or as many of its first events, of a home of that size."""
    chance = random.Random(_SEED)
    entities = make_entities(entities_in_home)
    happenings = list(_happenings(chance, entities, events))
    # The events form a circle: what an entity is at the end, it was at the beginning.
    looks: dict[str, Look | None] = {}
    for entity, look in happenings:
        looks[entity.entity_id] = look
    last = dict(looks)
    templates = []
    for entity, look in happenings:
        templates.append(_template(chance, entity, looks[entity.entity_id], look))
        looks[entity.entity_id] = look
    return Corpus(
        templates=templates,
        states=[_state_row(entity, last[entity.entity_id]) for entity in entities],
        registries=registry_rows(entities),
    )


def _happenings(
    chance: random.Random, entities: Sequence[Entity], events: int
) -> Iterator[tuple[Entity, Look | None]]:
    """Yield what becomes of which entity; each of them comes at least once."""
    by_kind = {kind: [entity for entity in entities if entity.kind is kind] for kind in KINDS}
    kinds = chance.choices(KINDS, [kind.share for kind in KINDS], k=max(0, events - len(entities)))
    order = [*entities, *(chance.choice(by_kind[kind]) for kind in kinds)]
    chance.shuffle(order)
    former: dict[str, Look] = {}
    gone: set[str] = set()
    for entity in order:
        state, attributes = former.get(entity.entity_id, ("", {}))
        new_state, attributes = entity.kind.move(chance, attributes)
        if state and chance.random() < _ATTRIBUTES_ONLY_SHARE:
            new_state = state
        former[entity.entity_id] = new_state, attributes
        fate = chance.random()
        # Only what is there can go; the first event of an entity may follow its last one.
        if state and fate < _REMOVED_SHARE and entity.entity_id not in gone:
            gone.add(entity.entity_id)
            yield entity, None
            continue
        gone.discard(entity.entity_id)
        if fate < _REMOVED_SHARE + _UNAVAILABLE_SHARE:
            yield entity, ("unavailable", {})
        else:
            yield entity, (new_state, attributes)


def _template(
    chance: random.Random, entity: Entity, old: Look | None, new: Look | None
) -> Template:
    is_new_state = old is None or new is None or old[0] != new[0]
    context = {
        "id": "@context@",
        "parent_id": None,
        "user_id": _USER if chance.random() < 0.05 else None,
    }
    changed = "@now@" if is_new_state else "@changed@"
    event = {
        "event_type": "state_changed",
        "data": {
            "entity_id": entity.entity_id,
            "old_state": _row(entity, old, "@changed@", "@updated@", {**context, "id": "@former@"}),
            "new_state": _row(entity, new, changed, "@now@", context),
        },
        "origin": "LOCAL",
        "time_fired": "@now@",
        "context": context,
    }
    data = msgspec.json.encode(event)
    for word, hole in _HOLES.items():
        data = data.replace(word, hole)
    return Template(entity.entity_id, data, is_new_state)


def _row(
    entity: Entity, look: Look | None, changed: str, updated: str, context: JsonObject
) -> JsonObject | None:
    if look is None:
        return None
    state, attributes = look
    return {
        "entity_id": entity.entity_id,
        "state": state,
        "attributes": {**attributes, "friendly_name": entity.name},
        "last_changed": changed,
        "last_reported": updated,
        "last_updated": updated,
        "context": context,
    }


def _state_row(entity: Entity, look: Look | None) -> JsonObject:
    before = timestamp(datetime(2026, 11, 23, tzinfo=UTC))
    context = {"id": "01M84T2E28JNM921DH7R044M5X", "parent_id": None, "user_id": None}
    row = _row(entity, look or ("unknown", {}), before, before, context)
    assert row is not None
    return row


class Stream:
    """Plays the corpus without end, each event with a time and a context of its own."""

    def __init__(self, corpus: Corpus) -> None:
        self.identities: list[tuple[str, int]] = []
        """(entity_id, time in nanoseconds) of every event taken; no two are the same."""
        self._templates = cycle(corpus.templates)
        self._last_us = 0
        self._second = -1
        self._second_text = b""
        start = b"2026-11-23T00:00:00.000000+00:00"
        first = (start, start, b"01M84T2E28JNM921DH7R044M5X")
        self._former = {template.entity_id: first for template in corpus.templates}
        """When each entity changed and was updated, and the context of that."""

    def take(self, count: int, *, now_ns: int) -> list[bytes]:
        """Return the next events, encoded; they happen from now on, a microsecond apart."""
        first_us = max(now_ns // 1000, self._last_us + 1)
        self._last_us = first_us + count - 1
        contexts = secrets.token_hex(8 * count).upper().encode()
        events = []
        for number in range(count):
            template = next(self._templates)
            entity_id = template.entity_id
            now = self._written(first_us + number)
            context = b"01M84T2E28" + contexts[16 * number : 16 * number + 16]
            changed, updated, former_context = self._former[entity_id]
            events.append(
                template.data.replace(_NOW, now)
                .replace(_UPDATED, updated)
                .replace(_CHANGED, changed)
                .replace(_CONTEXT, context)
                .replace(_FORMER_CONTEXT, former_context)
            )
            self._former[entity_id] = (now if template.is_new_state else changed, now, context)
            self.identities.append((entity_id, (first_us + number) * 1000))
        return events

    def _written(self, time_us: int) -> bytes:
        second, microsecond = divmod(time_us, 1_000_000)
        if second != self._second:
            self._second = second
            self._second_text = datetime.fromtimestamp(second, UTC).isoformat()[:19].encode()
        return b"%b.%06d+00:00" % (self._second_text, microsecond)


def make_frames(corpus: Corpus, *, per_frame: int) -> list[bytes]:
    """Return one round of the corpus as Home Assistant sends it: that many events a frame."""
    start_ns = 1_795_457_886_833_397_000
    events = Stream(corpus).take(len(corpus.templates), now_ns=start_ns)
    messages = [b'{"type":"event","event":%b,"id":%d}' % (event, EVENT_ID) for event in events]
    if per_frame == 1:
        return messages
    return [
        b"[" + b",".join(messages[start : start + per_frame]) + b"]"
        for start in range(0, len(messages), per_frame)
    ]
