"""A simulated home for the demo: some fifty devices that live a plausible life.

It is a `House` of the fake Home Assistant. What stands in it is in `rooms`, what happens in
it in `habits`; here are its clock, its memory and its word to the outside. A house that is
stopped goes on, at the next start in the same folder, from where it was.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from random import Random

import msgspec

from app.runtime.logging import RateLimitedLog
from simulator.fake_home_assistant import Fire, JsonObject, RegistryKind, state_changed, state_row
from simulator.habits import Habit, Move, habits
from simulator.history import History, microseconds, moment_of, replace
from simulator.rooms import (
    DEVICES,
    Device,
    Placed,
    config_entry_rows,
    placed_entities,
    registry_rows,
)

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

Deed = Callable[[], Iterable[JsonObject]]
"""Something due: it changes the house and returns the events that say so."""

_TICK_S = 0.25
_LATE_US = 10_000_000
_SECOND_US = 1_000_000
_OUTAGE_AFTER_S = (90.0, 240.0)
_OUTAGE_LASTS_S = (20.0, 60.0)
"""Shorter than the time to the next, so that one device is out of reach at a time."""
_WIRELESS = tuple(device for device in DEVICES if device.via and device.entities)


class DemoHouse:
    """The simulated home. `run` lets it live; `advance` is one step of that, for tests.

    Its doings depend on the seed and the clock alone.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int = 1,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        save_every_s: float = 60.0,
    ) -> None:
        """Take the folder that keeps the house, and a clock of seconds since the epoch."""
        self._file = folder / "house.json"
        self._history = History(folder / "history")
        self._chance = Random(seed)  # noqa: S311 - a game, not a secret
        self._clock = clock
        self._sleep = sleep
        self._save_every_s = save_every_s
        self._moment_us = self._now_us()
        self._things = {
            placed.entity_id: _Thing(placed, at_us=self._moment_us) for placed in placed_entities()
        }
        self._unreachable: set[str] = set()
        """Ids of the devices that Home Assistant hears nothing of."""
        self._agenda: list[tuple[int, int, Deed]] = []
        """A heap of (when, in microseconds; a number that settles ties; what)."""
        self._numbers = itertools.count()

    async def run(self, fire: Fire) -> None:
        """Let the house live until cancelled: change it first, then fire what says so.

        It begins with what the folder holds, and saves there every minute and at the end.
        """
        self.restore()
        self.wake()
        saved_at = self._clock()
        try:
            while True:
                for event in self.advance():
                    fire(event)
                if self._clock() - saved_at >= self._save_every_s:
                    self._save_or_say()
                    saved_at = self._clock()
                await self._sleep(_TICK_S)
        finally:
            self._save_or_say()

    def wake(self) -> None:
        """Begin all habits; each shows for the first time within its longest interval."""
        for habit in habits():
            self._soon(partial(self._follow, habit), 0.0, habit.most_s)
        self._soon(self._lose_one, *_OUTAGE_AFTER_S)

    def advance(self) -> list[JsonObject]:
        """Do all that is due by now, and return the events for it, oldest first.

        What is overdue by more than 10 seconds (the machine slept) happens once, now.
        """
        now_us = self._now_us()
        events: list[JsonObject] = []
        while self._agenda and self._agenda[0][0] <= now_us:
            due_us, _, deed = heapq.heappop(self._agenda)
            self._moment_us = max(self._moment_us, due_us, now_us - _LATE_US)
            events += deed()
        return events

    def save(self) -> None:
        """Write the house and its history to the folder, each file whole or not at all."""
        self._history.save()
        things = {entity_id: thing.saved() for entity_id, thing in self._things.items()}
        replace(self._file, _SavedHouse(self._moment_us, sorted(self._unreachable), things))

    def restore(self) -> None:
        """Go on from what `save` wrote; what cannot be read is said, and begins anew."""
        self._history.load()
        saved = self._saved()
        if saved is None:
            for thing in self._things.values():
                thing.remember(self._history)
            return
        self._moment_us = max(self._moment_us, saved.moment_us)
        for entity_id in self._things.keys() & saved.things.keys():
            self._things[entity_id].recall(saved.things[entity_id])
        for device in _WIRELESS:
            if device.id in saved.unreachable:
                self._unreachable.add(device.id)
                self._soon(partial(self._find, device), *_OUTAGE_LASTS_S)

    def states(self) -> Sequence[JsonObject]:
        """Return the states of all entities."""
        return [thing.row for thing in self._things.values()]

    def registry(self, kind: RegistryKind) -> Sequence[JsonObject]:
        """Return the rows of one registry."""
        return registry_rows(kind)

    def config(self) -> JsonObject:
        """Return where this home is and what it measures in."""
        return _CONFIG

    def config_entries(self) -> Sequence[JsonObject]:
        """Return a row for each integration."""
        return config_entry_rows()

    def recorder(self) -> JsonObject:
        """Return nothing special: this recorder is never behind."""
        return {}

    def history(
        self, start: datetime, end: datetime, entity_ids: Sequence[str]
    ) -> Mapping[str, Sequence[JsonObject]]:
        """Return what was recorded with `start < last_updated < end`, oldest first, by entity."""
        return self._history.between(start, end, entity_ids)

    def _save_or_say(self) -> None:
        try:
            self.save()
        except OSError as exc:
            limited_log.warning("The demo's house was not saved: %s", exc)
        else:
            limited_log.resolved("The demo's house is saved again")

    def _saved(self) -> _SavedHouse | None:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=_SavedHouse)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as exc:
            logger.warning("The demo's house begins anew: %s: %s", self._file, exc)
            return None

    def _follow(self, habit: Habit) -> list[JsonObject]:
        """Do what the habit says now, or a little later, and come back to it in its time."""
        events: list[JsonObject] = []
        for move in habit.act(_View(self._things, moment_of(self._moment_us)), self._chance):
            if move.after_s:
                self._soon(partial(self._make, move), move.after_s, move.after_s)
            else:
                events += self._make(move)
        self._soon(partial(self._follow, habit), habit.least_s, habit.most_s)
        return events

    def _make(self, move: Move) -> list[JsonObject]:
        thing = self._things[move.entity_id]
        moving = {**thing.moving, **move.attributes}
        if (thing.state, thing.moving) == (move.state, moving):
            return []  # Home Assistant fires nothing for what stays the same
        thing.state, thing.moving = move.state, moving
        return [] if thing.device_id in self._unreachable else [self._tell(thing, reachable=True)]

    def _lose_one(self) -> list[JsonObject]:
        """Let a device fall silent; what it measures goes on unseen."""
        device = self._chance.choice(_WIRELESS)
        self._soon(self._lose_one, *_OUTAGE_AFTER_S)
        self._unreachable.add(device.id)
        self._soon(partial(self._find, device), *_OUTAGE_LASTS_S)
        return [self._tell(thing, reachable=False) for thing in self._things_of(device)]

    def _find(self, device: Device) -> list[JsonObject]:
        self._unreachable.discard(device.id)
        return [self._tell(thing, reachable=True) for thing in self._things_of(device)]

    def _things_of(self, device: Device) -> list[_Thing]:
        return [thing for thing in self._things.values() if thing.device_id == device.id]

    def _tell(self, thing: _Thing, *, reachable: bool) -> JsonObject:
        """Give the entity a new row, remember it, and return the event that says so."""
        self._moment_us += 1  # no two changes at the same moment
        old = thing.row
        new = thing.tell(self._moment_us, reachable=reachable)
        thing.remember(self._history)
        return state_changed(old, new, at=moment_of(self._moment_us))

    def _soon(self, deed: Deed, least_s: float, most_s: float) -> None:
        # Counted from the clock when changes are stamped ahead of it: it was set back.
        begin_us = min(self._moment_us, self._now_us())
        due_us = begin_us + int(self._chance.uniform(least_s, most_s) * _SECOND_US)
        heapq.heappush(self._agenda, (due_us, next(self._numbers), deed))

    def _now_us(self) -> int:
        return microseconds(datetime.fromtimestamp(self._clock(), UTC))


