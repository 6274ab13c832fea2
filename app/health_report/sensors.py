"""The sensors that this service has in Home Assistant, and their values. Pure.

The state changes of these sensors are not captured: writing them would change them again.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from app.health import Snapshot

_PREFIX = "websocket_ingestion"
_MOST_REASONS = 10
_NEARLY_FULL = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The value of a sensor."""

    state: str | None
    """None while it is unknown."""
    attributes: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSensor:
    """A sensor, as Home Assistant describes one.

    https://www.home-assistant.io/integrations/sensor/
    """

    key: str
    name: str
    read: Callable[[Snapshot], Reading]
    description: Mapping[str, object]
    """Its device class, unit and so on, by Home Assistant's names."""
    domain: Literal["sensor", "binary_sensor"] = "sensor"

    def entity_id(self, prefix: str) -> str:
        """Return its entity id; `prefix` is that of this service."""
        return f"{self.domain}.{prefix}_{self.key}"


def _status(snapshot: Snapshot) -> Reading:
    reasons = [*snapshot.reasons[:_MOST_REASONS]]
    return Reading(state=snapshot.status, attributes={"reasons": reasons})


def _last_event_written(snapshot: Snapshot) -> Reading:
    times = [sink.last_write for sink in snapshot.sinks if sink.last_write is not None]
    return Reading(state=max(times).isoformat(timespec="seconds") if times else None)


def _points_buffered(snapshot: Snapshot) -> Reading:
    # Sinks share the journal: a point that two of them wait for is buffered once.
    return Reading(state=str(max((sink.held for sink in snapshot.sinks), default=0)))


def _gaps_open(snapshot: Snapshot) -> Reading:
    return Reading(state=str(snapshot.gaps.open))


def _dead_letters(snapshot: Snapshot) -> Reading:
    return Reading(state=str(snapshot.dead_letters))


def _database_reachable(snapshot: Snapshot) -> Reading:
    waits = any(sink.state == "waiting" for sink in snapshot.sinks)
    return Reading(state="off" if waits else "on")


SENSORS = (
    HealthSensor(
        key="status",
        name="Status",
        read=_status,
        description={
            "device_class": "enum",
            "options": ["healthy", "degraded", "unhealthy"],
            "icon": "mdi:heart-pulse",
        },
    ),
    HealthSensor(
        key="last_event_written",
        name="Last event written",
        read=_last_event_written,
        description={"device_class": "timestamp"},
    ),
    HealthSensor(
        key="points_buffered",
        name="Points buffered",
        read=_points_buffered,
        description={
            "state_class": "measurement",
            "unit_of_measurement": "points",
            "icon": "mdi:tray-full",
        },
    ),
    HealthSensor(
        key="gaps_open",
        name="Gaps open",
        read=_gaps_open,
        description={
            "state_class": "measurement",
            "unit_of_measurement": "gaps",
            "icon": "mdi:timeline-question-outline",
        },
    ),
    HealthSensor(
        key="dead_letters",
        name="Dead letters",
        read=_dead_letters,
        description={
            "state_class": "measurement",
            "unit_of_measurement": "points",
            "icon": "mdi:email-off-outline",
        },
    ),
    HealthSensor(
        key="database_reachable",
        name="Database reachable",
        read=_database_reachable,
        description={"device_class": "connectivity"},
        domain="binary_sensor",
    ),
)

_OWN_PREFIXES = tuple(f"{domain}.{_PREFIX}_" for domain in ("sensor", "binary_sensor"))
# With the number that Home Assistant appends to an id that is taken already.
_OWN = re.compile(rf".*_({'|'.join(sensor.key for sensor in SENSORS)})(_\d+)?")


def readings(snapshot: Snapshot) -> Mapping[str, Reading]:
    """Return the value of each sensor by its key."""
    return {sensor.key: sensor.read(snapshot) for sensor in SENSORS}


def is_health_sensor(entity_id: str) -> bool:
    """Whether a sensor of this service, or of another one like it, has this entity id."""
    return entity_id.startswith(_OWN_PREFIXES) and _OWN.fullmatch(entity_id) is not None


def prefix_of(instance: str | None) -> str:
    """Return the beginning of this service's entity ids; `instance` is INSTANCE_NAME."""
    if instance is None:
        return _PREFIX
    plain = unicodedata.normalize("NFKD", instance).encode("ascii", "ignore").decode().lower()
    slug = "_".join(re.findall("[a-z0-9]+", plain)) or f"{zlib.crc32(instance.encode()):08x}"
    return f"{_PREFIX}_{slug}"


def title_of(instance: str | None) -> str:
    """Return the name of this service for people."""
    return "websocket-ingestion" if instance is None else f"websocket-ingestion {instance}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """The notification that data is at risk; equal to any other about the same kinds of risk."""

    kinds: tuple[str, ...]
    text: str = field(compare=False)


def notice(snapshot: Snapshot) -> Notice | None:
    """Return what to notify people of; None while no data is at risk.

    An outage of the database alone is no risk: points are buffered.
    """
    journal = snapshot.journal
    nearly_full = (
        any(sink.state != "ok" for sink in snapshot.sinks)
        and journal.bytes > _NEARLY_FULL * journal.max_bytes > 0
        and f"The journal is {100 * journal.bytes / journal.max_bytes:.0f} % full, and the database"
        " does not accept what is in it."
    )
    losing_dead_letters = (
        snapshot.dead_letters
        and snapshot.dead_letters_discarded
        and f"{snapshot.dead_letters_discarded} dead letters were lost because there were too many."
    )
    risks = {
        "failure": " ".join(
            f"The {name} loop ended: {why}." for name, why in snapshot.failures.items()
        ),
        "losing": journal.losing and "Events are being dropped.",
        "journal": journal.reason,
        "nearly full": nearly_full,
        "dead letters": losing_dead_letters,
    }
    found = {kind: sentence for kind, sentence in risks.items() if sentence}
    if not found:
        return None
    causes = [sink.reason for sink in snapshot.sinks if sink.reason]
    return Notice(kinds=tuple(found), text="\n\n".join([*found.values(), *causes]))
