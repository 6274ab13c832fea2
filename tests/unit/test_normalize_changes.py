"""Events become changes by the rules for time, identity, duration and last known values."""

from __future__ import annotations

import weakref
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.homeassistant.messages import Event, EventData, EventState
from app.model import NOWHERE, Change, Context, LastNames, Placement
from app.normalize.changes import MalformedEvent, Normalizer

NOON = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)
NOON_NS = 1_795_435_200_123_456_000
_ALMOST_A_DAY = timedelta(hours=23, minutes=59)
POWER = {"device_class": "power", "unit_of_measurement": "W", "friendly_name": "Meter"}


def _state(
    state: str = "on",
    *,
    at: datetime = NOON,
    changed: datetime | None = None,
    attributes: object = None,
) -> EventState:
    raw = attributes if isinstance(attributes, bytes) else msgspec.json.encode(attributes or {})
    return EventState(state, changed or at, at, msgspec.Raw(raw))


def _event(
    new: EventState | None,
    old: EventState | None = None,
    *,
    entity_id: str | None = "sensor.meter",
    at: datetime | None = None,
    context: Context | None = None,
) -> Event:
    return Event("state_changed", EventData(entity_id, old, new), at, context)


def _change(event: Event, normalizer: Normalizer | None = None) -> Change:
    (change,), malformed = (normalizer or Normalizer(dict)).changes([event])
    assert malformed == []
    return change


def test_a_change_has_the_states_and_times_of_its_event() -> None:
    """Everything a point needs is in it."""
    placement = Placement(area_id="kitchen", name="Given")
    old = _state("1.5", at=NOON - timedelta(seconds=2.5), attributes=POWER)
    event = _event(_state("2", attributes=POWER), old, context=Context(id="c1"))

    change = _change(event, Normalizer(lambda: {"sensor.meter": placement}))

    assert change == Change(
        entity_id="sensor.meter",
        domain="sensor",
        time_ns=NOON_NS,
        state="2",
        previous_state="1.5",
        duration_s=2.5,
        attributes=msgspec.json.encode(POWER),
        device_class="power",
        unit_of_measurement="W",
        friendly_name="Meter",
        context=Context(id="c1"),
        placement=placement,
        changed_ns=NOON_NS,
    )
    assert change.placement is placement


@pytest.mark.parametrize(
    ("at", "time_ns"),
    [
        (NOON, NOON_NS),
        (NOON.astimezone(timezone(timedelta(hours=5, minutes=30))), NOON_NS),
        (datetime(2026, 11, 23, 12, 0, 0, 999999, tzinfo=UTC), 1_795_435_200_999_999_000),
        (datetime(1970, 1, 1, tzinfo=UTC), 0),
        (datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), -1_000),
        (datetime(2262, 4, 11, 23, 47, 16, 854775, tzinfo=UTC), 9_223_372_036_854_775_000),
        (datetime(1677, 9, 21, 0, 12, 43, 145225, tzinfo=UTC), -9_223_372_036_854_775_000),
    ],
)
def test_the_time_of_a_change_is_last_updated_to_the_microsecond(
    at: datetime, time_ns: int
) -> None:
    """Whole numbers all the way, whatever the offset: floats would lose a third of them."""
    change = _change(_event(_state(at=at, changed=NOON), at=NOON + timedelta(seconds=1)))

    assert change.time_ns == time_ns


def test_every_microsecond_gives_a_different_time() -> None:
    """No two adjacent times become the same."""
    events = [_event(_state(at=NOON + timedelta(microseconds=n))) for n in range(1000)]

    changes, _ = Normalizer(dict).changes(events)

    assert [change.time_ns for change in changes] == [NOON_NS + 1000 * n for n in range(1000)]


def test_a_removal_happens_when_its_event_fired() -> None:
    """It has no new state: its time is the event's, and what it was comes from the old state."""
    old = _state("5", at=NOON - timedelta(minutes=1), attributes=POWER)

    change = _change(_event(None, old, at=NOON, context=Context(id="cause")))

    assert change == Change(
        entity_id="sensor.meter",
        domain="sensor",
        time_ns=NOON_NS,
        state=None,
        previous_state="5",
        duration_s=60.0,
        attributes=b"{}",
        device_class="power",
        unit_of_measurement="W",
        friendly_name="Meter",
        context=Context(id="cause"),
        placement=NOWHERE,
        changed_ns=NOON_NS,
    )
    assert change.removed