class _Thing:
    """One entity: how it really is, and what Home Assistant last heard of it."""

    def __init__(self, placed: Placed, *, at_us: int) -> None:
        self.state = placed.entity.state
        self.moving = dict(placed.entity.moving)
        self.device_id = placed.device.id if placed.device else None
        self._placed = placed
        self._changed_us = self._updated_us = at_us
        self.row: dict[str, object] = {}
        self.tell(at_us, reachable=True)

    def tell(self, at_us: int, *, reachable: bool) -> JsonObject:
        """Make a new row of how it is; out of reach only its fixed attributes are known."""
        state = self.state if reachable else "unavailable"
        if self.row and self.row["state"] != state:
            self._changed_us = at_us
        self._updated_us = at_us
        self.row = dict(
            state_row(
                self._placed.entity_id,
                state,
                {**(self.moving if reachable else {}), **self._placed.fixed},
                at=moment_of(at_us),
                changed_at=moment_of(self._changed_us),
            )
        )
        return self.row

    def remember(self, history: History) -> None:
        """Record the newest row."""
        history.add(self.row, changed_us=self._changed_us, updated_us=self._updated_us)

    def saved(self) -> _SavedThing:
        """Return all that must outlast a stop."""
        return _SavedThing(self.state, self.moving, self.row, self._changed_us)

    def recall(self, saved: _SavedThing) -> None:
        """Be as it was then."""
        self.state, self.moving = saved.state, saved.moving
        self.row, self._changed_us = saved.row, saved.changed_us


@dataclass(frozen=True, slots=True)
class _View:
    """The house as its habits see it."""

    things: Mapping[str, _Thing]
    now: datetime

    def state(self, entity_id: str) -> str:
        return self.things[entity_id].state


class _SavedThing(msgspec.Struct, array_like=True):
    state: str
    moving: dict[str, object]
    row: dict[str, object]
    changed_us: int


class _SavedHouse(msgspec.Struct):
    moment_us: int
    unreachable: list[str]
    things: dict[str, _SavedThing]


_CONFIG: JsonObject = {
    "components": sorted({device.integration for device in DEVICES} | {"history", "recorder"}),
    "config_dir": "/config",
    "config_source": "storage",
    "country": "NL",
    "currency": "EUR",
    "debug": False,
    "elevation": 2,
    "external_url": None,
    "internal_url": None,
    "language": "en",
    "latitude": 52.37,
    "location_name": "Demo home",
    "longitude": 4.89,
    "radius": 100,
    "recovery_mode": False,
    "safe_mode": False,
    "state": "RUNNING",
    "time_zone": "UTC",
    "unit_system": {
        "accumulated_precipitation": "mm",
        "area": "m²",
        "length": "km",
        "mass": "g",
        "pressure": "Pa",
        "temperature": "°C",
        "volume": "L",
        "wind_speed": "m/s",
    },
}
