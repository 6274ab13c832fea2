"""What happens in the simulated home: pure functions of the house, the hour and chance.

Each kind of device has habits. A habit looks at the house and says what moves; it keeps
nothing for itself, so a house that was saved goes on where it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import Protocol

from simulator.rooms import DEVICES, PEOPLE, Device, Kind


class View(Protocol):
    """The house as a habit sees it: how things are, known to Home Assistant or not."""

    @property
    def now(self) -> datetime:
        """The moment at which the habit acts."""

    def state(self, entity_id: str) -> str:
        """Return how an entity is."""


@dataclass(frozen=True, slots=True)
class Move:
    """One entity becomes something else."""

    entity_id: str
    state: str
    attributes: Mapping[str, object] = field(default_factory=dict)
    """Those that change with it; the others stay."""
    after_s: float = 0.0


_DUSK = 0.6
_NOON = 12
_WAKING_HOURS = range(6, 23)
_EMPTY_PERCENT, _FULL_PERCENT = 40, 95

Act = Callable[[View, Random], Iterator[Move]]


@dataclass(frozen=True, slots=True)
class Habit:
    """Something that happens again and again, after a time between two bounds."""

    act: Act
    least_s: float
    most_s: float


def habits() -> list[Habit]:
    """Return the habits of the whole house."""
    return [
        *(
            Habit(act_of(device), least_s, most_s)
            for device in DEVICES
            for act_of, least_s, most_s in _HABITS.get(device.kind, ())
        ),
        Habit(_sun, 60, 120),
        Habit(_zone, 5, 10),
        *(Habit(_errand(person), 240, 900) for person in PEOPLE),
    ]


def sun_elevation(moment: datetime) -> float:
    """Return how high the sun stands, in degrees; below 0 it is dark."""
    hour = moment.hour + moment.minute / 60 + moment.second / 3600
    return 42.0 * math.sin((hour - 6.0) / 12.0 * math.pi) + 4.0


def _daylight(moment: datetime) -> float:
    return max(0.0, sun_elevation(moment) / 46.0)


def _anyone_home(view: View) -> bool:
    return any(_is_home(view, person) for person in PEOPLE)


def _is_home(view: View, person: str) -> bool:
    return view.state(f"person.{person.lower()}") == "home"


def _happens(chance: Random, probability: float) -> bool:
    return chance.random() < probability


def _toward(value: float, target: float, *, pull: float, noise: float, chance: Random) -> float:
    return value + (target - value) * pull + chance.gauss(0.0, noise)


def _temperature(device: Device) -> Act:
    entity_id = device.entity_id(device.entities[0])
    rest = {"garage": 13.0, "bedroom": 18.5, "bathroom": 22.0}.get(str(device.area_id), 20.5)

    def act(view: View, chance: Random) -> Iterator[Move]:
        target = 6.0 + 9.0 * _daylight(view.now) if device.area_id == "garden" else rest
        celsius = _toward(
            float(view.state(entity_id)), target, pull=0.02, noise=0.08, chance=chance
        )
        yield Move(entity_id, f"{celsius:.2f}")

    return act


def _humidity(device: Device) -> Act:
    entity_id = device.entity_id(device.entities[1])
    rest = {"garden": 78.0, "bathroom": 62.0, "garage": 60.0}.get(str(device.area_id), 48.0)

    def act(view: View, chance: Random) -> Iterator[Move]:
        percent = _toward(float(view.state(entity_id)), rest, pull=0.03, noise=0.4, chance=chance)
        yield Move(entity_id, f"{min(max(percent, 15.0), 99.0):.1f}")

    return act


def _battery(device: Device) -> Act:
    entity_id = device.entity_id(device.entities[-1])

    def act(view: View, _: Random) -> Iterator[Move]:
        percent = int(view.state(entity_id)) - 1
        yield Move(entity_id, str(percent if percent > 0 else 100))  # somebody changed it

    return act


def _presence(device: Device) -> Act:
    """Somebody comes into the room, lights it when it is dark, and leaves again."""
    motion = device.entity_id(device.entities[0])
    lights = _lights_of(device.area_id)

    def act(view: View, chance: Random) -> Iterator[Move]:
        if view.state(motion) == "on":
            yield Move(motion, "off")
        elif _anyone_home(view) and _happens(chance, 0.35):
            yield Move(motion, "on")
            if lights and _happens(chance, 1.0 if _daylight(view.now) < _DUSK else 0.3):
                yield _lit(chance.choice(lights), chance, after_s=0.4)

    return act


def _lights_of(area_id: str | None) -> list[str]:
    return [
        device.entity_id(device.entities[0])
        for device in DEVICES
        if device.kind == "light" and device.area_id == area_id
    ]


def _lit(entity_id: str, chance: Random, *, after_s: float) -> Move:
    return Move(
        entity_id,
        "on",
        {
            "brightness": chance.randint(90, 255),
            "color_mode": "color_temp",
            "color_temp_kelvin": chance.choice((2202, 2732, 3448)),
        },
        after_s=after_s,
    )


_OUT: Mapping[str, object] = {"brightness": None, "color_mode": None, "color_temp_kelvin": None}


def _light(device: Device) -> Act:
    """Dim a light that is on, or switch it off once nobody moves there."""
    entity_id = device.entity_id(device.entities[0])
    motions = [
        sensor.entity_id(sensor.entities[0])
        for sensor in DEVICES
        if sensor.kind == "motion_sensor" and sensor.area_id == device.area_id
    ]

    def act(view: View, chance: Random) -> Iterator[Move]:
        if view.state(entity_id) == "off":
            return
        if any(view.state(motion) == "on" for motion in motions):
            yield Move(entity_id, "on", {"brightness": chance.randint(60, 255)})
        elif _happens(chance, 0.6):
            yield Move(entity_id, "off", _OUT)

    return act


def _illuminance(device: Device) -> Act:
    entity_id = device.entity_id(device.entities[1])
    lights = _lights_of(device.area_id)
    window = 9000.0 if device.area_id == "garden" else 420.0

    def act(view: View, chance: Random) -> Iterator[Move]:
        lamps = sum(140 for light in lights if view.state(light) == "on")
        lux = window * _daylight(view.now) * chance.uniform(0.9, 1.1) + lamps
        yield Move(entity_id, f"{lux + chance.uniform(0, 3):.0f}")

    return act


def _contact(device: Device) -> Act:
    """Open, if somebody is there to do it, and close the next time."""
    entity_id = device.entity_id(device.entities[0])

    def act(view: View, chance: Random) -> Iterator[Move]:
        if view.state(entity_id) == "on":
            yield Move(entity_id, "off")
        elif _anyone_home(view) and _happens(chance, 0.5):
            yield Move(entity_id, "on")

    return act


def _appliance(device: Device) -> Act:
    """Draw power, in busy and in idle spells; somebody may switch it off."""
    switch, power = (device.entity_id(entity) for entity in device.entities[:2])
    idle_w, busy_w, begins = {
        "Television": (0.6, 95.0, 0.01),
        "Fridge": (2.1, 88.0, 0.03),
        "Dishwasher": (0.8, 1850.0, 0.002),
        "Washing machine": (0.9, 1400.0, 0.002),
        "Desk": (14.0, 120.0, 0.01),
    }.get(device.name, (1.8, 72.0, 0.03))

    def act(view: View, chance: Random) -> Iterator[Move]:
        if view.state(switch) == "off":
            if _happens(chance, 0.05):
                yield Move(switch, "on")
            return
        if device.name == "Television" and _happens(chance, 0.004):
            yield Move(switch, "off")
            yield Move(power, "0.0")
            return
        busy = float(view.state(power)) > (idle_w + busy_w) / 4
        stays = not _happens(chance, 0.03 if busy else begins)
        watts = busy_w if busy is stays else idle_w
        yield Move(power, f"{watts * chance.uniform(0.92, 1.08):.1f}")

    return act


def _consumption(device: Device) -> Act:
    """Count what the power of the last 45 seconds, as it is now, comes to."""
    power, energy = (device.entity_id(entity) for entity in device.entities[-2:])

    def act(view: View, _: Random) -> Iterator[Move]:
        kwh = float(view.state(power)) * 45 / 3_600_000
        yield Move(energy, f"{float(view.state(energy)) + kwh:.3f}")

    return act


_PLUG_POWERS = [device.entity_id(device.entities[1]) for device in DEVICES if device.kind == "plug"]
_LIGHTS = [device.entity_id(device.entities[0]) for device in DEVICES if device.kind == "light"]
_SOLAR_POWER = next(
    device.entity_id(device.entities[0]) for device in DEVICES if device.kind == "solar"
)


def _meter(device: Device) -> Act:
    power, voltage = (device.entity_id(entity) for entity in device.entities[:2])

    def act(view: View, chance: Random) -> Iterator[Move]:
        plugs = sum(float(view.state(entity_id)) for entity_id in _PLUG_POWERS)
        lights = sum(9.5 for entity_id in _LIGHTS if view.state(entity_id) == "on")
        watts = plugs + lights + chance.uniform(160, 190) - float(view.state(_SOLAR_POWER))
        yield Move(power, f"{watts:.0f}")
        if _happens(chance, 0.3):
            yield Move(voltage, f"{chance.gauss(231.0, 0.8):.1f}")

    return act


def _meter_totals(device: Device) -> Act:
    power, _, energy, gas = (device.entity_id(entity) for entity in device.entities)

    def act(view: View, chance: Random) -> Iterator[Move]:
        kwh = max(0.0, float(view.state(power))) * 22 / 3_600_000
        yield Move(energy, f"{float(view.state(energy)) + kwh:.3f}")
        if _happens(chance, 0.2):
            yield Move(gas, f"{float(view.state(gas)) + chance.uniform(0.001, 0.02):.3f}")

    return act


def _solar(device: Device) -> Act:
    power = device.entity_id(device.entities[0])

    def act(view: View, chance: Random) -> Iterator[Move]:
        yield Move(power, f"{3600 * _daylight(view.now) * chance.uniform(0.55, 1.0):.0f}")

    return act


def _thermostat(device: Device) -> Act:
    """Follow the room's sensor; ask for less at night and when everybody is out."""
    entity_id = device.entity_id(device.entities[0])
    sensor = next(
        other.entity_id(other.entities[0])
        for other in DEVICES
        if other.kind == "climate_sensor" and other.area_id == device.area_id
    )

    def act(view: View, _: Random) -> Iterator[Move]:
        wanted = 20.5 if _anyone_home(view) and view.now.hour in _WAKING_HOURS else 17.0
        measured = round(float(view.state(sensor)), 1)
        attributes = {
            "temperature": wanted,
            "current_temperature": measured,
            "hvac_action": "heating" if measured < wanted else "idle",
        }
        yield Move(entity_id, "heat", attributes)

    return act


