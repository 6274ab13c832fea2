"""The schema `home_assistant`: the encoder writes what Home Assistant's integration writes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.homeassistant.messages import Event
from app.model import NOWHERE, Change
from app.normalize.changes import Normalizer
from app.schema.home_assistant import HomeAssistantEncoder, Text
from app.schema.home_assistant_options import Options, read_options
from tests.fakes import home_assistant_reference as reference
from tests.fakes.cpu import cpu_s

_DATA = Path(__file__).parents[1] / "recordings/home-assistant-2026.11.0-influxdb"
_CONFIGS: dict[str, dict[str, Any]] = json.loads((_DATA / "configs.json").read_text())
_TIME_NS = 1_796_044_207_123_456_000


@cache
def _cases() -> list[tuple[Change | None, dict[str, dict[str, Any]]]]:
    """Return each event as a change, and what is expected by configuration."""
    normalizer = Normalizer(dict)
    cases = []
    with gzip.open(_DATA / "cases.jsonl.gz") as lines:
        for text in lines:
            case = json.loads(text)
            event = msgspec.json.decode(json.dumps(case["event"]), type=Event)
            changes, _ = normalizer.changes([event])
            expected = {name: group for group in case["expected"] for name in group["configs"]}
            cases.append((changes[0] if changes else None, expected))
    return cases


def _options(block: Mapping[str, Any]) -> Options:
    return read_options({**block}, unread=frozenset())


def _change(state: str | None, attributes: Mapping[str, Any] | None = None, **given: Any) -> Change:
    fields: dict[str, Any] = {
        "entity_id": "sensor.kitchen",
        "time_ns": _TIME_NS,
        "previous_state": None,
        "duration_s": None,
        "device_class": None,
        "unit_of_measurement": None,
        "friendly_name": None,
        "context": None,
        "placement": NOWHERE,
        **given,
    }
    return Change(
        domain=fields["entity_id"].partition(".")[0],
        state=state,
        attributes=msgspec.json.encode(attributes or {}),
        **fields,
    )


def _lines(
    change: Change, block: Mapping[str, Any] | None = None, *, text: Text = "v1"
) -> tuple[str | None, str | None, dict[str, int]]:
    """Return what Home Assistant writes, what is sent, and what was corrected."""
    options = _options(block or {})
    exact = HomeAssistantEncoder(options, text=text, verbatim=True).encode([change])
    sent = HomeAssistantEncoder(options, text=text).encode([change])
    assert not exact.corrections.keys() - {"no_fields"}
    both = [
        None if line is None else line.decode()[:-1] for line in (exact.lines[0], sent.lines[0])
    ]
    return both[0], both[1], {str(name): count for name, count in sent.corrections.items()}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (name, text)
        for name, config in _CONFIGS.items()
        for text in ("v1", "v2")
        if config[f"{text}_setup_error"] is None
    ],
)
def test_every_recorded_event_is_encoded_as_by_home_assistant(name: str, text: Text) -> None:
    """Every configuration, both clients: the bytes are equal."""
    encoder = HomeAssistantEncoder(_options(_CONFIGS[name]["options"]), text=text, verbatim=True)

    differing = []
    for change, groups in _cases():
        expected = groups[name].get(text)
        line = None if change is None else encoder.encode([change]).lines[0]
        if (None if line is None else line.decode()) != (
            None if expected is None else expected + "\n"
        ):
            differing.append((expected, line))

    assert differing == []


@pytest.mark.parametrize("text", ["v1", "v2"])
@pytest.mark.parametrize("name", [name for name in _CONFIGS if "precision" not in name])
def test_what_is_sent_differs_from_home_assistant_only_where_it_is_counted(
    name: str, text: Text
) -> None:
    """A correction changes a line, and nothing else does."""
    options = _options(_CONFIGS[name]["options"]).model_copy(update={"precision": None})
    exact = HomeAssistantEncoder(options, text=text, verbatim=True)
    sent = HomeAssistantEncoder(options, text=text)

    for change, _ in _cases():
        if change is None:
            continue
        encoded = sent.encode([change])
        is_equal = encoded.lines == exact.encode([change]).lines
        assert is_equal == (not encoded.corrections)


@pytest.mark.parametrize("text", ["v1", "v2"])
def test_a_batch_has_the_lines_of_its_changes_one_by_one(text: Text) -> None:
    """Caches, and their bounds, do not change a line."""
    options = _options(_CONFIGS["docs_example"]["options"])
    changes = [change for change, _ in _cases() if change is not None]

    together = HomeAssistantEncoder(options, text=text).encode(changes)
    # Hardly anything stays cached.
    small = HomeAssistantEncoder(options, text=text, max_cached_bytes=1_000, max_cached_states=3)
    one_by_one = [small.encode([change]) for change in changes]

    assert together.lines == [encoded.lines[0] for encoded in one_by_one]
    assert sum(together.corrections.values()) == sum(
        sum(encoded.corrections.values()) for encoded in one_by_one
    )


_TAGGED = {"tags_attributes": ["a", "time"]}


@pytest.mark.parametrize(
    ("change", "block", "text", "expected"),
    [
        pytest.param(
            _change("nan", {"a": 1}),
            {},
            "v1",
            (
                "sensor.kitchen,domain=sensor,entity_id=kitchen a=1.0,value=nan",
                "sensor.kitchen,domain=sensor,entity_id=kitchen a=1.0",
                {"not_finite": 1},
            ),
            id="a state that is not finite",
        ),
        pytest.param(
            _change("inf"),
            {},
            "v1",
            (
                "sensor.kitchen,domain=sensor,entity_id=kitchen value=inf",
                None,
                {"not_finite": 1, "no_fields": 1},
            ),
            id="a point of nothing but such a state",
        ),
        pytest.param(_change("inf"), {}, "v2", ("", None, {"no_fields": 1}), id="an empty line"),
        pytest.param(
            _change("1", {"time": "noon"}),
            _TAGGED,
            "v1",
            (
                "sensor.kitchen,domain=sensor,entity_id=kitchen,time=noon value=1.0",
                "sensor.kitchen,domain=sensor,entity_id=kitchen value=1.0",
                {"time_tag": 1},
            ),
            id="a tag named time",
        ),
        pytest.param(
            _change("1", {"": 7}),
            {},
            "v2",
            (
                "sensor.kitchen,domain=sensor,entity_id=kitchen =7,value=1",
                "sensor.kitchen,domain=sensor,entity_id=kitchen value=1",
                {"empty_key": 1},
            ),
            id="a field without a name",
        ),
        pytest.param(
            _change("1", {"unit_of_measurement": "#/min"}),
            {},
            "v1",
            (
                "#/min,domain=sensor,entity_id=kitchen value=1.0",
                "/min,domain=sensor,entity_id=kitchen value=1.0",
                {"comment": 1},
            ),
            id="a measurement that makes a comment",
        ),
        pytest.param(
            _change("1", {"unit_of_measurement": "\t##"}),
            {"default_measurement": "#"},
            "v1",
            (
                "\t##,domain=sensor,entity_id=kitchen value=1.0",
                "sensor.kitchen,domain=sensor,entity_id=kitchen value=1.0",
                {"comment": 1},
            ),
            id="a measurement of nothing else",
        ),
        pytest.param(
            _change("1", {"unit_of_measurement": "\t#"}),
            {},
            "v2",
            (
                "\\t#,domain=sensor,entity_id=kitchen value=1",
                "\\t#,domain=sensor,entity_id=kitchen value=1",
                {},
            ),
            id="no comment behind an escaped tab",
        ),
        pytest.param(
            _change("1", {"unit_of_measurement": "\n"}),
            {"default_measurement": "units"},
            "v1",
            (
                ",domain=sensor,entity_id=kitchen value=1.0",
                "units,domain=sensor,entity_id=kitchen value=1.0",
                {"empty_measurement": 1},
            ),
            id="a unit of line breaks",
        ),
        pytest.param(
            _change("1", {"unit_of_measurement": "W"}),
            {"override_measurement": "\r", "default_measurement": "\n"},
            "v2",
            (
                ',domain=sensor,entity_id=kitchen unit_of_measurement_str="W",value=1',
                (
                    "sensor.kitchen,domain=sensor,entity_id=kitchen"
                    ' unit_of_measurement_str="W",value=1'
                ),
                {"empty_measurement": 1},
            ),
            id="an override and a default of line breaks",
        ),
        pytest.param(
            _change("1", {"unit_of_measurement": "\t\0"}),
            {},
            "v1",
            (
                "\t\0,domain=sensor,entity_id=kitchen value=1.0",
                "sensor.kitchen,domain=sensor,entity_id=kitchen value=1.0",
                {"empty_measurement": 1},
            ),
            id="a measurement of what InfluxDB skips",
        ),
        pytest.param(
            _change("1", {"unit_of_measurement": "#\t"}),
            {},
            "v1",
            (
                "#\t,domain=sensor,entity_id=kitchen value=1.0",
                "sensor.kitchen,domain=sensor,entity_id=kitchen value=1.0",
                {"comment": 1},
            ),
            id="nothing but a tab behind a comment",
        ),
        pytest.param(
            _change("1", {"a\\": 1, "y\\": 2, "z\\": 3}),
            {},
            "v1",
            (
                (
                    "sensor.kitchen,domain=sensor,entity_id=kitchen"
                    r" a\\=1.0,value=1.0,y\\=2.0,z\\=3.0"
                ),
                r"sensor.kitchen,domain=sensor,entity_id=kitchen a\\=1.0,value=1.0",
                {"backslash_key": 2},
            ),
            id="last fields whose names end in a backslash",
        ),
        *(
            pytest.param(
                _change("nan", {"a": 1, "b\\": 2, "c\\\\": 3}),
                {},
                text,
                (exact, sent, corrections),
                id=f"last fields of a point whose state is not finite, {text}",
            )
            for text, exact, sent, corrections in (
                (
                    "v1",
                    (
                        "sensor.kitchen,domain=sensor,entity_id=kitchen"
                        r" a=1.0,b\\=2.0,c\\\\=3.0,value=nan"
                    ),
                    "sensor.kitchen,domain=sensor,entity_id=kitchen a=1.0",
                    {"backslash_key": 2, "not_finite": 1},
                ),
                (
                    "v2",
                    r"sensor.kitchen,domain=sensor,entity_id=kitchen a=1,b\=2,c\\=3",
                    "sensor.kitchen,domain=sensor,entity_id=kitchen a=1",
                    {"backslash_key": 2},
                ),
            )
        ),
        pytest.param(
            _change("inf", {"a\\": 1}),
            {},
            "v1",
            (
                r"sensor.kitchen,domain=sensor,entity_id=kitchen a\\=1.0,value=inf",
                None,
                {"backslash_key": 1, "not_finite": 1, "no_fields": 1},
            ),
            id="no field but one whose name ends in a backslash",
        ),
        pytest.param(
            _change("1"),
            {"tags": {"_field": "x", "_measurement": "y", "_value": "z"}},
            "v2",
            (
                (
                    "sensor.kitchen,_field=x,_measurement=y,_value=z,"
                    "domain=sensor,entity_id=kitchen value=1"
                ),
                "sensor.kitchen,_value=z,domain=sensor,entity_id=kitchen value=1",
                {"reserved_tag": 2},
            ),
            id="tags that InfluxDB 2 reserves",
        ),
        pytest.param(
            _change("1"),
            {"tags": {"x\\": "y"}},
            "v1",
            (
                "sensor.kitchen,domain=sensor,entity_id=kitchen,x\\\\=y value=1.0",
                "sensor.kitchen,domain=sensor,entity_id=kitchen value=1.0",
                {"backslash_key": 1},
            ),
            id="a tag whose name ends in a backslash",
        ),
        pytest.param(
            _change("1", {"a\\": 5, "b\\,c": "x", "d\\": None, "e\\\\": 6, "f\\\\,": 7}),
            {},
            "v2",
            (
                (
                    "sensor.kitchen,domain=sensor,entity_id=kitchen"
                    ' a\\=5,b\\\\,c_str="x",d\\_str="None",e\\\\=6,f\\\\\\,=7,value=1'
                ),
                (
                    "sensor.kitchen,domain=sensor,entity_id=kitchen"
                    ' d\\_str="None",e\\\\=6,f\\\\\\,=7,value=1'
                ),
                {"backslash_key": 2},
            ),
            id="fields whose names have a backslash before a separator",
        ),
        pytest.param(
            _change("1", {"a": "x\\\\"}),
            _TAGGED,
            "v1",
            (
                "sensor.kitchen,a=x\\\\\\\\,domain=sensor,entity_id=kitchen value=1.0",
                "sensor.kitchen,a=x,domain=sensor,entity_id=kitchen value=1.0",
                {"backslash": 1},
            ),
            id="a backslash before a separator",
        ),
        pytest.param(
            _change("1", {"a": "x\\"}),
            _TAGGED,
            "v2",
            (
                "sensor.kitchen,a=x\\ ,domain=sensor,entity_id=kitchen value=1",
                "sensor.kitchen,a=x\\ ,domain=sensor,entity_id=kitchen value=1",
                {},
            ),
            id="a backslash before an escaped space",
        ),
    ],
)
def test_a_part_that_influxdb_refuses_is_left_out_and_counted(
    change: Change, block: dict[str, Any], text: Text, expected: tuple[str, str | None, Any]
) -> None:
    """Each kind of `Correction`: what Home Assistant writes, and what is sent."""
    exact, sent, corrections = expected
    exact_line = f"{exact} {_TIME_NS}" if exact else ""
    sent_line = None if sent is None else f"{sent} {_TIME_NS}"

    assert _lines(change, block, text=text) == (exact_line, sent_line, corrections)


@pytest.mark.parametrize("text", ["v1", "v2"])
def test_a_time_is_cut_to_the_precision_and_sent_in_nanoseconds(text: Text) -> None:
    """Lines in the journal must not depend on a setting that may change."""
    exact, sent, _ = _lines(_change("1"), {"precision": "ms"}, text=text)

    assert exact is not None
    assert sent is not None
    assert exact.rpartition(" ")[2] == "1796044207123"
    assert sent.rpartition(" ")[2] == "1796044207123000000"


def test_the_time_is_that_of_the_event() -> None:
    """It is not `last_updated`."""
    _, sent, _ = _lines(_change("1", fired_ns=5_000))

    assert sent is not None
    assert sent.endswith(" 5000")


def test_attributes_above_the_bound_of_the_other_schema_are_written_whole() -> None:
    """Home Assistant bounds nothing."""
    many = {f"attribute_{number}": "x" * 60 for number in range(2_000)}
    state = {
        "state": "on",
        "attributes": many,
        "last_changed": "2026-11-30T10:00:00+00:00",
        "last_updated": "2026-11-30T10:00:00+00:00",
    }
    event = {
        "event_type": "state_changed",
        "data": {"entity_id": "light.a", "old_state": None, "new_state": state},
        "time_fired": "2026-11-30T10:00:00+00:00",
    }
    changes, _ = Normalizer(dict).changes(
        [msgspec.json.decode(msgspec.json.encode(event), type=Event)]
    )

    _, sent, _ = _lines(changes[0])

    assert sent is not None
    assert sent.count("_str=") == len(many)
    assert "_truncated" not in sent


@pytest.mark.parametrize(
    "text",
    ["1" * 60_000 + ".1.", "1" * 60_000, "1." * 30_000, "." + "1" * 60_000, "1 " * 30_000],
    ids=["digits and two dots", "digits", "dots", "a dot first", "digits apart"],
)
def test_the_digit_rule_takes_linear_time(text: str) -> None:
    """Home Assistant's own expression takes minutes for some of these."""
    assert cpu_s(lambda: _lines(_change("x", {"a": text}))) < 1.0