def test_a_state_without_a_predecessor_has_no_duration() -> None:
    """A new or restored entity had no state before."""
    change = _change(_event(_state()))

    assert change.previous_state is None
    assert change.duration_s is None


def test_an_attribute_only_change_has_a_duration_of_zero() -> None:
    """The state did not end, so no earlier state lasted for any time."""
    changed = NOON - timedelta(hours=1)
    old = _state(at=NOON - timedelta(minutes=1), changed=changed, attributes={"n": 1})

    assert _change(_event(_state(changed=changed, attributes={"n": 2}), old)).duration_s == 0.0


def test_the_previous_state_lasted_since_its_last_change_not_its_last_update() -> None:
    """An attribute update in between does not begin the state anew."""
    old = _state("1", at=NOON - timedelta(minutes=1), changed=NOON - timedelta(hours=1))

    assert _change(_event(_state("2"), old)).duration_s == 3600.0


def test_a_duration_is_never_negative() -> None:
    """A clock that was set back makes no time run backwards."""
    old = _state(at=NOON + timedelta(seconds=10))

    assert _change(_event(_state(), old)).duration_s == 0.0


@pytest.mark.parametrize("year", [1, 1600, 2300, 9999])
def test_a_previous_state_of_an_impossible_time_has_no_duration(year: int) -> None:
    """The event is written all the same: what is wrong in it is not its own time."""
    change = _change(_event(_state(), _state("before", at=datetime(year, 1, 1, tzinfo=UTC))))

    assert (change.previous_state, change.duration_s) == ("before", None)


def test_a_state_longer_than_a_field_can_hold_is_cut() -> None:
    """Caches, the journal's last states and subscribers hold no more of it than InfluxDB."""
    change = _change(_event(_state("x" * 1_000_000), _state("y" * 1_000_000)))

    assert change.state == "x" * 65_536
    assert change.previous_state == "y" * 65_536


def test_an_entity_id_of_absurd_length_is_malformed() -> None:
    """It would be a key of every cache; its excerpt is cut before it is looked at."""
    (problem,) = Normalizer(dict).changes([_event(_state(), entity_id="sensor." + "x" * 10**6)])[1]

    assert problem.kind == "entity_id"
    assert len(problem.excerpt) <= 200


def test_class_unit_and_name_come_from_the_new_state_first() -> None:
    """The newest state of Home Assistant wins."""
    now = {"device_class": "energy", "unit_of_measurement": "Wh", "friendly_name": "New"}

    change = _change(_event(_state(attributes=now), _state(attributes=POWER)))

    assert change.device_class == "energy"
    assert change.unit_of_measurement == "Wh"
    assert change.friendly_name == "New"


def test_names_that_an_unavailable_state_lacks_come_from_the_old_state() -> None:
    """An entity that becomes unavailable drops its attributes, but stays in its series."""
    change = _change(
        _event(
            _state("unavailable", attributes={"unit_of_measurement": "kW"}),
            _state(attributes=POWER),
        )
    )

    assert change.device_class == "power"
    assert change.unit_of_measurement == "kW"
    assert change.friendly_name == "Meter"
    assert change.attributes == b'{"unit_of_measurement":"kW"}'


def test_names_that_both_states_lack_are_the_last_known_ones() -> None:
    """From unavailable to unknown, and after a restart of Home Assistant, the series stays."""
    normalizer = Normalizer(dict)
    _change(_event(_state(attributes=POWER)), normalizer)

    for event in (
        _event(_state("unavailable"), _state(attributes=POWER)),
        _event(_state("unknown"), _state("unavailable")),
        _event(_state("unknown", attributes={"x": 1}), _state("unknown")),
        _event(_state("unavailable")),
    ):
        change = _change(event, normalizer)
        assert change.device_class == "power"
        assert change.unit_of_measurement == "W"
        assert change.friendly_name == "Meter"


def test_an_old_state_we_never_saw_is_newer_than_what_we_know() -> None:
    """Events may have been missed: the old state is what was true just before."""
    normalizer = Normalizer(dict)
    _change(_event(_state(attributes=POWER)), normalizer)
    _change(_event(_state("unavailable"), _state(attributes=POWER)), normalizer)

    change = _change(
        _event(_state("unavailable"), _state(attributes={"unit_of_measurement": "kW"})), normalizer
    )

    assert change.unit_of_measurement == "kW"
    assert change.device_class == "power"