_TRACKS = (
    ("Nightbird", "The Low Tides"),
    ("Paper Lanterns", "Marlow & Finch"),
    ("Harbor Lights", "Ida Soren"),
    ("Second Winter", "The Low Tides"),
)


def _speaker(device: Device) -> Act:
    """Play one track after another, with rests, while somebody is home."""
    entity_id = device.entity_id(device.entities[0])

    def act(view: View, chance: Random) -> Iterator[Move]:
        playing = view.state(entity_id) == "playing"
        if not _anyone_home(view) or (playing and _happens(chance, 0.1)):
            yield Move(entity_id, "idle", {"media_title": None, "media_artist": None})
        elif playing or _happens(chance, 0.2):
            title, artist = chance.choice(_TRACKS)
            attributes = {"media_title": title, "media_artist": artist}
            yield Move(entity_id, "playing", attributes)

    return act


def _vacuum(device: Device) -> Act:
    entity_id, battery = (device.entity_id(entity) for entity in device.entities)

    def act(view: View, chance: Random) -> Iterator[Move]:
        percent = int(view.state(battery))
        match view.state(entity_id):
            case "docked":
                yield Move(battery, str(min(100, percent + 2)))
                if percent >= _FULL_PERCENT and _happens(chance, 0.03):
                    yield Move(entity_id, "cleaning")
            case "cleaning":
                yield Move(battery, str(percent - 2))
                if percent < _EMPTY_PERCENT:
                    yield Move(entity_id, "returning")
            case _:
                yield Move(entity_id, "docked")

    return act


