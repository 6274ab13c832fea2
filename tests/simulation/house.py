"""The simulated home behind the fake Home Assistant: entities that change, and a recorder.

It knows the truth: every change that Home Assistant fired, and every row that its recorder has
committed. Its clock is Home Assistant's own.
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count

from simulator.fake_home_assistant import (
    Fire,
    JsonObject,
    Refused,
    RegistryKind,
    registry_updated,
    state_changed,
    state_row,
)
from tests.real.reconcile import Row

Identity = tuple[str, int]
"""Entity and time of a change."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_AREAS = ("kitchen", "office", "garage")
EXCLUDED = "sensor.unrecorded"
"""The recorder's configuration excludes this entity."""
_SPECS: Mapping[str, tuple[JsonObject, str]] = {
    "sensor.kitchen_temperature": (
        {"device_class": "temperature", "unit_of_measurement": "°C", "state_class": "measurement"},
        "number",
    ),
    "sensor.office_power": ({"device_class": "power", "unit_of_measurement": "W"}, "number"),
    "sensor.office_energy": ({"device_class": "energy", "unit_of_measurement": "kWh"}, "number"),
    "sensor.washer_state": ({}, "word"),
    "binary_sensor.hall_motion": ({"device_class": "motion"}, "switch"),
    "binary_sensor.front_door": ({"device_class": "door"}, "switch"),
    "light.desk": ({"supported_color_modes": ["brightness"]}, "light"),
    "switch.fan": ({}, "switch"),
    "climate.living_room": ({"min_temp": 7}, "climate"),
    "input_text.note": ({}, "text"),
    EXCLUDED: ({"unit_of_measurement": "lx"}, "number"),
}
_WORDS = ("idle", "running", "rinsing", "done")
_TEXTS = ("plain", 'with "quotes"', "a, b=c d", "back\\slash", "naïve ☂", "  spaces  ", "x" * 200)


@dataclass(slots=True)
class Entity:
    """One entity and its state, as Home Assistant has it."""

    entity_id: str
    fixed: JsonObject
    kind: str
    row: JsonObject | None = None
    updated_ns: int = 0
    changed_ns: int = 0
    is_available: bool = True


@dataclass(slots=True)
class Queued:
    """A change on its way into the recorder's database."""

    row: Row
    shown: JsonObject
    at_s: float
    """When it happened, in seconds of the simulation."""

    @property
    def identity(self) -> Identity:
        """What identifies the change."""
        return self.row.entity_id, self.row.updated_ns


@dataclass(slots=True)
class Recorder:
    """The recorder: what waits, what is committed, what a query sees."""

    queue: list[Queued] = field(default_factory=list)
    lifecycle_queue: list[tuple[float, JsonObject]] = field(default_factory=list)
    """When Home Assistant started and stopped, each with the second of the simulation."""
    table: list[Row] = field(default_factory=list)
    """Every row that was ever committed."""
    lost: set[Identity] = field(default_factory=set)
    """What was never committed, because Home Assistant was killed."""
    purged_s: dict[Identity, float] = field(default_factory=dict)
    """When each row that is gone was purged, in seconds of the simulation."""
    by_entity: dict[str, tuple[list[int], list[JsonObject]]] = field(default_factory=dict)
    lifecycle: list[JsonObject] = field(default_factory=list)
    marked_s: dict[int, float] = field(default_factory=dict)
    """When each of these was committed, in seconds of the simulation, by its time."""
    newest: dict[str, int] = field(default_factory=dict)
    """By entity: number of the newest row since Home Assistant started."""
    is_locked: bool = False
    """Whether a backup holds the database: nothing is committed."""
    lag_s: float = 0.0
    """How far behind the recorder is."""
    late: int = 0
    """How many commits left something for later."""
    is_present: bool = True
    """Whether Home Assistant runs with a recorder, as it is configured when it starts."""
    missed: set[Identity] = field(default_factory=set)
    """What changed while there was no recorder."""
    held_back: int = 0
    """How many commits a lock has held back."""

    def backlog(self, now_s: float) -> int:
        """Return how many changes the recorder has not taken yet."""
        taken_s = -math.inf if self.is_locked else now_s - self.lag_s
        return sum(queued.at_s > taken_s for queued in self.queue)

    def commit(self, now_s: float, *, through_s: float = math.inf) -> None:
        """Commit what has waited since a second of the simulation, in order."""
        if self.is_locked:
            self.held_back += bool(self.queue)
            return
        taken = [queued for queued in self.queue if queued.at_s <= through_s]
        self.queue = self.queue[len(taken) :]
        self.late += bool(self.queue)
        for queued in taken:
            row = queued.row
            self.table.append(row)
            times, rows = self.by_entity.setdefault(row.entity_id, ([], []))
            place = bisect.bisect_right(times, row.updated_ns)
            times.insert(place, row.updated_ns)
            rows.insert(place, queued.shown)
        marks = [entry for at_s, entry in self.lifecycle_queue if at_s <= through_s]
        self.lifecycle += marks
        self.marked_s.update((int(float(str(mark["when"])) * 1e9), now_s) for mark in marks)
        self.lifecycle_queue = [each for each in self.lifecycle_queue if each[0] > through_s]

    def purge(self, before_ns: int, *, now_s: float) -> None:
        """Delete all rows and events that are older than a moment, as Home Assistant does."""
        for entity_id, (times, rows) in self.by_entity.items():
            old = bisect.bisect_left(times, before_ns)
            self.purged_s.update(((entity_id, time_ns), now_s) for time_ns in times[:old])
            del times[:old], rows[:old]
        self.lifecycle = [
            entry for entry in self.lifecycle if float(str(entry["when"])) >= before_ns / 1e9
        ]

    def lose(self) -> bool:
        """Lose what waits, as in a crash; return whether that includes the mark of a start."""
        lost = bool(self.lifecycle_queue)
        self.lost.update(queued.identity for queued in self.queue)
        self.queue.clear()
        self.lifecycle_queue.clear()
        return lost


