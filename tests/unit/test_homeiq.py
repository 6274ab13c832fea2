"""The point schema `homeiq`: its tables, line by line."""

from __future__ import annotations

import json

import msgspec
import pytest

from app.model import NOWHERE, Change, Context, Placement
from app.schema.homeiq import HomeiqEncoder, category_of, value_of
from app.schema.line_protocol import parse_line
from tests.fakes.reference_encoder import ONE, ZERO

TIME_NS = 1_795_435_200_123_456_000

BARE = Change(
    entity_id="sensor.kitchen",
    domain="sensor",
    time_ns=TIME_NS,
    state="21.5",
    previous_state=None,
    duration_s=None,
    attributes=b"{}",
    device_class=None,
    unit_of_measurement=None,
    friendly_name=None,
    context=None,
    placement=NOWHERE,
)
FULL = Change(
    entity_id="sensor.kitchen",
    domain="sensor",
    time_ns=TIME_NS,
    state="21.5",
    previous_state="21.4",
    duration_s=60.25,
    attributes=b'{"state_class":"measurement"}',
    device_class="temperature",
    unit_of_measurement="\N{DEGREE SIGN}C",
    friendly_name="Kitchen",
    context=Context(id="01M84", parent_id="01M83", user_id="6c06"),
    placement=Placement(
        device_id="d1",
        area_id="kitchen",
        area_name="Kitchen",
        integration="zha",
        name="Thermometer",
        manufacturer="Ikea",
        model="T 1",
        sw_version="1.2",
        floor_id="ground",
        labels=("energy",),
    ),
    backfilled=True,
)


def _encoder(
    *attribute_fields: str,
    instance: str | None = None,
    max_cached_bytes: int = 100_000,
    max_cached_states: int = 100,
) -> HomeiqEncoder:
    return HomeiqEncoder(
        "home_assistant_events",
        instance=instance,
        attribute_fields=attribute_fields,
        max_cached_bytes=max_cached_bytes,
        max_cached_states=max_cached_states,
    )


def _fields_of(change: Change, *attribute_fields: str) -> dict[str, object]:
    (line,) = _encoder(*attribute_fields).encode([change]).split()
    return dict(parse_line(line).fields)


def _changed(change: Change, **values: object) -> Change:
    return msgspec.structs.replace(change, **values)


def test_a_line_of_a_bare_change_has_only_known_tags_and_fields() -> None:
    """A tag or field without a value is not there."""
    lines = _encoder().encode([BARE])

    assert lines.data.decode() == (
        "home_assistant_events,domain=sensor,entity_id=sensor.kitchen,"
        "event_category=monitoring,event_type=state_changed "
        'available=true,state_value="21.5",value=21.5,attributes="{}" 1795435200123456000\n'
    )


def test_a_line_of_a_full_change_has_every_tag_and_field() -> None:
    """Every tag, sorted, and every field of the tables."""
    lines = _encoder(instance="home 1").encode([FULL])

    assert lines.data.decode() == (
        "home_assistant_events,area_id=kitchen,device_class=temperature,device_id=d1,"
        "domain=sensor,entity_id=sensor.kitchen,event_category=climate,"
        "event_type=state_changed,instance=home\\ 1,integration=zha,unit_of_measurement=°C "
        'friendly_name="Kitchen",manufacturer="Ikea",model="T 1",sw_version="1.2",'
        'available=true,state_value="21.5",value=21.5,previous_state="21.4",'
        'attributes="{\\"state_class\\":\\"measurement\\"}",duration_in_state_seconds=60.25,'
        'context_id="01M84",context_parent_id="01M83",context_user_id="6c06",backfilled=true'
        " 1795435200123456000\n"
    )


def test_the_line_of_a_removed_entity_has_no_state() -> None:
    """The point has `removed`, but neither a state nor `available`."""
    fields = _fields_of(_changed(FULL, state=None, context=None, backfilled=False))

    assert fields == {
        "friendly_name": "Kitchen",
        "manufacturer": "Ikea",
        "model": "T 1",
        "sw_version": "1.2",
        "removed": True,
        "previous_state": "21.4",
        "attributes": '{"state_class":"measurement"}',
        "duration_in_state_seconds": 60.25,
    }


