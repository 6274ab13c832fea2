"""The event corpus of the benchmarks has its documented properties."""

from __future__ import annotations

import statistics

import pytest

from app.homeassistant.messages import EventState
from app.homeassistant.protocol import Session
from app.normalize.changes import Normalizer
from benchmarks.corpus import ENTITIES, EVENTS, Corpus, Stream, make_corpus, make_frames
from benchmarks.stages import make_material
from benchmarks.tables import percentile

_NOW_NS = 1_795_457_886_833_397_000


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Return the whole corpus."""
    return make_corpus()


def test_the_corpus_has_its_documented_size(corpus: Corpus) -> None:
    """20,000 messages of 2,000 entities, 0.5 to 3 kB each, 1.2 kB on average."""
    sizes = [len(frame) for frame in make_frames(corpus, per_frame=1)]

    assert (len(sizes), len(corpus.states)) == (EVENTS, ENTITIES)
    assert 500 <= min(sizes) <= max(sizes) <= 3000
    assert statistics.mean(sizes) == pytest.approx(1250, rel=0.05)


def test_the_corpus_is_deterministic(corpus: Corpus) -> None:
    """Two runs measure the same events."""
    make_corpus.cache_clear()

    assert corpus == make_corpus()


def test_every_event_of_the_corpus_is_valid() -> None:
    """None is malformed, and every entity is in the registries."""
    material = make_material(ENTITIES)

    assert [
        problem
        for batch in material.events
        for problem in Normalizer(material.catalog.placements).changes(batch)[1]
    ] == []
    assert sum(len(batch) for batch in material.changes) == ENTITIES
    assert all(change.placement.integration for batch in material.changes for change in batch)


def test_the_corpus_is_decoded_without_repair(corpus: Corpus) -> None:
    """Frames of many messages are plain JSON, and the protocol reports none as malformed."""
    session = Session("t" * 32)
    session.feed(b'{"type":"auth_required","ha_version":"2026.11.0"}')
    session.feed(b'{"type":"auth_ok","ha_version":"2026.11.0"}')

    steps = [session.feed(frame) for frame in make_frames(corpus, per_frame=50)[:20]]

    assert sum(len(step.events) for step in steps) == 1000
    assert [problem for step in steps for problem in step.malformed] == []


def test_no_two_events_of_the_corpus_are_the_same_point(corpus: Corpus) -> None:
    """At any speed and in every round each event has its own time."""
    stream = Stream(corpus)

    taken = [stream.take(5000, now_ns=_NOW_NS) for _ in range(6)]

    assert 30_000 == len(stream.identities) == len(set(stream.identities))
    assert len({event for events in taken for event in events}) == 30_000


def test_old_state_equals_the_previous_new_state_of_the_entity(corpus: Corpus) -> None:
    """`old_state` has the state and the times of the previous `new_state`."""
    stream = Stream(corpus)
    session = Session("t" * 32)
    session.feed(b'{"type":"auth_required","ha_version":"2026.11.0"}')
    session.feed(b'{"type":"auth_ok","ha_version":"2026.11.0"}')
    former: dict[str | None, EventState | None] = {}

    for event in stream.take(2 * EVENTS, now_ns=_NOW_NS):
        (read,) = session.feed(b'{"type":"event","event":%b,"id":2}' % event).events
        old, new = read.data.old_state, read.data.new_state
        if (last := former.get(read.data.entity_id)) is not None and old is not None:
            assert (last.state, last.last_changed, last.last_updated) == (
                old.state,
                old.last_changed,
                old.last_updated,
            )
        former[read.data.entity_id] = new


@pytest.mark.parametrize(
    ("values", "part", "expected"),
    [([], 0.5, 0.0), ([3.0], 0.99, 3.0), ([4.0, 1.0, 3.0, 2.0, 5.0], 0.5, 3.0)],
)
def test_a_percentile_of_a_benchmark_is_one_of_its_values(
    values: list[float], part: float, expected: float
) -> None:
    """And 0 without values."""
    assert expected == percentile(values, part)