def test_an_entity_that_becomes_unavailable_with_the_same_attributes_keeps_the_old_names() -> None:
    """The old state may name more than the last state that was received, if events were missed."""
    normalizer = Normalizer(dict)
    _change(_event(_state("on")), normalizer)

    change = _change(_event(_state("unavailable"), _state(attributes=POWER)), normalizer)

    assert change.device_class == "power"


@pytest.mark.parametrize("lost", ["device_class", "unit_of_measurement", "friendly_name"])
def test_an_available_entity_that_loses_its_class_or_unit_has_none_from_then_on(lost: str) -> None:
    """A restart would not know the old one either, and one entity would have two series."""
    normalizer = Normalizer(dict)
    left = {name: value for name, value in POWER.items() if name != lost}
    _change(_event(_state("1", attributes=POWER)), normalizer)

    for event in (
        _event(_state("2", attributes=left), _state("1", attributes=POWER)),
        _event(_state("3", attributes=left), _state("2", attributes=left)),
        _event(_state("unavailable", attributes={}), _state("3", attributes=left)),
        _event(_state("unknown", attributes={}), _state("unavailable")),
        _event(None, _state("unknown"), at=NOON),
    ):
        change = _change(event, normalizer)
        named = {name: getattr(change, name) for name in POWER}
        assert named == {**POWER, lost: None}


def test_an_entity_without_attributes_loses_all_when_it_is_available_again() -> None:
    """The same attributes mean something else in an available state."""
    normalizer = Normalizer(dict)
    _change(_event(_state(attributes=POWER)), normalizer)
    gone = _change(_event(_state("unavailable"), _state(attributes=POWER)), normalizer)

    back = _change(_event(_state("on"), _state("unavailable")), normalizer)

    assert (gone.device_class, back.device_class) == ("power", None)


_named = st.sampled_from([{}, POWER, {"device_class": "power"}, {"unit_of_measurement": "kW"}])
_steps = st.lists(
    st.tuples(st.sampled_from(["on", "21.5", "unavailable", "unknown"]), _named), min_size=1
)


@given(_steps, st.data())
def test_a_restart_changes_no_series(steps: list[tuple[str, object]], data: st.DataObject) -> None:
    """Events show it for an entity that is unavailable at the restart, without attributes."""
    states = [_state(state, attributes=attributes) for state, attributes in steps]
    events = [_event(new, old) for old, new in zip([None, *states], states, strict=False)]
    at = data.draw(st.integers(0, len(events)))
    while at and states[at - 1].state in {"unavailable", "unknown"}:
        at -= 1
    whole, before, after = Normalizer(dict), Normalizer(dict), Normalizer(dict)

    uninterrupted = [_change(event, whole) for event in events]
    restarted = [_change(event, before) for event in events[:at]]
    restarted += [_change(event, after) for event in events[at:]]

    assert restarted == uninterrupted


def test_an_unavailable_entity_stays_in_its_series_across_a_restart() -> None:
    """The names of its last available state are used until it has its own again."""
    before, after = Normalizer(dict), Normalizer(dict)
    _change(_event(_state(attributes=POWER)), before)
    _change(_event(_state("unavailable"), _state(attributes=POWER)), before)
    _change(_event(_state(), entity_id="sensor.bare"), before)

    names = before.last_names()
    after.restore(names)

    assert names == {"sensor.meter": LastNames("power", "W", "Meter")}
    assert after.last_names() == names
    event = _event(_state("unknown"), _state("unavailable"))
    assert _change(event, after) == _change(event, before)
    assert _change(_event(_state("on"), _state("unknown")), after).device_class is None
    assert after.last_names() == {}


def test_what_was_restored_of_a_removed_entity_is_forgotten() -> None:
    """Its removal stays in its series; an entity of that name that comes later is another one."""
    normalizer = Normalizer(dict)
    normalizer.restore({"sensor.meter": LastNames("power", "W", "Meter")})

    removed = _change(_event(None, _state("unavailable"), at=NOON), normalizer)

    assert removed.device_class == "power"
    assert normalizer.last_names() == {}


