"""Pydantic models of requests and responses, for validation and for OpenAPI."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from app.model import GapReason, GapState, IdentityKind, TimeSource

NextCursor = Annotated[
    str | None, Field(examples=[None], description="Cursor of the next page; null after the last")
]


class ProblemError(BaseModel):
    """An invalid value."""

    location: str = Field(examples=["query.limit"])
    message: str = Field(examples=["Input should be less than or equal to 1000"])


class ProblemDocument(BaseModel):
    """Why a request was refused (RFC 9457)."""

    type: str = Field("about:blank", examples=["about:blank"])
    title: str = Field(examples=["Unauthorized"])
    status: int = Field(examples=[401])
    detail: str = Field(examples=["The key is not the API_KEY of this service."])
    code: str = Field(examples=["api_key_wrong"], description="Stable, for programs")
    errors: list[ProblemError] | None = Field(None, description="Given with 422 only")


class Alive(BaseModel):
    """The process responds."""

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """Events can be journaled."""

    status: Literal["ready"] = "ready"


class Rate(BaseModel):
    """Events received in one second."""

    time: datetime = Field(examples=["2026-11-23T10:00:00Z"])
    events: int = Field(examples=[12])


class EventRate(BaseModel):
    """The rate of received events."""

    events_per_minute: float = Field(
        examples=[17.0], description="Received in the last 60 full seconds"
    )
    events_total: int = Field(examples=[4711], description="Received since the start")
    window_seconds: int = Field(examples=[900])
    seconds: list[Rate] = Field(description="Oldest first, without seconds that had no events")


class Device(BaseModel):
    """A device; unknown values are null."""

    device_id: str = Field(examples=["a1b2c3"])
    name: str | None = Field(examples=["Lamp"], description="The user's name for it, else its own")
    name_by_user: str | None = Field(examples=[None])
    manufacturer: str | None = Field(examples=["Ikea"])
    model: str | None = Field(examples=["T1"])
    sw_version: str | None = Field(examples=["1.2"])
    area_id: str | None = Field(examples=["hall"], description="Its own, not inherited")
    integration: str | None = Field(examples=["mqtt"])
    entry_type: str | None = Field(examples=[None])
    configuration_url: str | None = Field(examples=[None])
    suggested_area: str | None = Field(examples=[None])
    config_entry_id: str | None = Field(examples=["01M84RPCSVWDYAWCQM5BKFNFEH"])
    via_device: str | None = Field(examples=[None])
    last_seen: datetime | None = Field(description="When it was last listed")
    created_at: datetime | None
    labels: list[str] | None = Field(examples=[["radio"]])
    source: str | None = Field(examples=["home_assistant"], description="Which sender reported it")
    removed_at: datetime | None = Field(
        examples=[None], description="When it was removed from Home Assistant"
    )
    entity_count: int = Field(examples=[3])


class DevicePage(BaseModel):
    """A page of devices, by id."""

    devices: list[Device]
    count: int = Field(examples=[1], description="Number on this page")
    limit: int = Field(examples=[100])
    next_cursor: NextCursor


class Entity(BaseModel):
    """An entity; unknown values are null."""

    entity_id: str = Field(examples=["light.lamp"])
    device_id: str | None = Field(examples=["a1b2c3"])
    domain: str | None = Field(examples=["light"])
    platform: str | None = Field(examples=["mqtt"])
    unique_id: str | None = Field(examples=["0x00158d0001-light"])
    area_id: str | None = Field(examples=[None], description="Its own, not its device's")
    disabled: bool = Field(examples=[False])
    name: str | None = Field(examples=[None])
    name_by_user: str | None = Field(examples=[None])
    original_name: str | None = Field(examples=["Lamp"])
    friendly_name: str | None = Field(examples=["Lamp"], description="The best known name")
    supported_features: int | None = Field(examples=[None])
    capabilities: object = Field(None, examples=[None])
    icon: str | None = Field(examples=[None])
    device_class: str | None = Field(examples=[None])
    unit_of_measurement: str | None = Field(examples=[None])
    config_entry_id: str | None = Field(examples=["01M84RPCSVWDYAWCQM5BKFNFEH"])
    created_at: datetime | None
    updated_at: datetime | None
    labels: list[str] | None = Field(examples=[["night"]])
    source: str | None = Field(examples=[None])
    removed_at: datetime | None = Field(
        examples=[None], description="When it was removed from Home Assistant"
    )


class EntityPage(BaseModel):
    """A page of entities, by id."""

    entities: list[Entity]
    count: int = Field(examples=[1], description="Number on this page")
    limit: int = Field(examples=[100])
    next_cursor: NextCursor


class Area(BaseModel):
    """An area of this Home Assistant."""

    area_id: str = Field(examples=["hall"])
    name: str | None = Field(examples=["Hall"])
    floor_id: str | None = Field(examples=["ground"])
    floor_name: str | None = Field(examples=["Ground"])
    labels: list[str] = Field(examples=[[]])


class AreaList(BaseModel):
    """All areas."""

    areas: list[Area]
    count: int = Field(examples=[1])


class Label(BaseModel):
    """A label of this Home Assistant."""

    label_id: str = Field(examples=["night"])
    name: str | None = Field(examples=["Night"])


class LabelList(BaseModel):
    """All labels."""

    labels: list[Label]
    count: int = Field(examples=[1])


class Upserted(BaseModel):
    """The number of rows stored."""

    success: Literal[True] = True
    upserted: int = Field(examples=[31], description="Rows that had an id")
    timestamp: datetime


class EntityName(BaseModel):
    """An id of an entity, and when it had it."""

    entity_id: str = Field(examples=["sensor.kitchen"])
    since: datetime | None = Field(
        examples=["2026-11-23T10:02:11.123456Z"], description="Null for its first known id"
    )
    since_source: TimeSource | None = Field(
        examples=["event"],
        description="`event`: the time of Home Assistant's event; `registry`: of its last change of"
        " the row, while nothing was captured; `discovered`: when this service found the change",
    )
    until: datetime | None = Field(
        examples=[None], description="When it was renamed or removed; null for its current id"
    )
    first_point: datetime | None = Field(
        examples=["2026-11-23T10:02:11.125Z"],
        description="The first point under this id; null unless the rename was captured live",
    )


class IdentityChangeDocument(BaseModel):
    """A change of an entity's id, device or area, or of its device."""

    model_config = ConfigDict(title="IdentityChange", from_attributes=True)

    what: IdentityKind = Field(
        examples=["entity_id"],
        description="Which id changed; `split`: a device was replaced, by this one among others",
    )
    entity_id: str | None = Field(
        examples=["sensor.kitchen"], description="After the change; null for a device"
    )
    device_id: str | None = Field(
        examples=[None], description="After the change; null for an entity"
    )
    old: str | None = Field(examples=["sensor.thermometer"])
    new: str | None = Field(examples=["sensor.kitchen"])
    at: datetime = Field(examples=["2026-11-23T10:02:11.123456Z"])
    at_source: TimeSource = Field(examples=["event"], description="As `since_source` of a name")
    first_point: datetime | None = Field(examples=["2026-11-23T10:02:11.125Z"])


