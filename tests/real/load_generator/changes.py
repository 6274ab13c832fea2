"""Random changes of every kind that occurs in a home, drawn from a seed."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping

from homeassistant.core import HomeAssistant

DATA_SENSORS = "load_generator.sensors"
_TICK_S = 0.01
_NUMBERS = 20
_WORDS = 6
_TEXTS = 4
_BRIEF = 6
_ODD_NUMBERS = ("-0", "1e3", "007", "nan", "9007199254740993", "-12.50", "+1", ".5")
_ODD_TEXTS = ("idle", 'say "hi"', "back\\slash", "two\nlines", "ünïcödé 🏠", "0x10", "", "jammed")
_WORD_PAIRS = (
    ("binary_sensor", "on", "off"),
    ("lock", "locked", "unlocked"),
    ("cover", "open", "closed"),
)


class RandomChanges:
    """Changes one entity at a time."""

    def __init__(self, hass: HomeAssistant, *, seed: int) -> None:
        self._hass = hass
        self._chance = random.Random(seed)
        self._sequence = 0
        self._kinds: list[Callable[[], None]] = [
            *[self._measure] * 10,
            *[self._measure_registered] * 4,
            *[self._change_word] * 3,
            self._change_text,
            self._change_attribute,
            self._change_identity,
            self._drop_out,
            self._come_or_go,
            self._pass_by,
        ]
        self._passing: str | None = None

    async def run(self, rate: float) -> None:
        """Make `rate` changes per second until cancelled, catching up after each short sleep."""
        clock = asyncio.get_running_loop().time
        started, done = clock(), 0
        while True:
            due = int((clock() - started) * rate)
            # At most one second's worth, so a suspension causes no larger burst.
            for _ in range(min(due - done, int(rate))):
                self._chance.choice(self._kinds)()
            done = due
            await asyncio.sleep(_TICK_S)

    def _measure(self) -> None:
        entity_id = self._numeric()
        value = str(round(self._chance.uniform(-10, 3_000), 1))
        if self._chance.random() < 0.05:
            value = self._chance.choice(_ODD_NUMBERS)
        self._set(entity_id, value, self._described(entity_id))

    def _measure_registered(self) -> None:
        if sensors := self._hass.data.get(DATA_SENSORS):
            is_available = self._chance.random() > 0.05
            value = round(self._chance.uniform(0, 500), 2) if is_available else None
            self._chance.choice(sensors).change(value)

    def _change_word(self) -> None:
        number = self._chance.randrange(_WORDS)
        domain, one, other = _WORD_PAIRS[number % len(_WORD_PAIRS)]
        entity_id = f"{domain}.random_{number}"
        state = self._hass.states.get(entity_id)
        is_one = state is not None and state.state == one
        self._set(entity_id, other if is_one else one, {"friendly_name": f"Random {number}"})

    def _change_text(self) -> None:
        number = self._chance.randrange(_TEXTS)
        text = self._chance.choice(_ODD_TEXTS)
        self._set(f"sensor.random_text_{number}", text, {"icon": "mdi:text", "nested": {"a": [1]}})

    def _change_attribute(self) -> None:
        entity_id = self._numeric()
        if (state := self._hass.states.get(entity_id)) is not None:
            self._set(entity_id, state.state, state.attributes)

    def _change_identity(self) -> None:
        """Give a sensor another unit and class, or none."""
        entity_id = self._numeric()
        unit, device_class = self._chance.choice(
            [("W", "power"), ("kW", "power"), ("Wh", "energy"), ("W", None), (None, None)]
        )
        attributes = {
            key: value
            for key, value in self._described(entity_id).items()
            if key not in ("unit_of_measurement", "device_class")
        }
        if unit is not None:
            attributes["unit_of_measurement"] = unit
        if device_class is not None:
            attributes["device_class"] = device_class
        self._set(entity_id, str(self._sequence), attributes)

    def _drop_out(self) -> None:
        """Make a sensor unavailable, which drops its attributes."""
        state = self._chance.choice(["unavailable", "unavailable", "unknown"])
        entity_id = self._numeric()
        if self._hass.states.get(entity_id) is not None:
            self._hass.states.async_set(entity_id, state, {})

    def _come_or_go(self) -> None:
        entity_id = f"sensor.random_brief_{self._chance.randrange(_BRIEF)}"
        if not self._hass.states.async_remove(entity_id):
            self._set(entity_id, str(self._chance.randrange(100)), {"unit_of_measurement": "%"})

    def _pass_by(self) -> None:
        """Let an unknown entity appear, change once and disappear permanently."""
        if self._passing is None:
            self._passing = f"sensor.passing_{time.time_ns()}"
            self._set(self._passing, "here", {})
        elif (state := self._hass.states.get(self._passing)) is not None and state.state == "here":
            self._set(self._passing, "there", {})
        else:
            self._hass.states.async_remove(self._passing)
            self._passing = None

    def _numeric(self) -> str:
        return f"sensor.random_{self._chance.randrange(_NUMBERS)}"

    def _described(self, entity_id: str) -> dict[str, object]:
        """Return the sensor's current attributes, or its initial ones."""
        state = self._hass.states.get(entity_id)
        if state is not None and state.attributes:
            return dict(state.attributes)
        return {
            "device_class": "power",
            "friendly_name": entity_id,
            "state_class": "measurement",
            "unit_of_measurement": "W",
        }

    def _set(self, entity_id: str, state: str, attributes: Mapping[str, object]) -> None:
        self._sequence += 1
        self._hass.states.async_set(entity_id, state, {**attributes, "sequence": self._sequence})
