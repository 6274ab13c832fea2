"""The pipeline: what waits for the catalog, what goes on, and what a bug costs."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from app.backfill.coverage import Coverage
from app.backfill.last_states import LastStates
from app.discovery.catalog import Catalog
from app.discovery.registries import AreaRow, EntityRow, Registries
from app.fanout.hub import Hub, Selection
from app.health_report.sensors import is_health_sensor
from app.homeassistant.messages import Event, EventData, EventState
from app.journal.batcher import Batcher
from app.model import Change, Lines, nanoseconds
from app.normalize.changes import Normalizer
from app.normalize.filter import EntityFilter
from app.normalize.transforms import Transforms
from app.pipeline import Pipeline
from app.runtime.metrics import Telemetry
from app.schema.homeiq import HomeiqEncoder
from tests.fakes.discovery import Answers, discovery_of
from tests.fakes.points import new_telemetry
from tests.fakes.snapshots import change

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
REGISTRIES = Registries(
    areas=(AreaRow(area_id="kitchen", name="Kitchen"),),
    entities=(EntityRow(entity_id="sensor.kitchen", area_id="kitchen", platform="demo"),),
)
LISTED = Answers(
    {
        "area": [{"area_id": "kitchen", "name": "Kitchen"}],
        "entity": [{"entity_id": "sensor.kitchen", "area_id": "kitchen", "platform": "demo"}],
    }
)
STATUS = "sensor.websocket_ingestion_status"
NEVER = Answers({"device": asyncio.Event()})


class ListJournal:
    """A journal that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.uncommitted_points = 0
        self.uncommitted_since: float | None = None

    async def append(
        self, lines: Lines, *, received_at: float, counted: Callable[[], None]
    ) -> None:
        """Keep the lines."""
        self.lines += lines.split()
        counted()

    async def append_uncommitted(self, lines: Lines, *, received_at: float) -> None:
        """Do nothing: this journal never fails."""

    async def commit(self) -> None:
        """Have nothing to commit."""


class FragileEncoder(HomeiqEncoder):
    """An encoder with a bug: it cannot bear one entity."""

    def encode(self, changes: Sequence[Change]) -> Lines:
        """Encode, or break."""
        if any(change.entity_id == "sensor.unbearable" for change in changes):
            raise ZeroDivisionError("a bug of ours")
        return super().encode(changes)


class Rig:
    """A pipeline between fakes."""

    def __init__(
        self,
        answers: Answers,
        *,
        hold_s: float = 10.0,
        hold_events: int = 100,
        encoder: type[HomeiqEncoder] = HomeiqEncoder,
        transforms: Transforms | None = None,
        entity_filter: EntityFilter | None = None,
        filter_fanout: bool = False,
        is_left_out: Callable[[str], bool] | None = None,
    ) -> None:
        self.telemetry: Telemetry = new_telemetry()
        self.journal = ListJournal()
        self.catalog = Catalog()
        self.hub = Hub()
        self.coverage, self.last_states = Coverage(), LastStates()
        self.batcher = Batcher(self.journal, telemetry=self.telemetry, commit_interval_s=0)
        self.discovery = discovery_of(answers, catalog=self.catalog)
        self.pipeline = Pipeline(
            discovery=self.discovery,
            normalizer=Normalizer(self.catalog.placements),
            encoder=encoder("events", instance=None, attribute_fields=()),
            batcher=self.batcher,
            coverage=self.coverage,
            last_states=self.last_states,
            hub=self.hub,
            telemetry=self.telemetry,
            transforms=transforms,
            entity_filter=entity_filter,
            filter_fanout=filter_fanout,
            is_left_out=is_left_out,
            hold_s=hold_s,
            hold_events=hold_events,
        )

    async def journaled(self) -> list[bytes]:
        """End the batcher and return the lines that reached the journal."""
        self.batcher.close()
        await self.batcher.run()
        return self.journal.lines


