"""The entity filter: which changes pass, and where a mistake in it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from app.model import Change, Placement
from app.normalize.filter_rules import Filter, read_rules
from app.runtime.errors import FilterInvalid
from tests.fakes.snapshots import change

KITCHEN = Placement(area_id="kitchen", floor_id="ground", labels=("energy", "noisy"))


def placed(entity_id: str = "sensor.power", **changes: Any) -> Change:
    """Return a change of something in the kitchen."""
    made = msgspec.structs.replace(change(entity_id), placement=KITCHEN, device_class="power")
    return msgspec.structs.replace(made, **changes)


def filter_of(**rules: object) -> Filter:
    """Return the filter with these rules."""
    return Filter(read_rules(json.dumps(rules)))


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ({"entity_id": "sensor.power"}, True),
        ({"entity_id": "sensor.*"}, True),
        ({"entity_id": "*.pow?r"}, True),
        ({"entity_id": "sensor"}, False),
        ({"entity_id": "SENSOR.POWER"}, False),
        ({"entity_id": ["light.*", "sensor.p*"]}, True),
        ({"domain": "sensor"}, True),
        ({"domain": "sens"}, False),
        ({"device_class": "power"}, True),
        ({"device_class": "energy"}, False),
        ({"area_id": "kitch*"}, True),
        ({"area_id": "hall"}, False),
        ({"label": "noisy"}, True),
        ({"label": "quiet"}, False),
        ({"floor": "ground"}, True),
        ({"floor": "attic"}, False),
        ({"entity_id": "light.*", "area_id": "kitchen"}, True),
        ({"entity_id": "light.*", "area_id": "hall"}, False),
    ],
)
def test_a_pattern_matches_if_one_of_its_keys_does(pattern: dict[str, object], fits: bool) -> None:  # noqa: FBT001 - a table
    """Globs, case and all; both modes see the same patterns."""
    assert filter_of(mode="exclude", patterns=[pattern]).passes(placed()) is not fits
    assert filter_of(mode="include", patterns=[pattern]).passes(placed()) is fits


@pytest.mark.parametrize("key", ["device_class", "area_id", "label", "floor"])
def test_an_unknown_area_or_class_matches_no_pattern(key: str) -> None:
    """Not even the glob that fits everything."""
    unknown = placed(placement=Placement(), device_class=None)

    assert filter_of(mode="exclude", patterns=[{key: "*"}]).passes(unknown)


@pytest.mark.parametrize("mode", ["exclude", "include"])
def test_a_change_that_matches_an_exception_always_passes(mode: str) -> None:
    """Whatever the patterns say."""
    rules = filter_of(
        mode=mode, patterns=[{"domain": "light"}], exceptions=[{"entity_id": "*.power"}]
    )

    assert rules.passes(placed("sensor.power"))
    assert rules.passes(placed("light.power"))


def test_the_default_mode_of_a_filter_is_exclude() -> None:
    """As it was in the predecessor."""
    assert not filter_of(patterns=[{"domain": "sensor"}]).passes(placed())
    assert filter_of().passes(placed())


def test_filtering_keeps_the_order_and_counts_by_rule() -> None:
    """The first pattern that fits has decided, or an exception."""
    rules = filter_of(
        patterns=[{"domain": "light"}, {"area_id": "kitchen"}],
        exceptions=[{"entity_id": "sensor.b"}],
    )
    batch = [
        placed("light.a"),
        placed("sensor.a"),
        placed("sensor.b"),
        placed("sensor.c", placement=Placement()),
    ]

    kept = rules.selected(batch)

    assert [found.entity_id for found in kept] == ["sensor.b", "sensor.c"]
    assert rules.matched == [1, 1, 1]


def test_a_filter_decides_anew_when_placement_or_class_change() -> None:
    """It is remembered, but an entity that moves is judged anew."""
    rules = filter_of(patterns=[{"area_id": "kitchen"}, {"device_class": "battery"}])

    assert not rules.passes(placed())
    assert rules.passes(placed(placement=Placement(area_id="hall")))
    assert not rules.passes(placed(placement=Placement(area_id="hall"), device_class="battery"))
    assert not rules.passes(placed())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, column 1: Expecting value"),
        ('{\n  "mode": exclude\n}', "line 2, column 11: Expecting value"),
        ("[]", "$: Expected `object`, got `array`"),
        ('{"mode":"only"}', "$.mode: Invalid enum value 'only'"),
        ('{"pattern":[]}', "$: Object contains unknown field `pattern`"),
        (
            '{"patterns":[{"domain":"a"},{"entity":"b"}]}',
            "$.patterns[1]: Object contains unknown field `entity`",
        ),
        ('{"exceptions":[{"domain":5}]}', "$.exceptions[0].domain: Expected"),
        ('{"patterns":[{}]}', "$.patterns[0]: it names nothing"),
        ('{"patterns":[{"domain":""}]}', "$.patterns[0]: it names nothing"),
        ('{"mode":"include"}', "$.patterns: `include` without a pattern"),
        ("[" * 100_000, "$: it is nested too deep"),
        ("9" * 5_000, "$: a number in it has too many digits"),
        (
            '{"patterns": [{"domain": ["sun", "\\ud800"]}]}',
            "$.patterns[0].domain[1]: a text",
        ),
        ('{"\\udfff": 1}', "$: a text holds half"),
    ],
)
def test_a_mistake_in_a_filter_is_reported_with_its_position(text: str, message: str) -> None:
    """A person must find it in a file of a hundred lines."""
    with pytest.raises(FilterInvalid) as caught:
        read_rules(text)

    assert message in str(caught.value)


def test_the_cache_of_filter_decisions_is_bounded() -> None:
    """Entities come and go."""
    rules = filter_of(patterns=[{"domain": "sensor"}])

    for number in range(50_001):
        rules.passes(placed(f"light.l{number}"))

    assert len(rules._verdicts) == 1


def test_the_documented_example_of_a_filter_is_valid() -> None:
    """docs/FILTER.md is what people copy."""
    document = (Path(__file__).parents[2] / "docs" / "FILTER.md").read_text()

    rules = Filter(read_rules(document.split("```json")[1].split("```")[0]))

    assert rules.passes(placed("sun.sun", domain="sun", placement=Placement()))
    assert not rules.passes(placed("update.hub", domain="update", placement=Placement()))
    assert not rules.passes(placed())  # its label
