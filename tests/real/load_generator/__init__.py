"""A Home Assistant component that emits state changes at a given rate and keeps the proof.

Action `load_generator.emit` with `count`, `rate` (changes a second), `sensors` and `first`
(the first sequence number). It returns when all are emitted and `emitted.jsonl` in the
configuration folder says what they were: a line each, in order, with entity_id, state and
last_updated as Home Assistant itself set them.

Home Assistant imports this file; nothing in it needs Home Assistant to be installed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Protocol

DOMAIN = "load_generator"
_TICK_S = 0.005


class Call(Protocol):
    """Home Assistant's ServiceCall, as far as it is used here."""

    data: Mapping[str, int]


class State(Protocol):
    """Home Assistant's State, as far as it is used here."""

    entity_id: str
    state: str
    last_updated: datetime


class StateMachine(Protocol):
    """Home Assistant's StateMachine, as far as it is used here."""

    def async_set(self, entity_id: str, new_state: str, attributes: Mapping[str, object]) -> None:
        """Set a state and fire the event for it."""

    def get(self, entity_id: str) -> State:
        """Return the newest state."""


class Services(Protocol):
    """Home Assistant's ServiceRegistry, as far as it is used here."""

    def async_register(
        self, domain: str, service: str, service_func: Callable[[Call], Awaitable[None]]
    ) -> None:
        """Offer an action."""


class Config(Protocol):
    """Home Assistant's Config, as far as it is used here."""

    def path(self, name: str) -> str:
        """Return the path of a file in the configuration folder."""


class HomeAssistant(Protocol):
    """Home Assistant's core, as far as it is used here."""

    states: StateMachine
    services: Services
    config: Config


async def async_setup(hass: HomeAssistant, config: Mapping[str, object]) -> bool:
    """Offer the action."""
    proof = Path(hass.config.path("emitted.jsonl"))

    async def emit(call: Call) -> None:
        emitted: list[State] = []
        async for number in _paced(call.data["count"], rate=call.data["rate"]):
            sequence = call.data["first"] + number
            emitted.append(_set_state(hass.states, sequence, sensors=call.data["sensors"]))
        await asyncio.to_thread(_append, proof, emitted)

    hass.services.async_register(DOMAIN, "emit", emit)
    return True


async def _paced(count: int, *, rate: int) -> AsyncIterator[int]:
    """Count from 0 to `count` at `rate` a second, catching up after each short sleep."""
    clock = asyncio.get_running_loop().time
    started = clock()
    number = 0
    while number < count:
        due = min(count, int((clock() - started) * rate) + 1)
        while number < due:
            yield number
            number += 1
        await asyncio.sleep(_TICK_S)


def _set_state(states: StateMachine, sequence: int, *, sensors: int) -> State:
    entity_id = f"sensor.load_{sequence % sensors}"
    states.async_set(
        entity_id,
        str(sequence),
        {
            "device_class": "power",
            "friendly_name": f"Load {sequence % sensors}",
            "sequence": sequence,
            "state_class": "measurement",
            "unit_of_measurement": "W",
        },
    )
    return states.get(entity_id)


def _append(proof: Path, emitted: list[State]) -> None:
    with proof.open("a", encoding="utf-8") as file:
        for state in emitted:
            row = {
                "entity_id": state.entity_id,
                "state": state.state,
                "last_updated": state.last_updated.isoformat(),
            }
            file.write(json.dumps(row) + "\n")