def test_there_is_one_line_for_each_change_in_order() -> None:
    """Points are counted by changes, so no change may have none or two."""
    changes = [_changed(BARE, state=str(n), entity_id=f"sensor.s{n % 3}") for n in range(10)]

    lines = _encoder().encode(changes)

    assert lines.points == 10
    assert [parse_line(line).fields["value"] for line in lines.split()] == list(range(10))


def test_no_changes_give_no_lines() -> None:
    """An empty batch is an empty body."""
    assert _encoder().encode([]).split() == []


@pytest.mark.parametrize(
    ("state", "value"),
    [
        ("21.5", 21.5),
        ("-0", 0.0),
        ("1e3", 1000.0),
        ("1E-2", 0.01),
        ("12345678901234567890", 12345678901234567890.0),
        ("1e400", None),
        ("-1e400", None),
        ("007", None),
        ("+1", None),
        (".5", None),
        ("5.", None),
        ("1_000", None),
        (" 1", None),
        ("1\n", None),
        ("0x10", None),
        ("nan", None),
        ("inf", None),
        ("Infinity", None),
        ("\N{ARABIC-INDIC DIGIT ONE}", None),
        ("", None),
        ("unavailable", None),
        ("unknown", None),
        ("ON", None),
        ("idle", None),
        ("opening", None),
        *((word, 1.0) for word in ONE),
        *((word, 0.0) for word in ZERO),
    ],
)
def test_only_numbers_and_binary_states_have_a_value(state: str, value: float | None) -> None:
    """What JSON calls a number and is finite, or one of two opposite words; else no value."""
    assert value_of(state) == value
    assert _fields_of(_changed(BARE, state=state)).get("value") == value


def test_values_are_always_floats() -> None:
    """A field that was an integer once could never be a float again."""
    for state in ("1", "on", "-0", "1e3"):
        assert isinstance(_fields_of(_changed(BARE, state=state))["value"], float)


@pytest.mark.parametrize(
    ("state", "available"),
    [("on", True), ("", True), ("unavailable", False), ("unknown", False), ("Unknown", True)],
)
def test_unavailable_and_unknown_set_available_to_false(state: str, *, available: bool) -> None:
    """Home Assistant has exactly two words for a state it does not know."""
    fields = _fields_of(_changed(BARE, state=state))

    assert fields["available"] is available
    assert fields["state_value"] == state


@pytest.mark.parametrize(
    ("domain", "device_class", "category"),
    [
        ("alarm_control_panel", None, "security"),
        ("lock", "temperature", "security"),
        ("binary_sensor", "door", "security"),
        ("binary_sensor", "window", "security"),
        ("binary_sensor", "motion", "security"),
        ("binary_sensor", "lock", "security"),
        ("binary_sensor", "smoke", "security"),
        ("sensor", "gas", "security"),
        ("climate", None, "climate"),
        ("sensor", "temperature", "climate"),
        ("sensor", "humidity", "climate"),
        ("light", "power", "lighting"),
        ("switch", None, "appliance"),
        ("fan", None, "appliance"),
        ("vacuum", None, "appliance"),
        ("sensor", "power", "appliance"),
        ("number", "energy", "appliance"),
        ("sensor", None, "monitoring"),
        ("binary_sensor", "connectivity", "monitoring"),
        ("sun", None, "general"),
        ("cover", "garage", "general"),
    ],
)
def test_the_first_matching_category_is_the_event_category(
    domain: str, device_class: str | None, category: str
) -> None:
    """Categories are tried in the order of the table."""
    assert category_of(domain, device_class) == category


