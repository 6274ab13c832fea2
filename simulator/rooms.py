"""What stands where in the simulated home: floors, areas, labels, devices and their entities.

The rows have the shape of Home Assistant 2026.11's registries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from simulator.fake_home_assistant import JsonObject, RegistryKind

Kind = Literal[
    "bridge",
    "climate_sensor",
    "motion_sensor",
    "light",
    "contact",
    "plug",
    "meter",
    "solar",
    "thermostat",
    "speaker",
    "lock",
    "alarm",
    "vacuum",
    "cover",
    "phone",
    "weather",
]
"""What a device is to the people who live with it; `habits` says what it does."""

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
"""Who lives here; each has a phone."""

_CREATED_AT = 1_760_000_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """One thing a device measures or does, as it is when the house is new."""

    domain: str
    name: str | None = None
    """None: it is the device itself and has its name."""
    state: str
    fixed: JsonObject = field(default_factory=dict)
    """Attributes that never change and are told even while the device is unavailable."""
    moving: JsonObject = field(default_factory=dict)
    """Attributes that come and go with the state."""
    diagnostic: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device and what it offers."""

    kind: Kind
    name: str
    area_id: str | None
    integration: str
    manufacturer: str | None
    model: str | None
    sw_version: str | None
    entities: tuple[Entity, ...]
    labels: tuple[str, ...] = ()
    via: str | None = None
    """Name of the bridge it talks through."""

    @property
    def id(self) -> str:
        """Return the id of the registry."""
        return _id(self.name)

    def entity_id(self, entity: Entity) -> str:
        """Return the id that Home Assistant makes of the names of device and entity."""
        return f"{entity.domain}.{_slug(self._full_name(entity))}"

    def fixed_attributes(self, entity: Entity) -> JsonObject:
        """Return what is told of the entity whatever its state."""
        return {**entity.fixed, "friendly_name": self._full_name(entity)}

    def _full_name(self, entity: Entity) -> str:
        return f"{self.name} {entity.name}" if entity.name else self.name


def config_entry_id(integration: str) -> str:
    """Return the id of the only config entry of an integration."""
    return f"01K72{_id(integration)[:21].upper()}"


def registry_rows(kind: RegistryKind) -> list[JsonObject]:
    """Return all rows of one registry."""
    match kind:
        case "device":
            return [_device_row(device) for device in DEVICES]
        case "entity":
            return [*_entity_rows(), *(_person_row(name) for name in PEOPLE)]
        case "area":
            return [_area_row(area_id, *area) for area_id, area in AREAS.items()]
        case "floor":
            return [
                {"floor_id": floor_id, "name": name, "level": level, "icon": None, "aliases": []}
                | _dates()
                for floor_id, (name, level) in FLOORS.items()
            ]
        case "label":
            return [
                {"label_id": label_id, "name": name, "color": color, "icon": None}
                | {"description": None}
                | _dates()
                for label_id, (name, color) in LABELS.items()
            ]


def config_entry_rows() -> list[JsonObject]:
    """Return a row for each integration that is set up."""
    return [
        {
            "entry_id": config_entry_id(integration),
            "domain": integration,
            "title": integration.replace("_", " ").title(),
            "source": "user",
            "state": "loaded",
            "disabled_by": None,
            "reason": None,
        }
        | _dates()
        for integration in sorted({device.integration for device in DEVICES})
    ]


def _device_row(device: Device) -> JsonObject:
    entry = config_entry_id(device.integration)
    return {
        "area_id": device.area_id,
        "configuration_url": None,
        "config_entries": [entry],
        "config_entries_subentries": {entry: [None]},
        "config_entry_id": entry,
        "config_subentry_id": None,
        "connections": [],
        "disabled_by": None,
        "entry_type": "service" if device.kind == "weather" else None,
        "hw_version": None,
        "id": device.id,
        "identifiers": [[device.integration, device.id[:12]]],
        "labels": list(device.labels),
        "manufacturer": device.manufacturer,
        "model": device.model,
        "model_id": None,
        "name_by_user": None,
        "name": device.name,
        "next_name_part": None,
        "parent_device_id": None,
        "primary_config_entry": entry,
        "serial_number": None,
        "sw_version": device.sw_version,
        "via_device_id": _id(device.via) if device.via else None,
    } | _dates()


def _entity_rows() -> Iterator[JsonObject]:
    for device in DEVICES:
        for entity in device.entities:
            entity_id = device.entity_id(entity)
            yield {
                "config_entry_id": config_entry_id(device.integration),
                "device_id": device.id,
                "entity_category": "diagnostic" if entity.diagnostic else None,
                "entity_id": entity_id,
                "original_name": entity.name,
                "platform": device.integration,
                "unique_id": f"{device.id[:12]}-{entity_id}",
            } | _of_every_entity(entity_id)