def test_a_removal_and_an_unavailable_state_have_no_line() -> None:
    """They are skipped before the filter."""
    for state in (None, "", "unknown", "unavailable"):
        assert _lines(_change(state)) == (None, None, {})


def test_the_name_of_the_instance_is_a_static_tag_unless_one_is_given() -> None:
    """INSTANCE_NAME acts as a member of `tags`."""
    assert Options().with_instance("home").tags == {"instance": "home"}
    assert _options({"tags": {"instance": "mine"}}).with_instance("home").tags == {
        "instance": "mine"
    }
    assert Options().with_instance(None).tags == {}


_CHARS = (
    "a1._-#\\ ,=\"'\n\t\r\u2028é٣½°\0\x85\xa0\xad"
    "\U0001fa77\u0897\U00011f51"  # Unicode 15 and 16, the last is a digit
    "\u088f\U00011de1"  # Unicode 17, which Python 3.14 lacks, the last is a digit
)
_TEXT = st.one_of(
    st.text(_CHARS, max_size=8),
    st.sampled_from(
        [
            "on",
            "home",
            "nan",
            "-inf",
            "1e400",
            "1_0",
            " 5 ",
            "12.5 °C",
            "10-20",
            "1.2.3",
            "v1.2",
            "x",
        ]
    ),
)
_NAMES = """a a_ a_str state state_ value value_ time time_ time_str domain entity_id friendly_name
unit_of_measurement device_class"""
_KEY = st.one_of(
    st.sampled_from(_NAMES.split()),
    st.text(_CHARS, max_size=4),
)
_LEAF = st.one_of(
    _TEXT,
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
)
_VALUE = st.one_of(_LEAF, st.lists(_LEAF, max_size=3), st.dictionaries(_KEY, _LEAF, max_size=2))
_ENTITY_IDS = st.sampled_from(["sensor.a", "sensor.b_1", "light.a", "zone.home"])
_GLOBS = st.sampled_from(["sensor.*", "*.a", "light.?", "[!s]*", "*"])
_DOMAINS = st.sampled_from(["sensor", "light", "zone"])
_CUSTOM = st.fixed_dictionaries(
    {}, optional={"override_measurement": _TEXT, "ignore_attributes": st.lists(_KEY, max_size=2)}
)
_RULES = st.fixed_dictionaries(
    {},
    optional={
        "domains": st.lists(_DOMAINS, max_size=2),
        "entity_globs": st.lists(_GLOBS, max_size=2),
        "entities": st.lists(_ENTITY_IDS, max_size=2),
    },
)
_BLOCKS = st.fixed_dictionaries(
    {},
    optional={
        "measurement_attr": st.sampled_from(
            ["unit_of_measurement", "domain__device_class", "entity_id"]
        ),
        "default_measurement": _TEXT,
        "override_measurement": _TEXT,
        "tags": st.dictionaries(_KEY, _TEXT, max_size=3),
        "tags_attributes": st.lists(_KEY, max_size=3),
        "ignore_attributes": st.lists(_KEY, max_size=3),
        "component_config": st.dictionaries(_ENTITY_IDS, _CUSTOM, max_size=2),
        "component_config_domain": st.dictionaries(_DOMAINS, _CUSTOM, max_size=2),
        "component_config_glob": st.dictionaries(_GLOBS, _CUSTOM, max_size=2),
        "include": _RULES,
        "exclude": _RULES,
        "precision": st.sampled_from(["s", "ms", "us", "ns"]),
    },
)


