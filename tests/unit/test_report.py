"""The report of a sink: its problem in a sentence, and the end of a backlog."""

from __future__ import annotations

from typing import Literal

import pytest

from app.sinks.report import DrainRate, SinkProblem


def problem(
    condition: Literal["waiting", "holding", "refusing"], *, advice: str | None = None
) -> SinkProblem:
    """Return a problem that began at second 100."""
    return SinkProblem(
        sink="influxdb",
        condition=condition,
        since_s=100.0,
        reason="401 unauthorized.",
        advice=advice,
    )


def test_a_sentence_says_who_since_when_why_and_what_to_do() -> None:
    """It is the example of the design."""
    sentence = problem("holding", advice="Check INFLUXDB_TOKEN.").sentence(142.0)

    expected = "InfluxDB has been refusing writes for 42 s: 401 unauthorized. Check INFLUXDB_TOKEN."
    assert expected == sentence


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("waiting", "has not been taking writes for 5 s: 401 unauthorized. Points wait in the"),
        ("holding", "has been refusing writes for 5 s: 401 unauthorized. Points wait in the"),
        ("refusing", "has been refusing every point for 5 s: 401 unauthorized. Fix what"),
    ],
)
def test_every_condition_has_an_advice(
    condition: Literal["waiting", "holding", "refusing"], words: str
) -> None:
    """Also when the sink gave none."""
    assert words in problem(condition).sentence(105.0)


def test_the_sentence_of_a_refusing_database_mentions_dead_letters() -> None:
    """The dead letters from before it was clear are to be retried."""
    sentence = problem("refusing", advice="Set INFLUXDB_BUCKET.").sentence(105.0)

    assert "Set INFLUXDB_BUCKET. " in sentence
    assert "dead letters to be retried" in sentence


def test_an_unknown_sink_is_called_by_its_name() -> None:
    """Only those of today have a title."""
    sentence = SinkProblem(sink="mirror", condition="waiting", since_s=0.0, reason="x").sentence(
        1.0
    )

    assert sentence.startswith("Sink mirror has not")


def test_the_end_of_a_backlog_is_computed_from_its_drain_rate() -> None:
    """A thousand points a second leave 5,000 for five seconds."""
    pace = DrainRate()
    for second in range(20):
        pace.sample(float(second), held=25_000 - 1000 * second)

    assert pace.drained_in_s(5000) == pytest.approx(5.0)


def test_a_changed_drain_rate_is_smoothed() -> None:
    """One slow batch does not double the estimate, a minute of them does."""
    pace = DrainRate()
    pace.sample(0.0, held=10_000)
    pace.sample(1.0, held=9_000)
    pace.sample(2.0, held=9_000)
    soon = pace.drained_in_s(9000)
    for second in range(3, 60):
        pace.sample(float(second), held=9000)
    later = pace.drained_in_s(9000)

    assert soon == pytest.approx(9.0, rel=0.2)
    assert later is not None
    assert later > 1000


def test_the_end_of_a_backlog_is_unknown_without_a_drain_rate() -> None:
    """Before two samples, while the backlog grows, after a problem, and without a backlog."""
    pace = DrainRate()
    pace.sample(0.0, held=100)
    assert pace.drained_in_s(100) is None

    pace.sample(0.0, held=50)
    assert pace.drained_in_s(50) is None

    pace.sample(1.0, held=200)
    assert pace.drained_in_s(200) is None

    pace.sample(100.0, held=0)
    assert pace.drained_in_s(0) is None
    assert pace.drained_in_s(10) is not None

    pace.reset()
    assert pace.drained_in_s(10) is None