class House:
    """Entities, registries and recorder; `change` lets one entity change."""

    def __init__(
        self,
        chance: random.Random,
        clock: Callable[[], float],
        *,
        monotonic: Callable[[], float],
    ) -> None:
        """Create the entities.

        `clock` returns seconds since the epoch, on Home Assistant's clock, and `monotonic` the
        seconds of the simulation.
        """
        self.fire: Fire | None = None
        self.recorder_ = Recorder()
        self.state = "RUNNING"
        self.fired: dict[Identity, float] = {}
        """When every change happened that ever did, in seconds of the simulation."""
        self.kills_ns: list[int] = []
        self.unmarked_ns: list[int] = []
        """When Home Assistant ended, and its recorder has no mark of its start."""
        self._was_killed = False
        self._queries, self._keep_s = 0, 0.0
        self.has_recorder = True
        """Whether the next start of Home Assistant is one with a recorder."""
        self.unreadable: Identity | None = None
        """An entity and a moment: history that includes both cannot be shown."""
        self.states_set = 0
        """How often `set_state` changed a state."""
        self.failures = 0
        """How many requests failed for it."""
        self.renames: dict[str, str] = {}
        self._chance = chance
        self._clock = clock
        self._monotonic = monotonic
        self._last_us = 0
        self._numbers = count(1)
        self.entities = {
            entity_id: Entity(entity_id, fixed, kind) for entity_id, (fixed, kind) in _SPECS.items()
        }
        self.rows: dict[RegistryKind, list[JsonObject]] = {
            "area": [{"area_id": name, "name": name.title(), "floor_id": None} for name in _AREAS],
            "device": [
                {
                    "id": f"device-{number}",
                    "area_id": area,
                    "name": f"Device {number}",
                    "manufacturer": "Simulated",
                    "model": "S1",
                    "sw_version": "1.0",
                    "config_entries": ["entry"],
                }
                for number, area in enumerate(_AREAS)
            ],
            "entity": [
                {
                    "entity_id": entity_id,
                    "id": f"id-{number}",
                    "unique_id": f"unique-{number}",
                    "device_id": f"device-{number % len(_AREAS)}",
                    "area_id": None,
                    "platform": "simulated",
                    "config_entry_id": "entry",
                    "name": None,
                    "original_name": entity_id,
                }
                for number, entity_id in enumerate(_SPECS)
            ],
            "floor": [],
            "label": [],
        }

    # --- what happens in it

    def now(self) -> datetime:
        """Return the next moment: no two changes are at the same one, unless the clock is set."""
        now_us = int(self._clock() * 1_000_000)
        if now_us <= self._last_us < now_us + 1_000_000:
            now_us = self._last_us + 1
        self._last_us = now_us
        return _EPOCH + timedelta(microseconds=now_us)

    def start(self) -> None:
        """Write the first state of every entity, as at a start of Home Assistant."""
        for entity in self.entities.values():
            self._set(entity, *self._next_state(entity))

    def change(self, entity_id: str | None = None) -> None:
        """Change one entity."""
        names = [name for name, entity in self.entities.items() if entity.row is not None]
        if not names:
            return
        entity = self.entities[entity_id or self._chance.choice(names)]
        if entity.row is None:
            return
        if self._chance.random() < 0.02:
            entity.is_available = not entity.is_available
        self._set(entity, *self._next_state(entity))

    def remove(self, entity_id: str) -> None:
        """Remove an entity: its state is gone, its registry row stays."""
        entity = self.entities[entity_id]
        old, entity.row = entity.row, None
        if old is None:
            return
        at = self.now()
        at_ns = _nanoseconds(at)
        self._note(entity, None, old, at_ns, at_ns)
        self._send(state_changed(old, None, at=at))

    def restore(self, entity_id: str) -> None:
        """Add a removed entity again."""
        entity = self.entities[entity_id]
        if entity.row is None:
            self._set(entity, *self._next_state(entity))

    def stop(self, *, is_clean: bool) -> None:
        """Stop Home Assistant: all states are gone."""
        if not self.recorder_.is_present or (self.state != "RUNNING" and self._was_killed):
            self.unmarked_ns.append(int(self._clock() * 1e9))
        self._was_killed = not is_clean
        if is_clean:
            self._log("stopped")
            self.recorder_.is_locked = False
            self.recorder_.commit(self._monotonic())
        else:
            self.kills_ns.append(int(self._clock() * 1e9))
            if self.recorder_.lose():
                self.unmarked_ns.append(self.kills_ns[-1])
        self.recorder_.is_locked = False
        self.recorder_.newest.clear()
        for entity in self.entities.values():
            entity.row = None
        self.state = "NOT_RUNNING"

    def begin(self) -> None:
        """Start Home Assistant again: every entity gets a first state."""
        self.recorder_.is_present = self.has_recorder
        self.start()

    def started(self) -> None:
        """Home Assistant is RUNNING."""
        self.state = "RUNNING"
        self._log("started")

    def move_area(self) -> None:
        """Move a device to another area."""
        row = self._chance.choice(self.rows["device"])
        area = self._chance.choice(_AREAS)
        rows = self.rows["device"]
        rows[rows.index(row)] = {**row, "area_id": area}
        data = {"action": "update", "device_id": row["id"], "changes": {"area_id": row["area_id"]}}
        self._send(registry_updated("device", data, at=self.now()))

    def fail_history(self, entity_id: str) -> None:
        """Fail at all history of an entity that includes this moment: a row cannot be read."""
        self.unreadable = entity_id, int(self._clock() * 1e9)

    def set_state(self, entity_id: str, state: str) -> None:
        """Let an entity have this state, with other attributes than before."""
        entity = self.entities[entity_id]
        if entity.row is not None:
            self.states_set += 1
            attributes = {
                **entity.fixed,
                "friendly_name": entity_id,
                "brightness": self.states_set,
            }
            self._set(entity, state, attributes)

    def purge_at_query(self, queries: int, keep_s: float) -> None:
        """Purge after so many more queries of history; 0 for never."""
        self._queries, self._keep_s = queries, keep_s

    def _next_state(self, entity: Entity) -> tuple[str, JsonObject]:
        chance, attributes = self._chance, {**entity.fixed, "friendly_name": entity.entity_id}
        if not entity.is_available:
            return "unavailable", attributes
        states: Mapping[str, Callable[[], str]] = {
            "number": lambda: f"{chance.uniform(-5, 3000):.2f}",
            "word": lambda: chance.choice(_WORDS),
            "switch": lambda: chance.choice(("on", "off")),
            "light": lambda: chance.choice(("on", "off")),
            "climate": lambda: "heat",
            "text": lambda: chance.choice(_TEXTS),
        }
        state = states[entity.kind]()
        if entity.kind == "light":
            attributes["brightness"] = chance.randrange(256)
        if entity.kind == "climate":
            attributes["current_temperature"] = chance.randrange(15, 25)
        return state, attributes

    def _set(self, entity: Entity, state: str, attributes: JsonObject) -> None:
        old = entity.row
        if old is not None and (old["state"], old["attributes"]) == (state, attributes):
            return
        at = self.now()
        entity.updated_ns = _nanoseconds(at)
        changed_at = None
        if old is None or old["state"] != state:
            entity.changed_ns = entity.updated_ns
        else:
            changed_at = datetime.fromisoformat(str(old["last_changed"]))
        new = state_row(entity.entity_id, state, attributes, at=at, changed_at=changed_at)
        entity.row = new
        self._note(entity, new, old, entity.updated_ns, entity.changed_ns)
        self._send(state_changed(old, new, at=at))

    def _note(
        self,
        entity: Entity,
        new: JsonObject | None,
        old: JsonObject | None,
        updated_ns: int,
        changed_ns: int,
    ) -> None:
        """Note a change in the truth, and queue its row."""
        self.fired[entity.entity_id, updated_ns] = self._monotonic()
        recorder = self.recorder_
        if entity.entity_id == EXCLUDED:
            return
        if not recorder.is_present:
            recorder.missed.add((entity.entity_id, updated_ns))
            return
        state_id = next(self._numbers)
        at = _EPOCH + timedelta(microseconds=updated_ns // 1_000)
        shown = new or state_row(entity.entity_id, None, {}, at=at)
        row = Row(
            state_id=state_id,
            old_state_id=recorder.newest.get(entity.entity_id) if old is not None else None,
            entity_id=entity.entity_id,
            state=None if new is None else str(new["state"]),
            updated_ns=updated_ns,
            changed_ns=changed_ns,
            attributes={} if new is None else _object(new["attributes"]),
        )
        recorder.newest[entity.entity_id] = state_id
        recorder.queue.append(Queued(row, shown, self._monotonic()))

    def _send(self, event: JsonObject) -> None:
        if self.fire is not None:
            self.fire(event)

    def _log(self, message: str) -> None:
        if not self.recorder_.is_present:
            return
        entry: JsonObject = {"domain": "homeassistant", "message": message}
        entry = {**entry, "when": self.now().timestamp()}
        self.recorder_.lifecycle_queue.append((self._monotonic(), entry))

    def commit(self) -> None:
        """Let the recorder commit what it has taken."""
        now_s = self._monotonic()
        self.recorder_.commit(now_s, through_s=now_s - self.recorder_.lag_s)

    def purge(self, keep_s: float) -> None:
        """Let the recorder keep only the last seconds."""
        before_ns = int((self._clock() - keep_s) * 1e9)
        self.recorder_.purge(before_ns, now_s=self._monotonic())

    # --- the methods of House and Chronicle

    def states(self) -> Sequence[JsonObject]:
        """Return the states of all entities."""
        return [entity.row for entity in self.entities.values() if entity.row is not None]

    def registry(self, kind: RegistryKind) -> Sequence[JsonObject]:
        """Return the rows of one registry."""
        return self.rows[kind]

    def config(self) -> JsonObject:
        """Return the configuration."""
        components = ["history", "recorder", "logbook"] if self.recorder_.is_present else ["sun"]
        return {"state": self.state, "location_name": "Simulated", "components": components}

    def config_entries(self) -> Sequence[JsonObject]:
        """Return one entry."""
        return [{"entry_id": "entry", "domain": "simulated", "title": "Simulated"}]

    def recorder(self) -> JsonObject:
        """Return what the recorder has not taken yet."""
        return {"backlog": self.recorder_.backlog(self._monotonic())}

    def history(
        self, start: datetime, end: datetime, entity_ids: Sequence[str]
    ) -> Mapping[str, Sequence[JsonObject]]:
        """Return what is committed with `start < last_updated < end`."""
        self._queries -= self._queries > 0
        if self._queries == 1:
            self.purge(self._keep_s)
        start_ns, end_ns = _nanoseconds(start), _nanoseconds(end)
        is_state = start == _EPOCH  # the state at a moment: no other row is shown
        if self.unreadable is not None and not is_state:
            entity_id, time_ns = self.unreadable
            if entity_id in entity_ids and start_ns < time_ns < end_ns:
                self.failures += 1
                raise Refused("unknown_error", "Unknown error")
        found: dict[str, Sequence[JsonObject]] = {}
        for entity_id in entity_ids:
            times, rows = self.recorder_.by_entity.get(entity_id, ([], []))
            part = rows[bisect.bisect_right(times, start_ns) : bisect.bisect_left(times, end_ns)]
            if part:
                found[entity_id] = part
        return found

    def logbook(self, start: datetime, end: datetime) -> Sequence[JsonObject]:
        """Return starts, stops, and changes of entities whose states are words."""
        start_s, end_s = start.timestamp(), end.timestamp()
        entries = [
            entry
            for entry in self.recorder_.lifecycle
            if start_s < float(str(entry["when"])) < end_s
        ]
        for entity_id, entity in self.entities.items():
            if "unit_of_measurement" in entity.fixed:
                continue
            found = self.history(start, end, [entity_id]).get(entity_id, ())
            entries += [
                {"entity_id": entity_id, "when": _seconds(row["last_updated"])} for row in found
            ]
        return sorted(entries, key=lambda entry: float(str(entry["when"])))

    def statistics(self) -> Sequence[JsonObject]:
        """Return the entities with statistics."""
        return [
            {"statistic_id": name}
            for name, entity in self.entities.items()
            if "state_class" in entity.fixed
        ]


def _nanoseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1_000


def _seconds(moment: object) -> float:
    return datetime.fromisoformat(str(moment)).timestamp()


def _object(value: object) -> JsonObject:
    assert isinstance(value, dict)
    return value