def event(entity_id: str = "sensor.kitchen", *, second: int = 0) -> Event:
    """Return a state change."""
    at = NOON + timedelta(seconds=second)
    state = EventState("1", last_changed=at, last_updated=at)
    return Event("state_changed", EventData(entity_id=entity_id, new_state=state), time_fired=at)


async def test_events_wait_for_the_registries_on_the_first_start() -> None:
    """Tags are identity in InfluxDB: without the area a second series would begin."""
    rig = Rig(LISTED)
    discovery = asyncio.create_task(rig.discovery.run(rig.pipeline.placed))
    rig.pipeline.connected(was_absent=False)

    rig.pipeline.changed([event()])
    assert rig.pipeline.waiting_events == 1
    async with asyncio.timeout(5):
        while rig.pipeline.waiting_events:
            await asyncio.sleep(0)
    rig.pipeline.changed([event(second=1)])

    discovery.cancel()
    lines = await rig.journaled()
    assert [b"area_id=kitchen" in line for line in lines] == [True, True]
    assert rig.telemetry.unplaced == 0


async def test_events_wait_for_the_registries_for_a_limited_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Then they go on without areas, counted."""
    rig = Rig(NEVER, hold_s=0.01)
    rig.pipeline.connected(was_absent=False)
    rig.pipeline.connected(was_absent=False)
    rig.pipeline.changed([event(), event(second=1)])

    async with asyncio.timeout(5):
        while rig.pipeline.waiting_events:
            await asyncio.sleep(0.001)

    assert len(await rig.journaled()) == 2
    assert rig.telemetry.unplaced == 2
    assert "without areas and devices" in caplog.text


async def test_a_limited_number_of_events_waits_for_the_registries() -> None:
    """Memory is bounded."""
    rig = Rig(NEVER, hold_events=3)

    rig.pipeline.changed([event(second=second) for second in range(4)])

    assert rig.pipeline.waiting_events == 0
    assert len(await rig.journaled()) == 4


async def test_events_that_still_wait_at_a_stop_are_processed() -> None:
    """Stopping loses nothing that was received."""
    rig = Rig(NEVER)
    rig.pipeline.connected(was_absent=False)
    rig.pipeline.changed([event()])

    rig.pipeline.finish()

    assert len(await rig.journaled()) == 1


async def test_with_a_catalog_of_the_last_run_no_event_waits() -> None:
    """Tags are then those of before, and no event needs to be held back."""
    rig = Rig(NEVER)
    rig.catalog.restore(REGISTRIES, last_refresh=NOON)
    rig.pipeline.connected(was_absent=False)

    rig.pipeline.changed([event()])

    assert rig.pipeline.waiting_events == 0
    assert b"area_id=kitchen" in (await rig.journaled())[0]


async def test_a_malformed_event_is_counted_and_named_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Other events are processed, and the log does not fill up."""
    rig = Rig(LISTED)
    rig.pipeline.finish()
    broken = Event("state_changed", EventData())

    rig.pipeline.changed([broken, event(), broken])

    assert len(await rig.journaled()) == 1
    assert rig.telemetry.malformed.total() == 2
    assert len([record for record in caplog.records if "Malformed" in record.message]) == 1


async def test_a_bug_in_the_pipeline_costs_one_event(caplog: pytest.LogCaptureFixture) -> None:
    """The others of its frame go on; the log has the traceback once a minute."""
    rig = Rig(LISTED, encoder=FragileEncoder)
    rig.pipeline.finish()

    unbearable = event("sensor.unbearable")
    rig.pipeline.changed([event(), unbearable, event(second=1), unbearable])

    assert len(await rig.journaled()) == 2
    assert rig.telemetry.malformed == {"bug": 2}
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.exc_info is not None for record in errors] == [True]


NO_LIGHTS = '{"patterns":[{"domain":"light"}]}'