def test_a_removed_entity_is_forgotten() -> None:
    """An entity that is added later under the same id is another one."""
    normalizer = Normalizer(dict)
    _change(_event(_state(attributes=POWER)), normalizer)
    removed = _change(_event(None, _state("unavailable"), at=NOON), normalizer)

    assert removed.device_class == "power"
    assert _change(_event(_state()), normalizer).device_class is None
    assert normalizer._cached_bytes == len(b"{}")


def test_an_entity_without_a_name_has_that_of_the_registry() -> None:
    """Home Assistant leaves the friendly name out of a raw unavailable state."""
    normalizer = Normalizer(lambda: {"sensor.meter": Placement(name="Registered")})

    assert _change(_event(_state()), normalizer).friendly_name == "Registered"
    assert _change(_event(_state(attributes=POWER)), normalizer).friendly_name == "Meter"


def test_an_entity_that_moves_has_its_new_area_at_once() -> None:
    """Where it is may be remembered only until the registries say something else."""
    kitchen, hall = Placement(area_id="kitchen"), Placement(area_id="hall")
    where = {"sensor.meter": kitchen}
    normalizer = Normalizer(lambda: where)

    assert _change(_event(_state("1")), normalizer).placement is kitchen
    assert _change(_event(_state("2")), normalizer).placement is kitchen
    where = {"sensor.meter": hall}
    assert _change(_event(_state("3")), normalizer).placement is hall
    where = {}
    assert _change(_event(_state("4")), normalizer).placement is NOWHERE


def test_a_silent_entity_keeps_no_former_registries_in_memory() -> None:
    """They are listed every half hour, for years, and some entities speak once."""

    class Listed(dict[str, Placement]):
        """Placements that can be watched."""

    where = Listed({"sensor.meter": Placement(area_id="kitchen")})
    former = weakref.ref(where)
    normalizer = Normalizer(lambda: where)

    _change(_event(_state("1")), normalizer)
    where = Listed()
    _change(_event(_state("1"), entity_id="sensor.other"), normalizer)

    assert former() is None


def test_entities_do_not_share_their_last_known_names() -> None:
    """Each has its own class, unit and name."""
    normalizer = Normalizer(dict)
    _change(_event(_state(attributes=POWER)), normalizer)

    assert _change(_event(_state(), entity_id="sensor.other"), normalizer).device_class is None


def test_repeated_attributes_are_not_decoded_again() -> None:
    """The same bytes give the same object, which the encoder knows again."""
    normalizer = Normalizer(dict)
    first = _change(_event(_state(attributes=POWER)), normalizer)
    between = _change(_event(_state("2", attributes=POWER), _state()), normalizer)
    again = _change(_event(_state("unavailable"), _state(attributes=POWER)), normalizer)

    assert between.attributes is first.attributes
    assert again.attributes == b"{}"


def test_unreadable_attributes_of_an_old_state_do_not_matter() -> None:
    """The new state is what is written."""
    change = _change(_event(_state(), _state("before", attributes=b"{broken")))

    assert change.previous_state == "before"
    assert change.device_class is None


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (_event(_state(), entity_id=None), "entity_id"),
        (_event(_state(), entity_id=""), "entity_id"),
        (_event(_state(), entity_id="sensor"), "entity_id"),
        (_event(_state(), entity_id="sensor."), "entity_id"),
        (_event(_state(), entity_id=".meter"), "entity_id"),
        (_event(None, at=NOON), "state"),
        (_event(None, _state()), "time"),
        (_event(_state(at=datetime(2262, 4, 12, tzinfo=UTC))), "time"),
        (_event(_state(at=datetime.max.replace(tzinfo=timezone(-timedelta(hours=1))))), "time"),
        (_event(_state(at=datetime(1677, 9, 20, tzinfo=UTC))), "time"),
        (_event(_state(at=datetime.min.replace(tzinfo=timezone(timedelta(hours=1))))), "time"),
        (_event(_state(changed=datetime(1, 1, 1, tzinfo=UTC))), "time"),
        (_event(_state(changed=datetime(2300, 1, 1, tzinfo=UTC))), "time"),
        (_event(_state(changed=datetime.max.replace(tzinfo=UTC))), "time"),
        (_event(None, _state(), at=datetime(1, 1, 1, tzinfo=timezone(_ALMOST_A_DAY))), "time"),
        (_event(None, _state(), at=datetime(2300, 1, 1, tzinfo=UTC)), "time"),
        (_event(_state(attributes=b"{broken")), "attributes"),
        (_event(_state(attributes=b'{"x":' + b"[" * 100_000)), "attributes"),
    ],
)
def test_an_unusable_event_is_malformed(event: Event, kind: str) -> None:
    """The record names the error and the entity, and other events are not affected."""
    good = _event(_state())

    changes, malformed = Normalizer(dict).changes([good, event, good])

    assert changes == [_change(good), _change(good)]
    entity_id = event.data.entity_id
    fired = f"state_changed of {entity_id!r}, fired at {event.time_fired}"
    assert malformed == [MalformedEvent(kind, fired)]


