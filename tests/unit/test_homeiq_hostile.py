"""From event to line, for any event: nothing breaks out of its place.

line-protocol-parser, the second opinion here, cannot read a NUL character nor a float
below 2.3e-308; those lines are judged by our own reader and the reference alone.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence

import line_protocol_parser  # type: ignore[import-untyped]  # it has no stubs
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.homeassistant.messages import Event
from app.model import Change, Placement
from app.normalize.changes import Normalizer
from app.schema.homeiq import HomeiqEncoder
from app.schema.line_protocol import parse_line
from benchmarks.stages import make_material
from tests.fakes.hostile import changes, events, placements
from tests.fakes.recordings import VERSIONS, event_messages, recording
from tests.fakes.reference_encoder import expected_point, line_of

MEASUREMENT = "home, \\events"
GLOBS = ("*",)


def _check(batch: Sequence[Change]) -> None:
    """Encode a batch twice, compare it with the reference, and read every line back."""
    encoder = HomeiqEncoder(MEASUREMENT, instance="i", attribute_fields=GLOBS)
    points = [
        expected_point(change, measurement=MEASUREMENT, instance="i", attribute_fields=GLOBS)
        for change in batch
    ]

    lines = encoder.encode(batch)

    assert lines.data == b"".join(line_of(point) for point in points)
    assert lines.points == len(points)
    assert [parse_line(line) for line in lines.split()] == points
    assert encoder.encode(batch) == lines
    for line, point in zip(lines.split(), points, strict=True):
        if b"\0" not in line and not re.search(rb"e-3[0-9][0-9]", line):
            assert line_protocol_parser.parse_line(line.decode()) == {
                "measurement": point.measurement,
                "tags": point.tags,
                "fields": point.fields,
                "time": point.time_ns,
            }


@settings(deadline=None)
@given(st.lists(changes, min_size=1, max_size=4))
def test_a_line_of_any_change_parses_back_to_its_values(batch: list[Change]) -> None:
    """The fast encoder writes what the slow one does, and readers find the same in it."""
    _check(batch)


@settings(deadline=None)
@given(st.lists(changes, min_size=2, max_size=4))
def test_whatever_changes_about_one_entity_is_written(batch: list[Change]) -> None:
    """Class, unit, name, place and attributes may all be others in the next event."""
    _check([msgspec.structs.replace(change, entity_id="sensor.kitchen") for change in batch])


@settings(deadline=None)
@given(st.lists(events, min_size=1, max_size=4), placements)
def test_any_event_is_a_change_or_malformed(batch: list[Event], placement: Placement) -> None:
    """Every event is accounted for, and its attributes are JSON that every parser reads."""
    everywhere = {event.data.entity_id or "": placement for event in batch}
    found, malformed = Normalizer(lambda: everywhere).changes(batch)

    assert len(found) + len(malformed) == len(batch)
    _check(found)
    for change in found:
        assert isinstance(json.loads(change.attributes, parse_constant=pytest.fail), dict)
        msgspec.json.decode(change.attributes, type=dict[str, msgspec.Raw])


def test_lines_of_the_corpus_parse_back_to_their_values() -> None:
    """What the benchmarks measure is right: batch by batch, caches and registries included."""
    material = make_material(4_000)
    encoder = HomeiqEncoder("home_assistant_events", instance=None, attribute_fields=())

    for batch in material.changes:
        expected = b"".join(line_of(expected_point(change)) for change in batch)
        assert expected == encoder.encode(batch).data

    changes_made = list(itertools.chain.from_iterable(material.changes))
    assert len(changes_made) == 4_000
    assert {change.removed for change in changes_made} == {True, False}
    assert any(change.placement.area_id for change in changes_made)


def _recorded_events(version: str) -> Iterator[Event]:
    """Return every recorded state change of one Home Assistant."""
    messages = itertools.chain(
        *(
            event_messages(recording(version, name))
            for name in ("state_changed_events", "registry_changes")
        )
    )
    live = recording(version, "history_backfill")["live_events"]
    for event in itertools.chain((message["event"] for message in messages), live):
        if event["event_type"] == "state_changed":
            yield msgspec.convert(
                json.loads(json.dumps(event), object_hook=_attributes_unread), type=Event
            )


def _attributes_unread(value: dict[str, object]) -> dict[str, object]:
    if isinstance(value.get("attributes"), dict):
        value["attributes"] = msgspec.Raw(json.dumps(value["attributes"]).encode())
    return value


@pytest.mark.parametrize("version", VERSIONS)
def test_lines_of_recordings_parse_back_to_their_values(version: str) -> None:
    """What three versions of Home Assistant sent is written as the tables say."""
    batch = list(_recorded_events(version))

    found, malformed = Normalizer(dict).changes(batch)

    assert malformed == []
    assert len(found) == len(batch) > 50
    assert {change.removed for change in found} == {True, False}
    _check(found)