@pytest.mark.parametrize(
    ("value", "fields"),
    [
        (1, {"attr_x": 1.0}),
        (-2.5, {"attr_x": -2.5}),
        (True, {"attr_x": 1.0}),
        (False, {"attr_x": 0.0}),
        ("1", {"attr_x_str": "1"}),
        ('a"b', {"attr_x_str": 'a"b'}),
        (None, {}),
        ([1, "a"], {"attr_x_str": '[1,"a"]'}),
        ({"a": None}, {"attr_x_str": '{"a":null}'}),
        (10**400, {"attr_x_str": str(10**400)}),
    ],
)
def test_an_attribute_field_is_a_float_or_a_text(value: object, fields: dict[str, object]) -> None:
    """The type is in the name, so that one attribute of two types makes no conflict."""
    attributes = json.dumps({"x": value, "y": 1}, separators=(",", ":")).encode()

    found = _fields_of(_changed(BARE, attributes=attributes), "x")

    assert {key: found[key] for key in found if key.startswith("attr_")} == fields


def test_a_number_named_like_a_text_is_a_text() -> None:
    """Only texts end in _str: the number `x_str` must not take the name of the text `x`."""
    attributes = b'{"x":"text","x_str":5,"y_str":true}'

    found = _fields_of(_changed(BARE, attributes=attributes), "*")

    assert {key: found[key] for key in found if key.startswith("attr_")} == {
        "attr_x_str": "text",
        "attr_x_str_str": "5",
        "attr_y_str_str": "true",
    }


def test_globs_choose_the_attribute_fields() -> None:
    """A name that any of the globs matches, in its case, has a field; the order is its own."""
    attributes = b'{"brightness":1,"Brightness":2,"color_temp":3,"rgb_color":[4]}'

    found = _fields_of(_changed(BARE, attributes=attributes), "bright*", "*_color")

    assert [key for key in found if key.startswith("attr_")] == [
        "attr_brightness",
        "attr_rgb_color_str",
    ]


def test_two_attributes_never_share_a_field() -> None:
    """Names that differ only in what cannot be written would make a field twice in one line."""
    attributes = rb'{"q\"":1,"q' + b"'" + rb'":2}'

    assert _fields_of(_changed(BARE, attributes=attributes), "q*")["attr_q'"] == 2.0


@pytest.mark.parametrize(
    "news",
    [
        {"placement": Placement(area_id="hall")},
        {"domain": "light"},
        {"device_class": "humidity"},
        {"unit_of_measurement": "%"},
        {"friendly_name": "Hall"},
        {"event_type": "other"},
        {"attributes": b'{"a":1}'},
        {"context": Context(id='odd "id"')},
        {"context": Context(id="x" * 70_000)},
    ],
)
def test_a_changed_tag_applies_to_the_next_line(news: dict[str, object]) -> None:
    """What an entity repeats is remembered, but only while it does."""
    remembering = _encoder()
    remembering.encode([FULL, FULL])

    told = remembering.encode([_changed(FULL, **news), FULL])

    assert (
        told.data
        == _encoder().encode([_changed(FULL, **news)]).data + _encoder().encode([FULL]).data
    )


def test_the_cache_of_series_is_bounded() -> None:
    """The cache is bounded, however many entities there are."""
    forgetful = _encoder(max_cached_bytes=10_000)

    for number in range(1_000):
        change = _changed(FULL, entity_id=f"sensor.s{number}")
        assert forgetful.encode([change]).data == _encoder().encode([change]).data

    assert len(forgetful._series) < 50


def test_a_series_that_changes_counts_once_in_the_cache() -> None:
    """An entity that moves to and fro does not use up the memory of the others."""
    wandering = _encoder()

    for area_id in ("hall", "kitchen") * 10:
        wandering.encode([_changed(FULL, placement=Placement(area_id=area_id))])

    (series,) = wandering._series.values()
    assert wandering._cached_bytes == len(series.head) + len(series.attributes_fields)


def test_the_cache_of_states_is_bounded() -> None:
    """Neither many states nor a long one fill the memory, and each is encoded right."""
    forgetful = _encoder(max_cached_states=10)

    for number in range(100):
        assert _fields_of(_changed(BARE, state=str(number)))["value"] == number
        forgetful.encode([_changed(BARE, state=str(number)), _changed(BARE, state="long" * 50)])

    assert 1 <= len(forgetful._states) <= 10
    assert "long" * 50 not in forgetful._states