def _cover(device: Device) -> Act:
    """Run from one end to the other, which takes 15 seconds."""
    entity_id = device.entity_id(device.entities[0])

    def act(view: View, chance: Random) -> Iterator[Move]:
        if not _anyone_home(view) or _happens(chance, 0.5):
            return
        if view.state(entity_id) == "closed":
            yield Move(entity_id, "opening")
            yield Move(entity_id, "open", {"current_position": 100}, after_s=15)
        else:
            yield Move(entity_id, "closing")
            yield Move(entity_id, "closed", {"current_position": 0}, after_s=15)

    return act


def _phone_battery(device: Device) -> Act:
    tracker, battery = (device.entity_id(entity) for entity in device.entities)

    def act(view: View, chance: Random) -> Iterator[Move]:
        percent = int(view.state(battery))
        charging = (
            view.state(tracker) == "home" and percent < _FULL_PERCENT and _happens(chance, 0.7)
        )
        yield Move(battery, str(min(100, percent + 2) if charging else max(5, percent - 1)))

    return act


_SKIES = ("sunny", "partlycloudy", "cloudy", "rainy", "windy")


def _weather(device: Device) -> Act:
    entity_id = device.entity_id(device.entities[0])

    def act(view: View, chance: Random) -> Iterator[Move]:
        sky = chance.choice(_SKIES) if _happens(chance, 0.1) else view.state(entity_id)
        yield Move(
            entity_id,
            sky,
            {
                "temperature": round(6.0 + 9.0 * _daylight(view.now) + chance.gauss(0, 0.3), 1),
                "humidity": round(chance.uniform(70, 84)),
                "pressure": round(chance.gauss(1016, 1.5), 1),
                "wind_speed": round(chance.uniform(8, 22), 1),
                "wind_bearing": round(chance.uniform(200, 260), 1),
            },
        )

    return act


