"""How the simulated home behaves: a generator for each device, which yields how long it waits.

A generator reads and sets the states of the home. Only states outlive a restart, not what a
generator keeps in variables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, TypeAlias

from simulator.devices import DEVICES, PEOPLE, Device

if TYPE_CHECKING:
    from simulator.home import SimulatedHome

Behavior: TypeAlias = Iterator[float]
"""Yields how many seconds to wait before it goes on."""

_DUSK = 0.6
_DAYTIME = range(6, 23)
_FULL_PERCENT = 95
_TRACKS = (
    ("Nightbird", "The Low Tides"),
    ("Paper Lanterns", "Marlow & Finch"),
    ("Harbor Lights", "Ida Soren"),
)
_SKIES = ("sunny", "partlycloudy", "cloudy", "rainy", "windy")
_APPLIANCES = {
    # Watts when idle, watts when busy, and the chance of becoming busy at each reading.
    "Television": (0.6, 95.0, 0.01),
    "Fridge": (2.1, 88.0, 0.03),
    "Dishwasher": (0.8, 1850.0, 0.002),
    "Washing machine": (0.9, 1400.0, 0.002),
    "Desk": (14.0, 120.0, 0.01),
    "Freezer": (1.8, 72.0, 0.03),
}
_CELSIUS = {"garage": 13.0, "bedroom": 18.5, "bathroom": 22.0}
_PERCENT = {"garden": 78.0, "bathroom": 62.0, "garage": 60.0}


def behaviors(home: SimulatedHome) -> list[Behavior]:
    """Return the behavior of everything in the home."""
    return [
        *(_BEHAVIORS[device.kind](home, device) for device in DEVICES if device.kind in _BEHAVIORS),
        *(_energy(home, device) for device in DEVICES if "energy" in device.product.labels),
        *(_person(home, name.lower()) for name in PEOPLE),
        _sun(home),
        _outages(home),
    ]


def sun_elevation(moment: datetime) -> float:
    """Return the elevation of the sun in degrees; below 0 it is dark."""
    hour = moment.hour + moment.minute / 60 + moment.second / 3600
    return 42.0 * math.sin((hour - 6.0) / 12.0 * math.pi) + 4.0


def _daylight(home: SimulatedHome) -> float:
    return max(0.0, sun_elevation(home.now) / 46.0)


def _happens(home: SimulatedHome, probability: float) -> bool:
    return home.chance.random() < probability


def _anyone_home(home: SimulatedHome) -> bool:
    return home.state("zone.home") != "0"


def _first(kind: str, area_id: str | None = None) -> list[str]:
    """Return the first entity of each device of a kind, in one area if it is named."""
    return [
        device.entity_ids[0]
        for device in DEVICES
        if device.kind == kind and area_id in {None, device.area_id}
    ]


def _climate_sensor(home: SimulatedHome, device: Device) -> Behavior:
    temperature, humidity, battery = device.entity_ids
    area_id = str(device.area_id)
    while True:
        yield home.chance.uniform(8, 24)
        rest = _CELSIUS.get(area_id, 20.5)
        target = 6.0 + 9.0 * _daylight(home) if area_id == "garden" else rest
        celsius = float(home.state(temperature))
        celsius += (target - celsius) * 0.02 + home.chance.gauss(0.0, 0.08)
        home.set(temperature, f"{celsius:.2f}")
        if _happens(home, 0.8):
            percent = float(home.state(humidity))
            percent += (_PERCENT.get(area_id, 48.0) - percent) * 0.03 + home.chance.gauss(0.0, 0.4)
            home.set(humidity, f"{min(max(percent, 15.0), 99.0):.1f}")
        if _happens(home, 0.007):
            home.set(battery, str(int(home.state(battery)) - 1 or 100))  # a new one after 1 %


def _motion_sensor(home: SimulatedHome, device: Device) -> Behavior:
    """Somebody enters the room, turns a light on when it is dark, and leaves again."""
    motion, illuminance = device.entity_ids
    lights = _first("light", device.area_id)
    window = 9000.0 if device.area_id == "garden" else 420.0
    while True:
        yield home.chance.uniform(8, 24)
        lamps = sum(140 for light in lights if home.state(light) == "on")
        lux = window * _daylight(home) * home.chance.uniform(0.9, 1.1) + lamps
        home.set(illuminance, f"{lux + home.chance.uniform(0, 3):.0f}")
        if home.state(motion) == "on":
            home.set(motion, "off")
        elif _anyone_home(home) and _happens(home, 0.25):
            home.set(motion, "on")
            if _happens(home, 1.0 if _daylight(home) < _DUSK else 0.3):
                yield 0.4
                look = {"color_temp_kelvin": home.chance.choice((2202, 2732, 3448))}
                look["brightness"] = home.chance.randint(90, 255)
                home.set(home.chance.choice(lights), "on", color_mode="color_temp", **look)


def _light(home: SimulatedHome, device: Device) -> Behavior:
    """Dims a light that is on, and turns it off without movement."""
    (light,) = device.entity_ids
    motions = _first("motion_sensor", device.area_id)
    while True:
        yield home.chance.uniform(30, 90)
        if home.state(light) == "off":
            continue
        if any(home.state(motion) == "on" for motion in motions):
            home.set(light, "on", brightness=home.chance.randint(60, 255))
        elif _happens(home, 0.6):
            home.set(light, "off", brightness=None, color_mode=None, color_temp_kelvin=None)


def _contact(home: SimulatedHome, device: Device) -> Behavior:
    (contact,) = device.entity_ids
    while True:
        yield home.chance.uniform(60, 400)
        if home.state(contact) == "on":
            home.set(contact, "off")
        elif _anyone_home(home) and _happens(home, 0.5):
            home.set(contact, "on")


def _plug(home: SimulatedHome, device: Device) -> Behavior:
    """An appliance with busy and idle periods; somebody turns the television off."""
    switch, power, _ = device.entity_ids
    idle_w, busy_w, begins = _APPLIANCES[device.name]
    is_busy = float(home.state(power)) > (idle_w + busy_w) / 4
    while True:
        yield home.chance.uniform(3, 7)
        if home.state(switch) == "off":
            if _happens(home, 0.05):
                home.set(switch, "on")
        elif device.name == "Television" and _happens(home, 0.004):
            home.set(switch, "off")
            home.set(power, "0.0")
        else:
            is_busy ^= _happens(home, 0.03 if is_busy else begins)
            watts = busy_w if is_busy else idle_w
            home.set(power, f"{watts * home.chance.uniform(0.92, 1.08):.1f}")


def _meter(home: SimulatedHome, device: Device) -> Behavior:
    power, voltage, _, gas = device.entity_ids
    plugs = [plug.entity_ids[1] for plug in DEVICES if plug.kind == "plug"]
    lights, (solar,) = _first("light"), _first("solar")
    while True:
        yield home.chance.uniform(1, 2)
        watts = sum(float(home.state(plug)) for plug in plugs) + home.chance.uniform(160, 190)
        watts += sum(9.5 for light in lights if home.state(light) == "on") - float(
            home.state(solar)
        )
        home.set(power, f"{watts:.0f}")
        if _happens(home, 0.3):
            home.set(voltage, f"{home.chance.gauss(231.0, 0.8):.1f}")
        if _happens(home, 0.014):
            home.set(gas, f"{float(home.state(gas)) + home.chance.uniform(0.001, 0.02):.3f}")


def _solar(home: SimulatedHome, device: Device) -> Behavior:
    power, _ = device.entity_ids
    while True:
        yield home.chance.uniform(3, 7)
        home.set(power, f"{3600 * _daylight(home) * home.chance.uniform(0.55, 1.0):.0f}")


def _energy(home: SimulatedHome, device: Device) -> Behavior:
    """Adds up the energy that a device uses."""
    power, energy = (
        next(name for name in device.entity_ids if name.endswith(end))
        for end in ("_power", "_energy")
    )
    kwh = float(home.state(energy))
    while True:
        wait_s = home.chance.uniform(20, 60)
        yield wait_s
        kwh += max(0.0, float(home.state(power))) * wait_s / 3_600_000
        home.set(energy, f"{kwh:.3f}")


def _thermostat(home: SimulatedHome, device: Device) -> Behavior:
    """Follows the sensor of the room; less heat at night and when nobody is home."""
    (thermostat,) = device.entity_ids
    (sensor,) = _first("climate_sensor", device.area_id)
    while True:
        yield home.chance.uniform(60, 120)
        wanted = 20.5 if _anyone_home(home) and home.now.hour in _DAYTIME else 17.0
        measured = round(float(home.state(sensor)), 1)
        attributes = {"temperature": wanted, "current_temperature": measured}
        action = "heating" if measured < wanted else "idle"
        home.set(thermostat, "heat", hvac_action=action, **attributes)


def _speaker(home: SimulatedHome, device: Device) -> Behavior:
    (speaker,) = device.entity_ids
    while True:
        yield home.chance.uniform(15, 45)
        is_playing = home.state(speaker) == "playing"
        if not _anyone_home(home) or (is_playing and _happens(home, 0.1)):
            home.set(speaker, "idle", media_title=None, media_artist=None)
        elif is_playing or _happens(home, 0.2):
            title, artist = home.chance.choice(_TRACKS)
            home.set(speaker, "playing", media_title=title, media_artist=artist)


def _cover(home: SimulatedHome, device: Device) -> Behavior:
    (cover,) = device.entity_ids
    while True:
        yield home.chance.uniform(300, 900)
        if not _anyone_home(home) or _happens(home, 0.5):
            continue
        is_open = home.state(cover) == "open"
        home.set(cover, "closing" if is_open else "opening")
        yield 15
        state, position = ("closed", 0) if is_open else ("open", 100)
        home.set(cover, state, current_position=position)


def _phone(home: SimulatedHome, device: Device) -> Behavior:
    tracker, battery = device.entity_ids
    while True:
        yield home.chance.uniform(60, 240)
        percent = int(home.state(battery))
        can_charge = home.state(tracker) == "home" and percent < _FULL_PERCENT
        is_charging = can_charge and _happens(home, 0.7)
        home.set(battery, str(min(100, percent + 2) if is_charging else max(5, percent - 1)))


def _weather(home: SimulatedHome, device: Device) -> Behavior:
    (weather,) = device.entity_ids
    while True:
        yield home.chance.uniform(90, 180)
        sky = home.chance.choice(_SKIES) if _happens(home, 0.1) else home.state(weather)
        home.set(
            weather,
            sky,
            temperature=round(6.0 + 9.0 * _daylight(home) + home.chance.gauss(0, 0.3), 1),
            humidity=round(home.chance.uniform(70, 84)),
            pressure=round(home.chance.gauss(1016, 1.5), 1),
            wind_speed=round(home.chance.uniform(8, 22), 1),
        )


def _person(home: SimulatedHome, name: str) -> Behavior:
    """Leaves by the front door, or comes back through it."""
    door, lock = "binary_sensor.hallway_front_door", "lock.front_door_lock"
    while True:
        yield home.chance.uniform(240, 900)
        is_home = home.state(f"person.{name}") == "home"
        if is_home and _happens(home, 0.5):
            continue
        home.set(lock, "unlocked")
        yield 2
        home.set(door, "on")
        yield 1
        home.set("binary_sensor.hallway_sensor_motion", "on")
        yield 4
        home.set(door, "off")
        yield 7
        home.set(lock, "locked")
        yield 15 if is_home else 0.2
        away = home.chance.uniform(0.01, 0.05) if is_home else 0.0
        position = {"latitude": round(52.37 + away, 5), "longitude": round(4.89 + away, 5)}
        where = "not_home" if is_home else "home"
        home.set(f"device_tracker.{name}s_phone", where, **position)
        home.set(f"person.{name}", where, **position)
        people = [f"person.{person.lower()}" for person in PEOPLE]
        present = [person for person in people if home.state(person) == "home"]
        home.set("zone.home", str(len(present)), persons=present)


def _sun(home: SimulatedHome) -> Behavior:
    while True:
        yield home.chance.uniform(60, 120)
        elevation = round(sun_elevation(home.now), 2)
        azimuth = round((home.now.hour + home.now.minute / 60) * 15, 2)
        state = "above_horizon" if elevation > 0 else "below_horizon"
        home.set("sun.sun", state, elevation=elevation, azimuth=azimuth)


def _outages(home: SimulatedHome) -> Behavior:
    """Disconnects one wireless device at a time for a while."""
    wireless = [device for device in DEVICES if device.product.via and device.entity_ids]
    while True:
        yield home.chance.uniform(60, 180)
        device = home.chance.choice(wireless)
        home.set_available(device, is_available=False)
        yield home.chance.uniform(20, 60)
        home.set_available(device, is_available=True)


_BEHAVIORS: Mapping[str, Callable[..., Behavior]] = {
    "climate_sensor": _climate_sensor,
    "motion_sensor": _motion_sensor,
    "light": _light,
    "door": _contact,
    "window": _contact,
    "plug": _plug,
    "meter": _meter,
    "solar": _solar,
    "thermostat": _thermostat,
    "speaker": _speaker,
    "blind": _cover,
    "garage_door": _cover,
    "phone": _phone,
    "weather": _weather,
}
"""What each kind of device does. People operate the lock; the bridges and alarms do nothing."""
