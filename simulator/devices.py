"""What is in the simulated home: areas, labels, people, devices and entities.

The registry rows have the shape of Home Assistant 2026.11.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from simulator.fake_home_assistant import JsonObject, RegistryKind

FLOORS: Mapping[str, tuple[str, int]] = {"ground": ("Ground floor", 0), "upper": ("Upstairs", 1)}
"""Floor id to name and level."""

AREAS: Mapping[str, tuple[str, str | None, str]] = {
    "living_room": ("Living room", "ground", "mdi:sofa"),
    "kitchen": ("Kitchen", "ground", "mdi:stove"),
    "hallway": ("Hallway", "ground", "mdi:door"),
    "garage": ("Garage", "ground", "mdi:garage"),
    "bedroom": ("Bedroom", "upper", "mdi:bed"),
    "office": ("Office", "upper", "mdi:desk"),
    "bathroom": ("Bathroom", "upper", "mdi:shower"),
    "garden": ("Garden", None, "mdi:flower"),
}
"""Area id to name, floor id and icon."""

LABELS: Mapping[str, tuple[str, str]] = {
    "battery": ("Battery powered", "orange"),
    "energy": ("Energy", "green"),
    "security": ("Security", "red"),
}
"""Label id to name and color."""

PEOPLE = ("Anna", "Ben")

_POSITION: JsonObject = {"latitude": 52.37, "longitude": 4.89}
_HUE, _ZIGBEE = "Hue Bridge", "Zigbee coordinator"


@dataclass(frozen=True, slots=True)
class Entity:
    """One entity with its first state."""

    domain: str
    state: str
    fixed: JsonObject = field(default_factory=dict)
    """Attributes that never change and stay while the device is unavailable."""
    moving: JsonObject = field(default_factory=dict)
    """Attributes that change with the state."""
    name: str | None = None
    """None: the name of its device."""


class Product(NamedTuple):
    """What all devices of one kind have in common."""

    integration: str
    manufacturer: str
    model: str
    entities: tuple[Entity, ...] = ()
    labels: tuple[str, ...] = ()
    via: str | None = None
    """Name of the bridge it is connected to."""


@dataclass(frozen=True, slots=True)
class Device:
    """One device; `kind` names its product and its behavior."""

    kind: str
    name: str
    area_id: str | None

    @property
    def product(self) -> Product:
        """Return what it has in common with its kind."""
        return PRODUCTS[self.kind]

    @property
    def id(self) -> str:
        """Return its id in the registry."""
        return _id(self.name)

    @property
    def entity_ids(self) -> list[str]:
        """Return the ids of its entities, in the order of the product."""
        return [
            f"{entity.domain}.{_slug(self.full_name(entity))}" for entity in self.product.entities
        ]

    def full_name(self, entity: Entity) -> str:
        """Return the friendly name of one of its entities."""
        return f"{self.name} {entity.name}" if entity.name else self.name


def _sensor(device_class: str, unit: str, state: str) -> Entity:
    state_class = "total_increasing" if unit in {"kWh", "m³"} else "measurement"
    fixed = {"state_class": state_class, "unit_of_measurement": unit, "device_class": device_class}
    return Entity("sensor", state, fixed, name=device_class.capitalize())


def _binary(device_class: str, *, name: str | None = None) -> Entity:
    return Entity("binary_sensor", "off", {"device_class": device_class}, name=name)


_BATTERY = _sensor("battery", "%", "87")
_POWER = _sensor("power", "W", "4.2")
_ENERGY = _sensor("energy", "kWh", "318.402")
_LIGHT = Entity(
    "light",
    "off",
    {"supported_color_modes": ["color_temp"], "supported_features": 44},
    {"brightness": None, "color_mode": None, "color_temp_kelvin": None},
)
_CLIMATE = Entity(
    "climate",
    "heat",
    {"hvac_modes": ["off", "auto", "heat"], "min_temp": 5, "max_temp": 25},
    {"current_temperature": 20.4, "temperature": 20.5, "hvac_action": "idle"},
)
_SPEAKER = Entity(
    "media_player",
    "idle",
    {"device_class": "speaker", "supported_features": 4127295},
    {"volume_level": 0.24, "is_volume_muted": False},
)
_BLIND = Entity("cover", "open", {"device_class": "blind"}, {"current_position": 100})
_GARAGE_DOOR = Entity("cover", "closed", {"device_class": "garage"}, {"current_position": 0})
_PHONE = (Entity("device_tracker", "home", {"source_type": "gps"}, _POSITION), _BATTERY)
_FORECAST = Entity(
    "weather",
    "partlycloudy",
    {"temperature_unit": "°C", "pressure_unit": "hPa", "wind_speed_unit": "km/h"},
    {"temperature": 9.6, "humidity": 78, "pressure": 1016.2, "wind_speed": 14.4},
)
_CLIMATE_SENSOR = (
    _sensor("temperature", "°C", "20.5"),
    _sensor("humidity", "%", "50.0"),
    _BATTERY,
)
_MOTION_SENSOR = (_binary("motion", name="Motion"), _sensor("illuminance", "lx", "120"))
_METER = (
    _sensor("power", "W", "412"),
    _sensor("voltage", "V", "231.4"),
    _sensor("energy", "kWh", "12874.318"),
    _sensor("gas", "m³", "4211.872"),
)
_PLUG = (Entity("switch", "on"), _POWER, _ENERGY)
_LOCK = (Entity("lock", "locked"), _BATTERY)
_SIGNIFY, _AQARA = "Signify Netherlands B.V.", "LUMI"
_SAFE = ("battery", "security")

PRODUCTS: Mapping[str, Product] = {
    "hue_bridge": Product("hue", _SIGNIFY, "Hue Bridge (BSB002)"),
    "zigbee_coordinator": Product("zha", "Nabu Casa", "Home Assistant Connect ZBT-2"),
    "climate_sensor": Product("zha", _AQARA, "Weather", _CLIMATE_SENSOR, ("battery",), _ZIGBEE),
    "motion_sensor": Product("hue", _SIGNIFY, "SML001", _MOTION_SENSOR, _SAFE, _HUE),
    "light": Product("hue", _SIGNIFY, "Hue white ambiance (LTG002)", (_LIGHT,), (), _HUE),
    "door": Product("zha", _AQARA, "Door sensor", (_binary("door"),), _SAFE, _ZIGBEE),
    "window": Product("zha", _AQARA, "Door sensor", (_binary("window"),), _SAFE, _ZIGBEE),
    "smoke": Product("zha", "HEIMAN", "SmokeSensor", (_binary("smoke"), _BATTERY), _SAFE, _ZIGBEE),
    "plug": Product("shelly", "Shelly", "Shelly Plug S Gen3", _PLUG, ("energy",)),
    "meter": Product("homewizard", "HomeWizard", "Wi-Fi P1 Meter", _METER, ("energy",)),
    "solar": Product("solaredge", "SolarEdge", "SE4000H", (_POWER, _ENERGY), ("energy",)),
    "thermostat": Product("tado", "Tado", "Smart Radiator Thermostat (VA02)", (_CLIMATE,)),
    "speaker": Product("sonos", "Sonos", "Sonos One", (_SPEAKER,)),
    "lock": Product("nuki", "Nuki", "Smart Lock 4.0 Pro", _LOCK, _SAFE),
    "blind": Product("matter", "IKEA of Sweden", "FYRTUR roller blind", (_BLIND,)),
    "garage_door": Product("somfy_mylink", "Somfy", "Dexxo", (_GARAGE_DOOR,), ("security",)),
    "phone": Product("mobile_app", "Google", "Pixel 9", _PHONE),
    "weather": Product("met", "Met.no", "Forecast", (_FORECAST,)),
}
"""What each kind of device is."""

_NAMES: Mapping[str, Mapping[str, str | None]] = {
    "hue_bridge": {_HUE: "hallway"},
    "zigbee_coordinator": {_ZIGBEE: "hallway"},
    "climate_sensor": {
        f"{area[0]} climate": id_ for id_, area in AREAS.items() if id_ != "hallway"
    },
    "motion_sensor": {f"{area[0]} sensor": id_ for id_, area in AREAS.items()},
    "light": {
        "Living room floor lamp": "living_room",
        "Garden path lights": "garden",
        **{f"{area[0]} ceiling light": id_ for id_, area in AREAS.items() if id_ != "garden"},
    },
    "door": {"Hallway front door": "hallway", "Kitchen back door": "kitchen"},
    "window": {"Living room window": "living_room", "Bathroom window": "bathroom"},
    "plug": {
        "Television": "living_room",
        "Fridge": "kitchen",
        "Dishwasher": "kitchen",
        "Washing machine": "bathroom",
        "Desk": "office",
        "Freezer": "garage",
    },
    "meter": {"Electricity meter": "hallway"},
    "solar": {"Solar inverter": "garage"},
    "thermostat": {"Living room thermostat": "living_room", "Bedroom thermostat": "bedroom"},
    "speaker": {"Living room speaker": "living_room", "Kitchen speaker": "kitchen"},
    "lock": {"Front door lock": "hallway"},
    "smoke": {"Hallway smoke detector": "hallway"},
    "blind": {"Living room blind": "living_room"},
    "garage_door": {"Garage door": "garage"},
    "phone": {f"{person}'s phone": None for person in PEOPLE},
    "weather": {"Forecast home": None},
}

DEVICES = tuple(
    Device(kind, name, area_id) for kind, named in _NAMES.items() for name, area_id in named.items()
)
"""Every device of the home."""


class Placed(NamedTuple):
    """One entity of the home with its id, its name and its device, if it has one."""

    entity_id: str
    name: str
    entity: Entity
    device: Device | None = None


def placed_entities() -> list[Placed]:
    """Return every entity: those of devices, the people, the zone and the sun."""
    zone = Entity("zone", "2", {**_POSITION, "radius": 100, "passive": False, "icon": "mdi:home"})
    sun = Entity("sun", "below_horizon", {}, {"elevation": -20.0, "azimuth": 0.0})
    return [
        *(
            Placed(entity_id, device.full_name(entity), entity, device)
            for device in DEVICES
            for entity_id, entity in zip(device.entity_ids, device.product.entities, strict=True)
        ),
        *(Placed(f"person.{_slug(name)}", name, _person(name)) for name in PEOPLE),
        Placed("zone.home", "Home", zone),
        Placed("sun.sun", "Sun", sun),
    ]


def _person(name: str) -> Entity:
    trackers = [f"device_tracker.{_slug(name)}s_phone"]
    return Entity("person", "home", {"id": _slug(name), "device_trackers": trackers}, _POSITION)


def registry_rows(kind: RegistryKind) -> list[JsonObject]:
    """Return all rows of one registry."""
    match kind:
        case "device":
            return [_device_row(device) for device in DEVICES]
        case "entity":
            return [_entity_row(placed) for placed in placed_entities()[:-2]]  # not zone and sun
        case "area":
            return [
                {"area_id": area_id, "name": name, "floor_id": floor_id, "icon": icon}
                | {"aliases": [], "labels": [], "picture": None}
                | {"humidity_entity_id": None, "temperature_entity_id": None}
                | _DATES
                for area_id, (name, floor_id, icon) in AREAS.items()
            ]
        case "floor":
            return [
                {"floor_id": floor_id, "name": name, "level": level, "icon": None, "aliases": []}
                | _DATES
                for floor_id, (name, level) in FLOORS.items()
            ]
        case "label":
            return [
                {"label_id": label_id, "name": name, "color": color, "icon": None}
                | {"description": None}
                | _DATES
                for label_id, (name, color) in LABELS.items()
            ]


def config_entry_rows() -> list[JsonObject]:
    """Return a row for each integration."""
    return [
        {"entry_id": _config_entry_id(integration), "domain": integration, "title": integration}
        | {"source": "user", "state": "loaded", "disabled_by": None, "reason": None}
        | _DATES
        for integration in integrations()
    ]


def integrations() -> list[str]:
    """Return the integrations that the devices come from."""
    return sorted({device.product.integration for device in DEVICES})


_DATES: dict[str, object] = dict.fromkeys(("created_at", "modified_at"), 1_760_000_000.0)
_OF_EVERY_DEVICE: dict[str, object] = _DATES | dict.fromkeys(
    (
        *("config_subentry_id", "configuration_url", "disabled_by", "hw_version", "model_id"),
        *("name_by_user", "next_name_part", "parent_device_id", "serial_number", "sw_version"),
    )
)
_OF_EVERY_ENTITY: dict[str, object] = _DATES | dict.fromkeys(
    ("area_id", "config_subentry_id", "disabled_by", "hidden_by", "icon", "name", "translation_key")
)


def _device_row(device: Device) -> JsonObject:
    product, entry = device.product, _config_entry_id(device.product.integration)
    return _OF_EVERY_DEVICE | {
        "area_id": device.area_id,
        "config_entries": [entry],
        "config_entries_subentries": {entry: [None]},
        "config_entry_id": entry,
        "connections": [],
        "entry_type": "service" if device.kind == "weather" else None,
        "id": device.id,
        "identifiers": [[product.integration, device.id[:12]]],
        "labels": list(product.labels),
        "manufacturer": product.manufacturer,
        "model": product.model,
        "name": device.name,
        "primary_config_entry": entry,
        "via_device_id": _id(product.via) if product.via else None,
    }


def _entity_row(placed: Placed) -> JsonObject:
    device, entity = placed.device, placed.entity
    integration = device.product.integration if device else entity.domain
    is_battery = entity.fixed.get("device_class") == "battery"
    return _OF_EVERY_ENTITY | {
        "config_entry_id": _config_entry_id(integration) if device else None,
        "device_id": device.id if device else None,
        "entity_category": "diagnostic" if is_battery else None,
        "entity_id": placed.entity_id,
        "id": _id(placed.entity_id),
        "categories": {},
        "labels": [],
        "next_name_part": "device",
        "options": {"conversation": {"should_expose": False}},
        "original_name": entity.name if device else placed.name,
        "platform": integration,
        "unique_id": _id(f"{integration} {placed.entity_id}")[:20],
    }


def _config_entry_id(integration: str) -> str:
    return f"01K72{_id(integration)[:21].upper()}"


def _id(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


def _slug(name: str) -> str:
    return name.lower().replace("'", "").replace(" ", "_")