def _sun(view: View, _: Random) -> Iterator[Move]:
    elevation = round(sun_elevation(view.now), 2)
    hour = view.now.hour + view.now.minute / 60
    yield Move(
        "sun.sun",
        "above_horizon" if elevation > 0 else "below_horizon",
        {"elevation": elevation, "azimuth": round(hour * 15, 2), "rising": view.now.hour < _NOON},
    )


def _zone(view: View, _: Random) -> Iterator[Move]:
    at_home = [f"person.{name.lower()}" for name in PEOPLE if _is_home(view, name)]
    yield Move("zone.home", str(len(at_home)), {"persons": at_home})


def _errand(person: str) -> Act:
    """Leave by the front door, or come back through it."""
    who = f"person.{person.lower()}"
    tracker = f"device_tracker.{person.lower()}s_phone"
    lock, door, hall = (
        "lock.front_door_lock",
        "binary_sensor.hallway_front_door",
        "binary_sensor.hallway_sensor_motion",
    )

    def act(view: View, chance: Random) -> Iterator[Move]:
        away = view.state(who) != "home"
        if not away and _happens(chance, 0.5):
            return
        arrival_s = 2.0 if away else 30.0
        yield Move(lock, "unlocked")
        yield Move(door, "on", after_s=2)
        yield Move(hall, "on", after_s=3)
        yield Move(door, "off", after_s=7)
        yield Move(lock, "locked", after_s=14)
        where = "home" if away else "not_home"
        position = {"latitude": 52.37, "longitude": 4.89} if away else _somewhere(chance)
        yield Move(tracker, where, position, after_s=arrival_s)
        yield Move(who, where, position, after_s=arrival_s + 0.1)

    return act


def _somewhere(chance: Random) -> dict[str, object]:
    return {
        "latitude": round(52.37 + chance.uniform(0.01, 0.05), 5),
        "longitude": round(4.89 + chance.uniform(0.01, 0.05), 5),
    }


_HABITS: Mapping[Kind, tuple[tuple[Callable[[Device], Act], float, float], ...]] = {
    "climate_sensor": ((_temperature, 8, 24), (_humidity, 10, 30), (_battery, 1200, 3600)),
    "motion_sensor": ((_presence, 10, 40), (_illuminance, 8, 24)),
    "light": ((_light, 30, 90),),
    "contact": ((_contact, 60, 400),),
    "plug": ((_appliance, 3, 7), (_consumption, 30, 60)),
    "meter": ((_meter, 1, 2), (_meter_totals, 15, 30)),
    "solar": ((_solar, 3, 7), (_consumption, 30, 60)),
    "thermostat": ((_thermostat, 60, 120),),
    "speaker": ((_speaker, 15, 45),),
    "vacuum": ((_vacuum, 30, 90),),
    "cover": ((_cover, 300, 900),),
    "phone": ((_phone_battery, 60, 240),),
    "weather": ((_weather, 90, 180),),
}
"""What each kind of device does, with the bounds of the time between, in seconds.

Bridges do nothing, locks are moved by people, and alarms, one hopes, by nobody.
"""