@given(
    point=st.builds(
        reference.Point,
        entity_id=_ENTITY_IDS,
        state=_TEXT,
        attributes=st.dictionaries(_KEY, _VALUE, max_size=6),
        time_ns=st.integers(-(10**15), 4 * 10**15).map(lambda micros: micros * 1_000),
    ),
    block=_BLOCKS,
    text=st.sampled_from(["v1", "v2"]),
)
@example(
    point=reference.Point(
        "sensor.a", "nan", {"value": "nan", "value_": 3, "a_str": 5, "a": "x"}, 1_000
    ),
    block={},
    text="v1",
)
def test_the_encoder_agrees_with_a_slow_reference(
    point: reference.Point, block: dict[str, Any], text: Text
) -> None:
    """Any state, attributes and options."""
    encoder = HomeAssistantEncoder(_options(block), text=text, verbatim=True)
    change = _change(
        point.state, point.attributes, entity_id=point.entity_id, time_ns=point.time_ns
    )

    line = encoder.encode([change]).lines[0]

    expected = reference.line(point, block, text)
    assert line == (None if expected is None else f"{expected}\n".encode())


_POINT = st.builds(
    reference.Point,
    entity_id=st.sampled_from(["sensor.a", "light.a"]),
    state=st.sampled_from(["on", "1", "x", "nan"]),
    attributes=st.dictionaries(
        st.sampled_from(["a", "b", "a_str", "state", "value", "time", "unit_of_measurement"]),
        st.sampled_from([1, True, None, "x", "12", "12.5 °C", "nan", "", [10, "\U0001fa77"]]),
        max_size=5,
    ),
    time_ns=st.just(1_000),
)


@given(points=st.lists(_POINT, max_size=8), block=_BLOCKS, text=st.sampled_from(["v1", "v2"]))
def test_what_an_entity_had_before_changes_no_line(
    points: list[reference.Point], block: dict[str, Any], text: Text
) -> None:
    """One encoder for all points, whose attributes appear, change, clash and disappear."""
    encoder = HomeAssistantEncoder(_options(block), text=text, verbatim=True)
    changes = [
        _change(point.state, point.attributes, entity_id=point.entity_id, time_ns=point.time_ns)
        for point in points
    ]

    lines = encoder.encode(changes).lines

    expected = [reference.line(point, block, text) for point in points]
    assert lines == [None if line is None else f"{line}\n".encode() for line in expected]