class Identity(BaseModel):
    """The ids that one entity has had, and what else of its identity changed."""

    entity_id: str = Field(examples=["sensor.kitchen"], description="Its newest id")
    names: list[EntityName] = Field(description="Oldest first")
    changes: list[IdentityChangeDocument] = Field(
        description="Oldest first, including splits and areas of its devices"
    )


class DiscoveryFound(BaseModel):
    """The result of a refresh."""

    success: Literal[True] = True
    devices: int = Field(examples=[31])
    entities: int = Field(examples=[108])
    areas: int = Field(examples=[8])
    duration_seconds: float = Field(examples=[0.214])
    timestamp: datetime


class FilterRule(BaseModel):
    """A pattern or exception, and how many changes it matched."""

    rule: dict[str, str | list[str]] = Field(examples=[{"domain": "sun"}])
    matched: int = Field(examples=[12], description="Since these rules were read")


class FilterStats(BaseModel):
    """What the entity filter passed and excluded; without a filter everything passes."""

    active: bool = Field(default=False, examples=[True])
    source: str | None = Field(
        default=None,
        examples=["ENTITY_FILTER_CONFIG"],
        description="Where the rules are",
    )
    mode: Literal["exclude", "include"] | None = Field(default=None, examples=["exclude"])
    passed: int = Field(default=0, examples=[4711], description="Since the start")
    filtered: int = Field(default=0, examples=[12], description="Since the start")
    patterns: list[FilterRule] = Field(default_factory=list)
    exceptions: list[FilterRule] = Field(default_factory=list)
    loaded_at: datetime | None = Field(default=None, description="When these rules were read")
    problem: str | None = Field(
        default=None, examples=[None], description="Why the current file cannot be used"
    )


