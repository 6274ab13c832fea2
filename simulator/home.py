"""A simulated home for the demo: some fifty devices with plausible, changing states.

It is a `House` of the fake Home Assistant. `devices` lists what it contains, `behavior` what
happens in it; this module has its clock, its states and its recorder. A home that is started
again in the same folder first simulates the time in between, so that the recorder has it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import msgspec

from simulator.behavior import Behavior, behaviors
from simulator.devices import (
    Device,
    Placed,
    config_entry_rows,
    integrations,
    placed_entities,
    registry_rows,
)
from simulator.fake_home_assistant import Fire, JsonObject, RegistryKind, state_changed, state_row

logger = logging.getLogger(__name__)

_TICK_S = 0.25
_SECOND_US = 1_000_000
_LATE_US = 10 * _SECOND_US
_PAST_US = 3_600 * _SECOND_US
"""How much a new home simulates before it starts, and how many events' worth of any pause."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class SimulatedHome:
    """A `House` that changes by itself. `run` lets it go on; `wake` and `advance` are its steps.

    What it does depends only on the seed and the clock.
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
        """Assign; `folder` keeps the states, `clock` returns seconds since the epoch."""
        self.chance = Random(seed)  # noqa: S311 - a simulation, not a secret
        self._file = folder / "home.json"
        self._clock = clock
        self._sleep = sleep
        self._save_every_s = save_every_s
        self._moment_us = self._now_us()
        self._entities = {
            placed.entity_id: _Entity(placed, at_us=self._moment_us) for placed in placed_entities()
        }
        self._agenda: list[tuple[int, int, Behavior]] = []
        """A heap of (when, in microseconds; a number that settles ties; what)."""
        self._numbers = itertools.count()
        self._pace = 1.0
        """By how much waits are longer while a long pause is simulated."""
        self._is_live = False
        self._events: list[JsonObject] = []

    async def run(self, fire: Fire) -> None:
        """Wake, then fire an event for every change until cancelled; save every minute."""
        self.wake()
        saved_at = self._clock()
        try:
            while True:
                for event in self.advance():
                    fire(event)
                if self._clock() - saved_at >= self._save_every_s:
                    self.save()
                    saved_at = self._clock()
                await self._sleep(_TICK_S)
        finally:
            self.save()

    def wake(self) -> None:
        """Continue from what `save` wrote, and simulate the time since then, without events.

        However long that is, it has as many events as an hour: they are further apart.
        """
        now_us = self._now_us()
        saved = self._saved()
        self._moment_us = min(saved.moment_us, now_us) if saved else now_us - _PAST_US
        for entity_id, entity in self._entities.items():
            entity.begin(self._moment_us, saved.entities.get(entity_id) if saved else None)
        self._pace = max(1.0, (now_us - self._moment_us) / _PAST_US)
        for behavior in behaviors(self):
            self._schedule(behavior, self.chance.random() * next(behavior))
        self._simulate(now_us)
        self._agenda = [
            (now_us + int((due_us - now_us) / self._pace), number, behavior)
            for due_us, number, behavior in self._agenda
        ]
        self._pace = 1.0
        self._is_live = True

    def advance(self) -> list[JsonObject]:
        """Simulate up to now, and return the events, oldest first.

        What is overdue by more than 10 seconds (the machine slept) happens once, now.
        """
        now_us = self._now_us()
        self._simulate(now_us, not_before_us=now_us - _LATE_US)
        events, self._events = self._events, []
        return events

    def save(self) -> None:
        """Write the states to the folder, all or nothing; if that fails, log why."""
        entities = {name: (entity.state, entity.moving) for name, entity in self._entities.items()}
        fresh = self._file.with_suffix(".new")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            # No fsync: a power cut may cost the demo its states.
            fresh.write_bytes(msgspec.json.encode(_Saved(self._moment_us, entities)))
            fresh.replace(self._file)
        except OSError as exc:
            logger.warning("The simulated home was not saved: %s", exc)

    @property
    def now(self) -> datetime:
        """The simulated time."""
        return _moment(self._moment_us)

    def state(self, entity_id: str) -> str:
        """Return the true state of an entity, also while its device is unavailable."""
        return self._entities[entity_id].state

    def set(self, entity_id: str, state: str, **attributes: object) -> None:
        """Change an entity; attributes that are not named stay."""
        entity = self._entities[entity_id]
        moving = {**entity.moving, **attributes}
        if (entity.state, entity.moving) == (state, moving):
            return  # Home Assistant fires nothing for what stays the same
        entity.state, entity.moving = state, moving
        if entity.is_available:
            self._report(entity)

    def set_available(self, device: Device, *, is_available: bool) -> None:
        """Connect or disconnect a device; its behavior goes on unseen."""
        for entity_id in device.entity_ids:
            self._entities[entity_id].is_available = is_available
            self._report(self._entities[entity_id])

    def states(self) -> Sequence[JsonObject]:
        """Return the states of all entities."""
        return [entity.row() for entity in self._entities.values()]

    def registry(self, kind: RegistryKind) -> Sequence[JsonObject]:
        """Return the rows of one registry."""
        return registry_rows(kind)

    def config(self) -> JsonObject:
        """Return where this home is and its units."""
        return _CONFIG

    def config_entries(self) -> Sequence[JsonObject]:
        """Return a row for each integration."""
        return config_entry_rows()

    def recorder(self) -> JsonObject:
        """Return nothing special: this recorder has no backlog."""
        return {}

    def history(
        self, start: datetime, end: datetime, entity_ids: Sequence[str]
    ) -> Mapping[str, Sequence[JsonObject]]:
        """Return what was recorded with `start < last_updated < end`, oldest first, by entity."""
        start_us, end_us = _microseconds(start), _microseconds(end)
        return {
            entity_id: rows
            for entity_id in self._entities.keys() & set(entity_ids)
            if (rows := self._entities[entity_id].rows(start_us, end_us))
        }

    def _simulate(self, until_us: int, *, not_before_us: int = 0) -> None:
        while self._agenda and self._agenda[0][0] <= until_us:
            due_us, _, behavior = heapq.heappop(self._agenda)
            self._moment_us = max(self._moment_us, due_us, not_before_us)
            self._schedule(behavior, next(behavior))

    def _schedule(self, behavior: Behavior, wait_s: float) -> None:
        due_us = self._moment_us + int(wait_s * self._pace * _SECOND_US)
        heapq.heappush(self._agenda, (due_us, next(self._numbers), behavior))

    def _report(self, entity: _Entity) -> None:
        self._moment_us += 1  # no two changes at the same moment
        old = entity.row() if self._is_live else None
        entity.report(self._moment_us)
        if self._is_live:
            self._events.append(state_changed(old, entity.row(), at=self.now))

    def _saved(self) -> _Saved | None:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=_Saved)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as exc:
            logger.warning("The simulated home starts anew, %s is unusable: %s", self._file, exc)
            return None

    def _now_us(self) -> int:
        return _microseconds(datetime.fromtimestamp(self._clock(), UTC))


class _Entity:
    """One entity: its true state, and what Home Assistant knows and has recorded of it."""

    def __init__(self, placed: Placed, *, at_us: int) -> None:
        self.state = placed.entity.state
        self.moving = dict(placed.entity.moving)
        self.is_available = True
        self._entity_id = placed.entity_id
        self._fixed = {**placed.entity.fixed, "friendly_name": placed.name}
        self._recorded: deque[_Recorded] = deque(maxlen=3_000)
        self._row: JsonObject | None = None
        self.report(at_us)

    def begin(self, at_us: int, saved: tuple[str, dict[str, object]] | None) -> None:
        """Forget the past, and have the saved state, or the first, since that moment."""
        if saved:
            self.state, self.moving = saved
        self._recorded.clear()
        self.report(at_us)

    def report(self, at_us: int) -> None:
        """Record the state as Home Assistant sees it; unavailable, it has only fixed attributes."""
        state = self.state if self.is_available else "unavailable"
        moving = self.moving if self.is_available else {}
        last = self._recorded[-1] if self._recorded else None
        changed_us = last.changed_us if last and last.state == state else at_us
        self._recorded.append(_Recorded(state, moving, changed_us, at_us))
        self._row = None

    def row(self) -> JsonObject:
        """Return the newest state as Home Assistant shows it, always with the same context."""
        if self._row is None:
            self._row = self._shown(self._recorded[-1])
        return self._row

    def rows(self, start_us: int, end_us: int) -> list[JsonObject]:
        """Return what was recorded in between, oldest first."""
        return [self._shown(each) for each in self._recorded if start_us < each.updated_us < end_us]

    def _shown(self, recorded: _Recorded) -> JsonObject:
        return state_row(
            self._entity_id,
            recorded.state,
            {**recorded.moving, **self._fixed},
            at=_moment(recorded.updated_us),
            changed_at=_moment(recorded.changed_us),
        )


class _Recorded(msgspec.Struct, frozen=True, gc=False):
    state: str
    moving: Mapping[str, object]
    changed_us: int
    updated_us: int


class _Saved(msgspec.Struct):
    moment_us: int
    entities: dict[str, tuple[str, dict[str, object]]]


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _moment(time_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=time_us)


_CONFIG: JsonObject = {
    "components": [*integrations(), "history", "recorder"],
    "location_name": "Demo home",
    "state": "RUNNING",
    "time_zone": "UTC",
    "unit_system": {"temperature": "°C", "length": "km", "mass": "g", "pressure": "Pa"},
}