def _person_row(name: str) -> JsonObject:
    entity_id = f"person.{_slug(name)}"
    return {
        "config_entry_id": None,
        "device_id": None,
        "entity_category": None,
        "entity_id": entity_id,
        "original_name": name,
        "platform": "person",
        "unique_id": _slug(name),
    } | _of_every_entity(entity_id)


def _of_every_entity(entity_id: str) -> dict[str, object]:
    return {
        "area_id": None,
        "categories": {},
        "config_subentry_id": None,
        "disabled_by": None,
        "hidden_by": None,
        "icon": None,
        "id": _id(entity_id),
        "labels": [],
        "name": None,
        "next_name_part": "device",
        "options": {"conversation": {"should_expose": False}},
        "translation_key": None,
    } | _dates()


def _area_row(area_id: str, name: str, floor_id: str | None, icon: str) -> JsonObject:
    return {
        "aliases": [],
        "area_id": area_id,
        "floor_id": floor_id,
        "humidity_entity_id": None,
        "icon": icon,
        "labels": [],
        "name": name,
        "picture": None,
        "temperature_entity_id": None,
    } | _dates()


def _dates() -> dict[str, object]:
    return {"created_at": _CREATED_AT, "modified_at": _CREATED_AT}


def _id(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


def _slug(name: str) -> str:
    return name.lower().replace("'", "").replace(" ", "_")


def _measured(
    device_class: str, unit: str, state: str, *, name: str | None = None, total: bool = False
) -> Entity:
    return Entity(
        domain="sensor",
        name=name or device_class.replace("_", " ").capitalize(),
        state=state,
        fixed={
            "state_class": "total_increasing" if total else "measurement",
            "unit_of_measurement": unit,
            "device_class": device_class,
        },
        diagnostic=device_class == "battery",
    )


def _climate_sensor(area_id: str, celsius: str, percent: str) -> Device:
    return Device(
        kind="climate_sensor",
        name=f"{AREAS[area_id][0]} climate",
        area_id=area_id,
        integration="zha",
        manufacturer="LUMI",
        model="lumi.weather",
        sw_version="0x00000006",
        entities=(
            _measured("temperature", "°C", celsius),
            _measured("humidity", "%", percent),
            _measured("battery", "%", "87"),
        ),
        labels=("battery",),
        via="Zigbee coordinator",
    )


def _motion_sensor(area_id: str) -> Device:
    return Device(
        kind="motion_sensor",
        name=f"{AREAS[area_id][0]} sensor",
        area_id=area_id,
        integration="hue",
        manufacturer="Signify Netherlands B.V.",
        model="Hue motion sensor (SML001)",
        sw_version="1.1.27575",
        entities=(
            Entity(
                domain="binary_sensor",
                name="Motion",
                state="off",
                fixed={"device_class": "motion"},
            ),
            _measured("illuminance", "lx", "120"),
        ),
        labels=("battery", "security"),
        via="Hue Bridge",
    )


def _light(area_id: str, what: str) -> Device:
    return Device(
        kind="light",
        name=f"{AREAS[area_id][0]} {what}",
        area_id=area_id,
        integration="hue",
        manufacturer="Signify Netherlands B.V.",
        model="Hue white ambiance (LTG002)",
        sw_version="1.122.2",
        entities=(
            Entity(
                domain="light",
                state="off",
                fixed={
                    "min_color_temp_kelvin": 2202,
                    "max_color_temp_kelvin": 6535,
                    "supported_color_modes": ["color_temp"],
                    "supported_features": 44,
                },
                moving={"brightness": None, "color_mode": None, "color_temp_kelvin": None},
            ),
        ),
        via="Hue Bridge",
    )


def _contact(area_id: str, what: str) -> Device:
    return Device(
        kind="contact",
        name=f"{AREAS[area_id][0]} {what}",
        area_id=area_id,
        integration="zha",
        manufacturer="LUMI",
        model="lumi.sensor_magnet.aq2",
        sw_version="0x00000002",
        entities=(
            Entity(
                domain="binary_sensor",
                state="off",
                fixed={"device_class": "window" if what == "window" else "door"},
            ),
        ),
        labels=("battery", "security"),
        via="Zigbee coordinator",
    )


def _plug(area_id: str, what: str) -> Device:
    return Device(
        kind="plug",
        name=what,
        area_id=area_id,
        integration="shelly",
        manufacturer="Shelly",
        model="Shelly Plug S Gen3",
        sw_version="1.7.1",
        entities=(
            Entity(domain="switch", state="on"),
            _measured("power", "W", "4.2"),
            _measured("energy", "kWh", "318.402", total=True),
        ),
        labels=("energy",),
    )


def _thermostat(area_id: str, model: str) -> Device:
    return Device(
        kind="thermostat",
        name=f"{AREAS[area_id][0]} thermostat",
        area_id=area_id,
        integration="tado",
        manufacturer="Tado",
        model=model,
        sw_version="246.1",
        entities=(
            Entity(
                domain="climate",
                state="heat",
                fixed={
                    "hvac_modes": ["off", "auto", "heat"],
                    "min_temp": 5,
                    "max_temp": 25,
                    "supported_features": 401,
                },
                moving={"current_temperature": 20.4, "temperature": 20.5, "hvac_action": "idle"},
            ),
        ),
    )


def _speaker(area_id: str, model: str) -> Device:
    return Device(
        kind="speaker",
        name=f"{AREAS[area_id][0]} speaker",
        area_id=area_id,
        integration="sonos",
        manufacturer="Sonos",
        model=model,
        sw_version="86.3-67040",
        entities=(
            Entity(
                domain="media_player",
                state="idle",
                fixed={"device_class": "speaker", "supported_features": 4127295},
                moving={"volume_level": 0.24, "is_volume_muted": False},
            ),
        ),
    )


def _cover(area_id: str, what: str, device_class: str) -> Device:
    return Device(
        kind="cover",
        name=f"{AREAS[area_id][0]} {what}",
        area_id=area_id,
        integration="somfy_mylink" if device_class == "garage" else "matter",
        manufacturer="Somfy" if device_class == "garage" else "IKEA of Sweden",
        model="Dexxo Smart io" if device_class == "garage" else "FYRTUR block-out roller blind",
        sw_version="24.4.11",
        entities=(
            Entity(
                domain="cover",
                state="closed" if device_class == "garage" else "open",
                fixed={"device_class": device_class, "supported_features": 15},
                moving={"current_position": 0 if device_class == "garage" else 100},
            ),
        ),
        labels=("security",) if device_class == "garage" else (),
    )


def _bridge(name: str, integration: str, manufacturer: str, model: str) -> Device:
    return Device(
        kind="bridge",
        name=name,
        area_id="hallway",
        integration=integration,
        manufacturer=manufacturer,
        model=model,
        sw_version="1.71.0",
        entities=(),
    )


def _alarm(area_id: str, what: str, device_class: str) -> Device:
    return Device(
        kind="alarm",
        name=f"{AREAS[area_id][0]} {what}",
        area_id=area_id,
        integration="zha",
        manufacturer="HEIMAN",
        model="SmokeSensor-EF-3.0" if device_class == "smoke" else "WaterSensor-EF-3.0",
        sw_version=None,
        entities=(
            Entity(domain="binary_sensor", state="off", fixed={"device_class": device_class}),
            _measured("battery", "%", "94"),
        ),
        labels=("battery", "security"),
        via="Zigbee coordinator",
    )


def _phone(person: str, manufacturer: str, model: str) -> Device:
    return Device(
        kind="phone",
        name=f"{person}'s phone",
        area_id=None,
        integration="mobile_app",
        manufacturer=manufacturer,
        model=model,
        sw_version="19.1",
        entities=(
            Entity(
                domain="device_tracker",
                state="home",
                fixed={"source_type": "gps"},
                moving={"latitude": 52.37, "longitude": 4.89, "gps_accuracy": 12},
            ),
            _measured("battery", "%", "76", name="Battery level"),
        ),
    )


DEVICES: tuple[Device, ...] = (
    _bridge("Hue Bridge", "hue", "Signify Netherlands B.V.", "Hue Bridge (BSB002)"),
    _bridge("Zigbee coordinator", "zha", "Nabu Casa", "Home Assistant Connect ZBT-2"),
    _climate_sensor("living_room", "20.6", "47.2"),
    _climate_sensor("kitchen", "21.3", "52.8"),
    _climate_sensor("garage", "13.4", "61.0"),
    _climate_sensor("bedroom", "18.9", "50.1"),
    _climate_sensor("office", "20.9", "44.6"),
    _climate_sensor("bathroom", "22.1", "63.5"),
    _climate_sensor("garden", "9.8", "78.4"),
    *(_motion_sensor(area_id) for area_id in AREAS),
    *(_light(area_id, "ceiling light") for area_id in AREAS if area_id != "garden"),
    _light("living_room", "floor lamp"),
    _light("garden", "path lights"),
    _contact("hallway", "front door"),
    _contact("kitchen", "back door"),
    _contact("garage", "side door"),
    _contact("living_room", "window"),
    _contact("bedroom", "window"),
    _contact("bathroom", "window"),
    _plug("living_room", "Television"),
    _plug("kitchen", "Fridge"),
    _plug("kitchen", "Dishwasher"),
    _plug("bathroom", "Washing machine"),
    _plug("office", "Desk"),
    _plug("garage", "Freezer"),
    Device(
        kind="meter",
        name="Electricity meter",
        area_id="hallway",
        integration="homewizard",
        manufacturer="HomeWizard",
        model="Wi-Fi P1 Meter",
        sw_version="6.0202",
        entities=(
            _measured("power", "W", "412"),
            _measured("voltage", "V", "231.4"),
            _measured("energy", "kWh", "12874.318", name="Energy import", total=True),
            _measured("gas", "m³", "4211.872", total=True),
        ),
        labels=("energy",),
    ),
    Device(
        kind="solar",
        name="Solar inverter",
        area_id="garage",
        integration="solaredge",
        manufacturer="SolarEdge",
        model="SE4000H",
        sw_version="4.18.32",
        entities=(
            _measured("power", "W", "0"),
            _measured("energy", "kWh", "9341.205", total=True),
        ),
        labels=("energy",),
    ),
    _thermostat("living_room", "Smart Thermostat (RU02)"),
    _thermostat("bedroom", "Smart Radiator Thermostat (VA02)"),
    _thermostat("office", "Smart Radiator Thermostat (VA02)"),
    _speaker("living_room", "Sonos Beam"),
    _speaker("kitchen", "Sonos One"),
    Device(
        kind="lock",
        name="Front door lock",
        area_id="hallway",
        integration="nuki",
        manufacturer="Nuki Home Solutions GmbH",
        model="Smart Lock 4.0 Pro",
        sw_version="4.3.8",
        entities=(
            Entity(domain="lock", state="locked", fixed={"supported_features": 1}),
            _measured("battery", "%", "62"),
        ),
        labels=("battery", "security"),
    ),
    _alarm("hallway", "smoke detector", "smoke"),
    _alarm("bathroom", "leak sensor", "moisture"),
    Device(
        kind="vacuum",
        name="Robot vacuum",
        area_id="living_room",
        integration="roborock",
        manufacturer="Roborock",
        model="Roborock S8",
        sw_version="02.34.66",
        entities=(
            Entity(
                domain="vacuum",
                state="docked",
                fixed={"fan_speed_list": ["quiet", "balanced", "max"], "supported_features": 30652},
                moving={"fan_speed": "balanced"},
            ),
            _measured("battery", "%", "100"),
        ),
    ),
    _cover("living_room", "blind", "blind"),
    _cover("garage", "door", "garage"),
    _phone("Anna", "Apple", "iPhone17,1"),
    _phone("Ben", "Google", "Pixel 9"),
    Device(
        kind="weather",
        name="Forecast home",
        area_id=None,
        integration="met",
        manufacturer="Met.no",
        model="Forecast",
        sw_version=None,
        entities=(
            Entity(
                domain="weather",
                state="partlycloudy",
                fixed={
                    "temperature_unit": "°C",
                    "pressure_unit": "hPa",
                    "wind_speed_unit": "km/h",
                    "supported_features": 3,
                    "attribution": "Weather forecast from met.no, delivered by the Norwegian"
                    " Meteorological Institute.",
                },
                moving={
                    "temperature": 9.6,
                    "humidity": 78,
                    "pressure": 1016.2,
                    "wind_speed": 14.4,
                    "wind_bearing": 232.1,
                },
            ),
        ),
    ),
)
"""Every device of the home."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """One entity of the home, wherever it comes from."""

    entity_id: str
    device: Device | None
    entity: Entity
    fixed: JsonObject
    """Its fixed attributes, the friendly name among them."""


def placed_entities() -> list[Placed]:
    """Return every entity: those of devices, the people, the zone and the sun."""
    return [
        *(
            Placed(
                entity_id=device.entity_id(entity),
                device=device,
                entity=entity,
                fixed=device.fixed_attributes(entity),
            )
            for device in DEVICES
            for entity in device.entities
        ),
        *(_loose(_person(name), name) for name in PEOPLE),
        _loose(_ZONE, "Home"),
        _loose(_SUN, "Sun"),
    ]


def _loose(entity: Entity, name: str) -> Placed:
    return Placed(
        entity_id=f"{entity.domain}.{_slug(name)}",
        device=None,
        entity=entity,
        fixed={**entity.fixed, "friendly_name": name},
    )


def _person(name: str) -> Entity:
    return Entity(
        domain="person",
        state="home",
        fixed={
            "id": _slug(name),
            "editable": True,
            "device_trackers": [f"device_tracker.{_slug(name)}s_phone"],
        },
        moving={"latitude": 52.37, "longitude": 4.89},
    )


_ZONE = Entity(
    domain="zone",
    state="2",
    fixed={
        "latitude": 52.37,
        "longitude": 4.89,
        "radius": 100,
        "passive": False,
        "editable": True,
        "icon": "mdi:home",
    },
)
_SUN = Entity(domain="sun", state="below_horizon", moving={"elevation": -20.0, "rising": False})