def test_the_description_of_an_unusable_event_has_none_of_its_values() -> None:
    """It goes to the log, which must not contain personal data."""
    secret = _state("s3cret", attributes=b'{"code": "s3cret", broken')
    event = _event(secret, secret, entity_id="sensor." + "x" * 300)

    (problem,) = Normalizer(dict).changes([event])[1]

    assert "s3cret" not in problem.excerpt
    assert problem.excerpt.startswith("state_changed of 'sensor.xxx")
    assert len(problem.excerpt) == 200


def test_a_malformed_event_does_not_change_the_last_known_names() -> None:
    """The last known names of its entity stay."""
    normalizer = Normalizer(dict)
    _change(_event(_state(attributes=POWER)), normalizer)
    normalizer.changes([_event(_state(attributes=b"{broken"))])

    assert _change(_event(_state("unavailable")), normalizer).device_class == "power"


def test_the_number_of_cached_entities_is_bounded() -> None:
    """The entity whose attributes changed longest ago is evicted first."""
    normalizer = Normalizer(dict, max_cached_entities=2)
    for entity_id in ("sensor.a", "sensor.b", "sensor.c"):
        _change(_event(_state(attributes=POWER), entity_id=entity_id), normalizer)

    for entity_id, device_class in (("sensor.c", "power"), ("sensor.a", None)):
        gone = _event(_state("unavailable"), entity_id=entity_id)
        assert _change(gone, normalizer).device_class == device_class


def test_new_attributes_make_an_entity_the_last_one_to_be_evicted() -> None:
    """The bound evicts by age of the attributes, not by the order in which entities appeared."""
    normalizer = Normalizer(dict, max_cached_entities=2)
    for entity_id in ("sensor.a", "sensor.b"):
        _change(_event(_state(attributes=POWER), entity_id=entity_id), normalizer)

    _change(_event(_state(attributes={**POWER, "n": 1}), entity_id="sensor.a"), normalizer)
    _change(_event(_state(attributes=POWER), entity_id="sensor.c"), normalizer)

    assert list(normalizer.last_names()) == ["sensor.a", "sensor.c"]


def test_the_memory_of_cached_attributes_is_bounded() -> None:
    """Large attributes are cached for fewer entities; one that exceeds the bound is not cached."""
    normalizer = Normalizer(dict, max_cached_bytes=2_500)
    for number in range(10):
        attributes = {"n": number, "filler": "x" * 1000, **POWER}
        change = _change(
            _event(_state(attributes=attributes), entity_id=f"sensor.s{number}"), normalizer
        )
        assert msgspec.json.decode(change.attributes) == attributes
    assert list(normalizer.last_names()) == ["sensor.s8", "sensor.s9"]

    _change(_event(_state(attributes={"filler": "x" * 3000, **POWER})), normalizer)

    assert normalizer.last_names() == {}


def test_rewritten_attributes_count_twice_towards_the_memory_bound() -> None:
    """The bytes as received and the compact JSON made of them are both in memory."""
    loose = b'{"device_class": "power", "filler": "%b"}' % (b"x" * 1000)
    one_copy, two_copies = (
        Normalizer(dict, max_cached_bytes=bound) for bound in (1_500, 2 * len(loose))
    )

    for normalizer in (one_copy, two_copies):
        _change(_event(_state(attributes=loose)), normalizer)

    assert one_copy.last_names() == {}
    assert list(two_copies.last_names()) == ["sensor.meter"]


def test_the_normalizer_works_without_a_cache() -> None:
    """With no room at all, every event is still read by itself."""
    normalizer = Normalizer(dict, max_cached_entities=0)

    assert _change(_event(_state(attributes=POWER)), normalizer).device_class == "power"
    assert _change(_event(None, _state(attributes=POWER), at=NOON), normalizer).removed
    assert normalizer._cached_bytes == 0