@pytest.mark.parametrize(("filter_fanout", "shown"), [(False, 1), (True, 2)])
async def test_events_excluded_by_the_filter_are_counted(
    filter_fanout: bool,  # noqa: FBT001 - a table
    shown: int,
) -> None:
    """It is not journaled; subscribers get it only with FILTER_FANOUT."""
    rig = Rig(
        LISTED,
        entity_filter=EntityFilter.of_text(NO_LIGHTS),
        filter_fanout=filter_fanout,
    )
    rig.pipeline.finish()
    with rig.hub.subscribed(Selection()) as subscriber:
        rig.pipeline.changed([event("light.a"), event("sensor.a")])
        messages = subscriber.drain(10)

    assert len(await rig.journaled()) == 1
    assert rig.telemetry.filtered == 1
    assert len(messages) == shown


async def test_a_frame_of_filtered_events_reaches_no_subscriber_and_no_journal() -> None:
    """No empty batch is journaled."""
    rig = Rig(LISTED, entity_filter=EntityFilter.of_text(NO_LIGHTS))
    rig.pipeline.finish()

    rig.pipeline.changed([event("light.a")])

    assert await rig.journaled() == []
    assert rig.telemetry.filtered == 1


async def test_our_own_health_sensors_are_not_captured() -> None:
    """Writing their changes would change them again; they count as filtered."""
    rig = Rig(
        LISTED,
        entity_filter=EntityFilter.of_text(NO_LIGHTS),
        filter_fanout=True,
        is_left_out=is_health_sensor,
    )
    rig.pipeline.finish()
    own = event("sensor.websocket_ingestion_last_event_written")
    with rig.hub.subscribed(Selection()) as subscriber:
        rig.pipeline.changed([own, event("sensor.a")])
        rig.pipeline.changed([own])
        messages = subscriber.drain(10)

    assert len(await rig.journaled()) == 1
    assert rig.telemetry.filtered == 2
    assert len(messages) == 1


def test_our_own_health_sensors_are_not_read_back_after_a_gap() -> None:
    """Home Assistant's recorder has their history."""
    rig = Rig(LISTED, is_left_out=is_health_sensor)
    others = change("sensor.kitchen")

    assert rig.pipeline.selected([change(STATUS), others]) == [others]


async def test_transforms_run_before_the_filter() -> None:
    """What they leave out counts as filtered; what they fail on passes unchanged."""

    def transform(change: Change) -> Change | None:
        if change.entity_id == "sensor.out":
            return None
        if change.entity_id == "sensor.bad":
            raise ZeroDivisionError
        return msgspec.structs.replace(change, domain="light")

    telemetry = new_telemetry()
    rig = Rig(
        LISTED,
        transforms=Transforms([("my:f", transform)], telemetry=telemetry),
        entity_filter=EntityFilter.of_text(NO_LIGHTS),
    )
    rig.pipeline.finish()

    rig.pipeline.changed([event(f"sensor.{name}") for name in ("a", "bad", "out")])

    (line,) = await rig.journaled()
    assert b"entity_id=sensor.bad" in line
    assert rig.telemetry.filtered == 2
    assert telemetry.transform_failures == {"my:f": 1}


async def test_a_registry_event_is_logged_only_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG only: a home that is being set up has thousands."""
    rig = Rig(LISTED)

    with caplog.at_level(logging.DEBUG):
        rig.pipeline.registry_updated(Event("area_registry_updated", EventData(action="update")))

    assert "Registry changed: area_registry_updated" in caplog.text


async def test_what_the_filter_excludes_is_the_last_state_of_its_entity() -> None:
    """Without it, the first change after the exclusion ends would follow an outdated state."""
    rig = Rig(LISTED, entity_filter=EntityFilter.of_text('{"patterns": [{"domain": "sensor"}]}'))
    rig.pipeline.finish()

    rig.pipeline.changed([event(second=7)])

    last = rig.last_states.get("sensor.kitchen")
    assert last is not None
    assert last.time_ns == nanoseconds(NOON + timedelta(seconds=7))
    assert await rig.journaled() == []
