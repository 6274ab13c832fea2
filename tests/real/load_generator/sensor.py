"""Sensors with a unique id, so the registry can rename, move and remove them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from homeassistant.components.sensor import SensorEntity
from homeassistant.core import HomeAssistant

from .changes import DATA_SENSORS

_COUNT = 12


async def async_setup_platform(
    hass: HomeAssistant,
    config: Mapping[str, object],
    async_add_entities: Callable[[Sequence[RegistrySensor]], None],
    discovery_info: object = None,
) -> None:
    """Add the sensors, and store them for the random changes."""
    sensors = [RegistrySensor(number) for number in range(_COUNT)]
    async_add_entities(sensors)
    hass.data[DATA_SENSORS] = sensors


class RegistrySensor(SensorEntity):  # type: ignore[misc]  # Home Assistant is not installed here
    """A power meter."""

    _attr_device_class = "power"
    _attr_native_unit_of_measurement = "W"
    _attr_should_poll = False

    def __init__(self, number: int) -> None:
        self._attr_name = f"Registered {number}"
        self._attr_unique_id = f"load_generator_{number}"

    def change(self, value: float | None) -> None:
        """Set a value, or become unavailable; do nothing before the entity is added."""
        if self.hass is None or self.platform is None or self.entity_id is None:
            return
        self._attr_available = value is not None
        self._attr_native_value = value
        self.async_write_ha_state()