class DeadLetterDocument(BaseModel):
    """A point that a database rejected permanently."""

    model_config = ConfigDict(title="DeadLetter")

    id: int = Field(examples=[17])
    sink: str = Field(examples=["influxdb"])
    sequence: int = Field(examples=[4711], description="Its number in the journal")
    line: str = Field(
        examples=['home_assistant_events,entity_id=sensor.a value="x" 1795435200000000000']
    )
    reason: str = Field(examples=["422 field type conflict"], description="The database's words")
    refused_at: datetime = Field(examples=["2026-11-23T10:00:00Z"])


class DeadLetterPage(BaseModel):
    """A page of dead letters, newest first."""

    dead_letters: list[DeadLetterDocument]
    count: int = Field(examples=[1], description="Total number")
    next_cursor: int | None = Field(
        examples=[None], description="Cursor of the next page; null after the last"
    )


class Retried(BaseModel):
    """How many points were put back into the journal."""

    retried: int = Field(examples=[1])


class Deleted(BaseModel):
    """How many dead letters were deleted."""

    deleted: int = Field(examples=[1])


class GapDocument(BaseModel):
    """A span of Home Assistant's time in which nothing was captured."""

    model_config = ConfigDict(title="Gap")

    id: int = Field(examples=[3])
    start: datetime = Field(examples=["2026-11-23T10:02:11.123456Z"])
    end: datetime = Field(examples=["2026-11-23T10:07:40Z"])
    reason: GapReason = Field(examples=["restart"], description="Why nothing was captured")
    state: GapState = Field(
        examples=["filled"],
        description="`nothing_recorded`: read, but the recorder holds nothing of it",
    )
    filled_through: datetime | None = Field(
        examples=["2026-11-23T10:07:40Z"], description="Filled up to this time"
    )
    changes: int = Field(examples=[1234], description="Changes read back from the recorder")
    entities: int = Field(examples=[87], description="Entities with recorded history in it")
    unrecorded: list[str] = Field(
        examples=[["sensor.secret"]],
        description="Entities that changed in it without recorded history; only their newest"
        " state is written",
    )
    entity_ids: list[str] = Field(examples=[[]], description="Only these are filled; empty for all")
    sources: list[str] = Field(
        examples=[["states", "captured", "catalog", "entity_registry", "statistics", "logbook"]],
        description="Where the requested entities were found",
    )
    limitations: list[str] = Field(examples=[[]], description="What remains unknown, in sentences")
    detail: str | None = Field(examples=[None], description="Why it cannot be filled")
    found_at: datetime = Field(examples=["2026-11-23T10:07:40Z"])
    closed_at: datetime | None = Field(examples=["2026-11-23T10:07:55Z"])


class GapList(BaseModel):
    """All known gaps, newest first."""

    gaps: list[GapDocument]
    count: int = Field(examples=[1])


class GapsAcknowledged(BaseModel):
    """How many unfillable gaps were acknowledged."""

    acknowledged: int = Field(examples=[1])


class BackfillRequest(BaseModel):
    """History to read back."""

    since: AwareDatetime = Field(examples=["2026-11-01T00:00:00Z"])
    until: AwareDatetime | None = Field(
        None, examples=["2026-11-20T00:00:00Z"], description="Default: now"
    )
    entity_ids: list[Annotated[str, Field(max_length=255)]] = Field(
        default_factory=list,
        max_length=1_000,
        examples=[["sensor.kitchen_temperature"]],
        description="Only these; empty for all",
    )


class BackfillStarted(BaseModel):
    """The gaps that will be filled; none when everything was captured."""

    gaps: list[GapDocument]
