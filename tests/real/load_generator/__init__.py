"""Home Assistant component that changes states, on request or at random.

Action `load_generator.emit` with `count`, `rate` (changes per second), `sensors` and `first`
(the first sequence number). It returns once all changes are emitted and listed in
`emitted.jsonl` in the configuration folder: one line each, in order, with entity_id, state and
last_updated as set by Home Assistant.

With `rate` and `seed` in its configuration it makes random changes of every kind, from its setup
until Home Assistant stops or the action `load_generator.pause` is called. The action
`load_generator.lock_recorder` with `seconds` locks the recorder's database as a backup does.

Home Assistant imports these files; it is not installed in the project's environment.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from homeassistant.components.recorder import get_instance
from homeassistant.core import HomeAssistant, ServiceCall, State, StateMachine
from homeassistant.helpers.discovery import async_load_platform

from .changes import RandomChanges

DOMAIN = "load_generator"
_TICK_S = 0.005


async def async_setup(hass: HomeAssistant, config: Mapping[str, object]) -> bool:
    """Register the actions, and start the random changes if they are configured."""
    proof = Path(hass.config.path("emitted.jsonl"))

    async def emit(call: ServiceCall) -> None:
        emitted: list[State] = []
        async for number in _paced(call.data["count"], rate=call.data["rate"]):
            sequence = call.data["first"] + number
            emitted.append(_set_state(hass.states, sequence, sensors=call.data["sensors"]))
        await asyncio.to_thread(_append, proof, emitted)

    async def lock_recorder(call: ServiceCall) -> None:
        recorder = get_instance(hass)
        await recorder.lock_database()
        await asyncio.sleep(call.data["seconds"])
        recorder.unlock_database()

    hass.services.async_register(DOMAIN, "emit", emit)
    hass.services.async_register(DOMAIN, "lock_recorder", lock_recorder)
    chosen = config.get(DOMAIN)
    if isinstance(chosen, Mapping):
        _change_at_random(hass, config, seed=chosen["seed"], rate=chosen["rate"])
    return True


def _change_at_random(
    hass: HomeAssistant, config: Mapping[str, object], *, seed: int, rate: float
) -> None:
    changing = hass.async_create_background_task(
        RandomChanges(hass, seed=seed).run(rate), "load_generator.random_changes"
    )

    async def pause(call: ServiceCall) -> None:
        changing.cancel()

    hass.services.async_register(DOMAIN, "pause", pause)
    hass.async_create_task(async_load_platform(hass, "sensor", DOMAIN, {}, config))


async def _paced(count: int, *, rate: int) -> AsyncIterator[int]:
    """Count from 0 to `count` at `rate` per second, catching up after each short sleep."""
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
