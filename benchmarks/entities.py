"""A large home for benchmarks: 2,000 entities shaped like the recordings, and how they move.

All of it follows from one seed, so that every run measures the same home.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from simulator.fake_home_assistant import JsonObject, RegistryKind

Look = tuple[str, dict[str, object]]
"""A state and its attributes, without the friendly name."""
Move = Callable[[random.Random, dict[str, object]], Look]
"""Make the next look from the former attributes, which it may change; at first there are none."""

_ENTITIES_PER_DEVICE = 3
_BORN = 1_795_457_886.833397
_ROOMS = (
    "Living Room",
    "Küche",
    "Büro",
    "Schlafzimmer",
    "Salle à manger",
    "Chambre d'amis",
    "Garage",
    "Keller",
    "Гостиная",
    "子供部屋",
    "Baño",
    "Hall",
    "Attic",
    "Garden",
    "Terrasse",
    "Wäscheküche",
)
_MAKERS = (
    ("Signify Netherlands B.V.", "Hue white and color ambiance (LCA001)", "1.122.2"),
    ("Aqara", "Temperature and humidity sensor (WSDCGQ11LM)", "20240103"),
    ("Shelly", "Shelly Plus 1PM", "20240819-074343/1.4.2-gc2639da"),
    ("IKEA of Sweden", "TRÅDFRI bulb E27 CWS opal 600lm", "2.3.093"),
    ("espressif", "esp32dev", "2026.10.1 (ESPHome)"),
    ("tado", "Smart Radiator Thermostat", None),
)
_EFFECTS = tuple(
    f"{style} {name}"
    for style in ("Solid", "Chase", "Twinkle", "Fade")
    for name in ("Rainbow", "Aurora", "Sunset", "Ocean", "Fire", "Candle", "Party")
)
_SONGS = ("♥ The Best Fireplace Video (3 hours)", "Für Elise", "夜に駆ける", "Sodade", "Jóga")


def _measured(low: float, high: float, digits: int, **attributes: object) -> Move:
    """Return a sensor that drifts between two values."""

    def move(chance: random.Random, _: dict[str, object]) -> Look:
        return f"{chance.uniform(low, high):.{digits}f}", {"state_class": "measurement"} | (
            attributes
        )

    return move


def _meter(chance: random.Random, _: dict[str, object]) -> Look:
    return f"{chance.uniform(10, 90_000):.3f}", {
        "state_class": "total_increasing",
        "unit_of_measurement": "kWh",
        "device_class": "energy",
        "last_reset": "2026-01-01T00:00:00+00:00",
    }


def _mode(chance: random.Random, _: dict[str, object]) -> Look:
    options = ["idle", "heating", "defrost", "standby", "error, see manual"]
    return chance.choice(options), {"options": options, "device_class": "enum"}


def _word(*states: str, **attributes: object) -> Move:
    """Return an entity that is always one of a few words."""

    def move(chance: random.Random, _: dict[str, object]) -> Look:
        return chance.choice(states), dict(attributes)

    return move


def _light(chance: random.Random, former: dict[str, object]) -> Look:
    is_on = chance.random() < 0.8
    effects = former.get("effect_list") or list(_EFFECTS[: chance.randint(2, len(_EFFECTS))])
    red, green, blue = (chance.randint(0, 255) for _ in range(3))
    return "on" if is_on else "off", {
        "min_color_temp_kelvin": 2000,
        "max_color_temp_kelvin": 6535,
        "effect_list": effects,
        "supported_color_modes": ["color_temp", "hs", "xy"],
        "effect": "None" if is_on else None,
        "color_mode": "hs" if is_on else None,
        "brightness": chance.randint(1, 255) if is_on else None,
        "color_temp_kelvin": None,
        "hs_color": [round(chance.uniform(0, 360), 3), red / 255 * 100] if is_on else None,
        "rgb_color": [red, green, blue] if is_on else None,
        "xy_color": [round(chance.random(), 3), round(chance.random(), 3)] if is_on else None,
        "icon": "mdi:lightbulb-group",
        "supported_features": 44,
    }


def _climate(chance: random.Random, _: dict[str, object]) -> Look:
    return chance.choice(("heat", "heat", "off", "auto")), {
        "hvac_modes": ["heat", "off", "auto", "cool", "dry", "fan_only"],
        "min_temp": 7.0,
        "max_temp": 35.0,
        "target_temp_step": 0.5,
        "fan_modes": ["auto", "low", "medium", "high"],
        "preset_modes": ["none", "away", "eco", "boost", "schedule"],
        "current_temperature": round(chance.uniform(16, 25), 1),
        "temperature": chance.choice((18.0, 20.5, 21.0)),
        "temperature_unit": "°C",
        "current_humidity": chance.randint(30, 70),
        "hvac_action": chance.choice(("heating", "idle")),
        "preset_mode": "schedule",
        "supported_features": 401,
    }


def _weather(chance: random.Random, _: dict[str, object]) -> Look:
    return chance.choice(("sunny", "cloudy", "rainy", "partlycloudy")), {
        "temperature": round(chance.uniform(-5, 30), 1),
        "apparent_temperature": round(chance.uniform(-5, 30), 1),
        "dew_point": round(chance.uniform(-5, 15), 1),
        "temperature_unit": "°C",
        "humidity": chance.randint(30, 100),
        "cloud_coverage": chance.randint(0, 100),
        "pressure": round(chance.uniform(980, 1040), 1),
        "pressure_unit": "hPa",
        "wind_bearing": round(chance.uniform(0, 360), 1),
        "wind_speed": round(chance.uniform(0, 60), 1),
        "wind_speed_unit": "km/h",
        "visibility_unit": "km",
        "precipitation_unit": "mm",
        "attribution": "Weather forecast from met.no, delivered by the Norwegian Institute",
        "supported_features": 3,
    }


def _tracker(chance: random.Random, _: dict[str, object]) -> Look:
    return chance.choice(("home", "not_home", "Büro")), {
        "source_type": "gps",
        "latitude": round(chance.uniform(52, 53), 6),
        "longitude": round(chance.uniform(4, 5), 6),
        "gps_accuracy": chance.randint(3, 90),
        "battery_level": chance.randint(1, 100),
    }


def _person(chance: random.Random, former: dict[str, object]) -> Look:
    state, where = _tracker(chance, former)
    del where["source_type"], where["battery_level"]
    return state, {
        "editable": True,
        "id": "owner",
        "device_trackers": ["device_tracker.phone", "device_tracker.watch"],
        "in_zones": ["zone.home"] if state == "home" else [],
        "source": "device_tracker.phone",
        "user_id": "6c066f03ab024990bc5a3187825fb811",
        "entity_picture": "/api/image/serve/9d6a7a1f2c40a3b5/512x512",
        **where,
    }


def _player(chance: random.Random, _: dict[str, object]) -> Look:
    return chance.choice(("playing", "paused", "idle")), {
        "sound_mode_list": ["Music", "Movie"],
        "volume_level": round(chance.random(), 2),
        "is_volume_muted": False,
        "media_content_id": f"{chance.getrandbits(60):x}",
        "media_content_type": "music",
        "media_duration": 300,
        "media_position": chance.randint(0, 300),
        "media_position_updated_at": "2026-11-23T18:18:10.378408+00:00",
        "media_title": chance.choice(_SONGS),
        "app_name": 'Say "Music"',
        "shuffle": False,
        "entity_picture": f"/api/media_player_proxy/player?token={chance.getrandbits(256):064x}",
        "supported_features": 119695,
    }


@dataclass(frozen=True, slots=True)
class Kind:
    """Entities that look and move alike."""

    domain: str
    word: str
    """What their names and ids end in."""
    count: int
    share: float
    """Of the events of the home, relative to the other kinds."""
    platform: str
    move: Move


KINDS = (
    Kind(
        *("sensor", "Temperature", 320, 16.0, "mqtt"),
        _measured(15, 26, 2, unit_of_measurement="°C", device_class="temperature"),
    ),
    Kind(
        *("sensor", "Humidity", 200, 9.0, "mqtt"),
        _measured(30, 80, 1, unit_of_measurement="%", device_class="humidity"),
    ),
    Kind(
        *("sensor", "Power", 260, 24.0, "shelly"),
        _measured(0, 2400, 1, unit_of_measurement="W", device_class="power"),
    ),
    Kind("sensor", "Energy", 180, 8.0, "shelly", _meter),
    Kind(
        *("sensor", "Linkquality", 140, 6.0, "mqtt"),
        _measured(0, 255, 0, unit_of_measurement="lqi", icon="mdi:signal"),
    ),
    Kind("sensor", "Mode", 60, 1.0, "mqtt", _mode),
    Kind(
        *("binary_sensor", "Motion", 200, 9.0, "zha"),
        _word("on", "off", device_class="motion"),
    ),
    Kind("binary_sensor", "Window", 140, 3.0, "zha", _word("on", "off", device_class="window")),
    Kind("light", "Light", 200, 8.0, "hue", _light),
    Kind("switch", "Plug", 120, 2.0, "shelly", _word("on", "off", device_class="outlet")),
    Kind("climate", "Thermostat", 60, 4.0, "tado", _climate),
    Kind("cover", "Blind", 50, 1.0, "mqtt", _word("open", "closed", supported_features=15)),
    Kind("media_player", "Player", 30, 3.0, "cast", _player),
    Kind("weather", "Weather", 6, 1.0, "met", _weather),
    Kind("device_tracker", "Phone", 20, 3.0, "mobile_app", _tracker),
    Kind("person", "Person", 14, 2.0, "person", _person),
)
"""2,000 entities together."""


@dataclass(frozen=True, slots=True)
class Entity:
    """One entity of the home."""

    number: int
    entity_id: str
    name: str
    kind: Kind


def make_entities(total: int) -> list[Entity]:
    """Return about `total` entities, kind by kind."""
    share = total / sum(kind.count for kind in KINDS)
    entities: list[Entity] = []
    for kind in KINDS:
        for count in range(max(1, round(kind.count * share))):
            number = len(entities)
            room = _ROOMS[number % len(_ROOMS)]
            word = kind.word.lower()
            entity_id = f"{kind.domain}.room_{number % len(_ROOMS)}_{word}_{count}"
            entities.append(Entity(number, entity_id, f"{room} {kind.word} {count}", kind))
    return entities


def registry_rows(entities: list[Entity]) -> Mapping[RegistryKind, list[JsonObject]]:
    """Return the registries that belong to the entities."""
    devices = range((len(entities) - 1) // _ENTITIES_PER_DEVICE + 1)
    return {
        "device": [_device_row(number) for number in devices],
        "entity": [_entity_row(entity) for entity in entities],
        "area": [_area_row(number, name) for number, name in enumerate(_ROOMS)],
        "floor": [
            {"floor_id": f"floor_{level}", "name": f"Étage {level}", "level": level, "aliases": []}
            for level in range(3)
        ],
        "label": [{"label_id": "important", "name": "Wichtig", "color": "red", "icon": None}],
    }


def _device_row(number: int) -> JsonObject:
    maker, model, version = _MAKERS[number % len(_MAKERS)]
    return {
        "area_id": f"area_{number % len(_ROOMS)}",
        "configuration_url": None,
        "config_entries": ["01M84T2DZY991Y3C12XRNVWZX1"],
        "connections": [["mac", f"00:17:88:01:{number >> 8:02x}:{number & 255:02x}"]],
        "created_at": _BORN,
        "disabled_by": None,
        "hw_version": None,
        "id": _device_id(number),
        "identifiers": [["mqtt", f"zigbee2mqtt_0x{number:016x}"]],
        "labels": [],
        "manufacturer": maker,
        "model": model,
        "modified_at": _BORN,
        "name_by_user": None,
        "name": f"{_ROOMS[number % len(_ROOMS)]} Gerät {number}",
        "serial_number": None,
        "sw_version": version,
        "via_device_id": None,
    }


def _entity_row(entity: Entity) -> JsonObject:
    has_device = entity.kind.domain not in {"person", "weather"}
    return {
        # A few were given an area of their own, which comes before their device's.
        "area_id": f"area_{entity.number % len(_ROOMS)}" if entity.number % 10 == 0 else None,
        "categories": {},
        "config_entry_id": "01M84T2DZY991Y3C12XRNVWZX1",
        "created_at": _BORN,
        "device_id": _device_id(entity.number // _ENTITIES_PER_DEVICE) if has_device else None,
        "disabled_by": None,
        "entity_category": None,
        "entity_id": entity.entity_id,
        "hidden_by": None,
        "icon": None,
        "id": f"{entity.number:032x}",
        "labels": ["important"] if entity.number % 25 == 0 else [],
        "modified_at": _BORN,
        "name": None,
        "options": {"conversation": {"should_expose": False}},
        "original_name": entity.name,
        "platform": entity.kind.platform,
        "translation_key": None,
        "unique_id": f"0x{entity.number:016x}_{entity.kind.word.lower()}",
    }


def _area_row(number: int, name: str) -> JsonObject:
    return {
        "aliases": [],
        "area_id": f"area_{number}",
        "floor_id": f"floor_{number % 3}",
        "icon": "mdi:sofa",
        "labels": [],
        "name": name,
        "picture": None,
        "created_at": _BORN,
        "modified_at": _BORN,
    }


def _device_id(number: int) -> str:
    return f"{0x6DF173029845A17352284E36D499B717 + number:032x}"
