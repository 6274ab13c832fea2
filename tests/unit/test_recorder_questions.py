"""How the recorder is asked: windows that lose nothing, and patience with what lags behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import CommandFailed, SourceProtocolError
from app.model import RecordedState, Times, moment_of, nanoseconds
from app.source.backfill import Answer, Patience, Recorder, all_entities

SECOND = 1_000_000_000
START_S = 1_795_000_000
START = START_S * SECOND
QUICK = Patience(tail_s=1.0)


class FakeRecorder:
    """Rows by entity, as (seconds since the start, state); time passes only in sleeps."""

    def __init__(self, rows: Mapping[str, Sequence[tuple[float, object]]] | None = None) -> None:
        self.rows = {name: list(found) for name, found in (rows or {}).items()}
        self.now = float(START_S + 1_000_000)
        self.questions: list[tuple[float, float, tuple[str, ...], bool]] = []
        """Start and end, both left out, in seconds since the start; entities; with the start."""
        self.commands: Counter[str] = Counter()
        self.backlogs: list[object] = []
        self.states: object = []
        self.refusal: CommandFailed | None = None
        self.late: list[tuple[float, str, tuple[float, object]]] = []
        """Rows that are written when our clock shows so much."""

    def clock(self) -> float:
        """Return our own time."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        for at, name, row in [one for one in self.late if one[0] <= self.now]:
            self.late.remove((at, name, row))
            self.rows.setdefault(name, []).append(row)

    async def call(self, command: str, **parameters: object) -> msgspec.Raw:
        """Answer as Home Assistant does."""
        self.commands[command] += 1
        if self.refusal is not None:
            raise self.refusal
        match command:
            case "recorder/info":
                answer: object = self.backlogs.pop(0) if self.backlogs else {"backlog": 0}
            case "get_states":
                answer = self.states
            case _:
                answer = self._history(parameters)
        return msgspec.Raw(answer if isinstance(answer, bytes) else msgspec.json.encode(answer))

    def _history(self, parameters: Mapping[str, object]) -> object:
        start, end = (
            (nanoseconds(datetime.fromisoformat(str(parameters[name]))) - START) / SECOND
            for name in ("start_time", "end_time")
        )
        names = cast("Sequence[str]", parameters["entity_ids"])
        self.questions.append(
            (start, end, tuple(names), bool(parameters["include_start_time_state"]))
        )
        assert parameters["significant_changes_only"] is False
        assert parameters["minimal_response"] is False
        assert parameters["no_attributes"] is False
        return {
            name: [
                {"s": state, "a": {}, "lu": START_S + at} if isinstance(state, str) else state
                for at, state in self.rows.get(name, [])
                if start < at < end
            ]
            for name in names
        }


def span(oldest_s: float, newest_s: float) -> Times:
    """Return a span, in seconds since the start."""
    return Times(START + round(oldest_s * 1e6) * 1_000, START + round(newest_s * 1e6) * 1_000)


def recorder(fake: FakeRecorder, patience: Patience = QUICK) -> Recorder:
    """Return what asks it."""
    return Recorder(fake.call, patience=patience, clock=fake.clock, sleep=fake.sleep)


async def answers(
    fake: FakeRecorder,
    times: Times,
    *,
    names: Sequence[str] = ("sensor.a",),
    patience: Patience = QUICK,
    with_start: Collection[str] = (),
    is_new: bool = False,
) -> list[Answer]:
    """Return all answers about a span."""
    history = recorder(fake, patience).history(times, names, with_start=with_start, is_new=is_new)
    return [answer async for answer in history]


def read(found: Sequence[Answer]) -> list[tuple[str, float, str | None]]:
    """Return the rows in the order in which they came."""
    return [
        (name, round(row.lu - START_S, 6), row.s)
        for answer in found
        for name, rows in answer.history.items()
        for row in rows
    ]


async def test_a_quiet_time_is_asked_for_in_ever_longer_windows() -> None:
    """A week without changes takes few questions."""
    fake = FakeRecorder()

    found = await answers(fake, span(0, 7 * 86_400))

    lengths = [round(end - start) for start, end, *_ in fake.questions[:-1]]
    assert lengths[:5] == [60, 120, 240, 480, 960]
    assert max(lengths) <= 86_400
    assert len(lengths) < 20
    assert found[-1].through_ns == span(0, 7 * 86_400).newest_ns


async def test_a_busy_time_is_asked_for_in_short_windows() -> None:
    """An answer stays small, and never shorter than ten seconds is asked for."""
    fake = FakeRecorder({"sensor.a": [(number / 300, "1") for number in range(300 * 300)]})

    found = await answers(fake, span(0, 300))

    lengths = [round(end - start) for start, end, *_ in fake.questions[:-1]]
    assert lengths[:4] == [60, 30, 15, 10]
    assert {10} == set(lengths[4:-1])
    assert len(read(found)) == 300 * 300


@pytest.mark.parametrize("at", [0.0, 60.0, 60.000001, 180.000001, 180.000002, 299.999999, 300.0])
async def test_a_row_on_a_boundary_comes_once(at: float) -> None:
    """On both ends, and where one window follows another."""
    fake = FakeRecorder({"sensor.a": [(at, "on the edge")], "sensor.b": [(at, "as well")]})

    found = await answers(fake, span(0, 300), names=("sensor.a", "sensor.b"))

    assert [("sensor.a", at, "on the edge"), ("sensor.b", at, "as well")] == read(found)


async def test_what_lies_outside_does_not_come() -> None:
    """By a microsecond."""
    fake = FakeRecorder({"sensor.a": [(-0.000001, "before"), (300.000001, "after")]})

    assert read(await answers(fake, span(0, 300))) == []


@given(
    moments=st.lists(st.integers(0, 400_000_000), max_size=40).map(sorted),
    ends=st.tuples(st.integers(0, 400_000_000), st.integers(0, 400_000_000)).map(sorted),
    tail_s=st.sampled_from([1.0, 30.0, 1_000.0]),
)
async def test_wherever_the_windows_end_nothing_is_lost(
    moments: list[int], ends: list[int], tail_s: float
) -> None:
    """Each row of the span comes once, several in one microsecond included, in order."""
    rows = [(moment / 1e6, str(number)) for number, moment in enumerate(moments)]
    fake = FakeRecorder({"sensor.a": rows})
    oldest, newest = (end / 1e6 for end in ends)

    found = await answers(fake, span(oldest, newest), patience=Patience(tail_s=tail_s))

    assert [state for at, state in rows if oldest <= at <= newest] == [
        state for _, _, state in read(found)
    ]


async def test_a_large_home_is_asked_for_in_parts() -> None:
    """A window is done when the last part of it is."""
    names = [f"sensor.s{number}" for number in range(250)]
    fake = FakeRecorder({name: [(1.0, "1")] for name in names})

    found = await answers(fake, span(0, 60), names=names)

    assert [len(asked) for *_, asked, _ in fake.questions[:3]] == [100, 100, 50]
    assert [answer.through_ns for answer in found[:3]] == [None, None, START + 59 * SECOND]
    assert len(read(found)) == 250


async def test_only_the_first_window_asks_what_was_before() -> None:
    """And only for those of whom it is not known."""
    names = [f"sensor.s{number}" for number in range(150)]
    fake = FakeRecorder()

    await answers(fake, span(0, 300), names=names, with_start={"sensor.s120"})

    assert [False, True, *[False] * (len(fake.questions) - 2)] == [
        with_start for *_, with_start in fake.questions
    ]


async def test_of_nobody_nothing_is_asked() -> None:
    """A home without entities."""
    fake = FakeRecorder()

    assert await answers(fake, span(0, 300), names=()) == []
    assert fake.questions == []


# What lags behind


async def test_the_end_is_asked_for_until_two_answers_agree() -> None:
    """The recorder writes every few seconds: what is not there yet comes with the next answer."""
    fake = FakeRecorder()
    fake.late = [(fake.now + at, "sensor.a", (295.0 + at / 10, "late")) for at in (3, 9, 14)]

    found = await answers(fake, span(0, 300), patience=Patience(), is_new=True)

    assert [state for *_, state in read(found)] == ["late"] * 3
    asked = [round(start, 6) for start, *_ in fake.questions if start > 269]
    assert asked == [270.0] * 6  # five until two agree, and one for the rows
    assert fake.now == START_S + 1_000_000 + 4 * 6


async def test_it_is_asked_for_no_longer_than_two_minutes() -> None:
    """Answers that never agree are a busy home; the rows come all the same."""
    fake = FakeRecorder()
    fake.late = [(fake.now + at, "sensor.a", (299.0 + at / 1e4, "busy")) for at in range(1, 1_000)]

    found = await answers(fake, span(0, 300), patience=Patience(), is_new=True)

    assert fake.now == START_S + 1_000_000 + 120
    assert len(read(found)) == 120


async def test_what_is_long_past_takes_no_waiting() -> None:
    """The recorder has written it."""
    fake = FakeRecorder({"sensor.a": [(299.0, "1")]})

    found = await answers(fake, span(0, 300), patience=Patience())

    assert read(found) == [("sensor.a", 299.0, "1")]
    assert fake.now == START_S + 1_000_000


async def test_the_backlog_is_waited_for() -> None:
    """The recorder still holds it in memory."""
    fake = FakeRecorder()
    fake.backlogs = [{"backlog": 5000}, {"backlog": 1}, {"backlog": 0}]

    await recorder(fake).until_written()

    assert fake.commands["recorder/info"] == 3
    assert fake.now == START_S + 1_000_000 + 2


async def test_a_backlog_is_waited_for_no_longer_than_two_minutes() -> None:
    """A home that never rests has one for ever."""
    fake = FakeRecorder()
    fake.backlogs = [{"backlog": 7}] * 1_000

    await recorder(fake).until_written()

    assert fake.now == START_S + 1_000_000 + 120


@pytest.mark.parametrize("answer", [{"backlog": None}, {}, [], "?"])
async def test_a_recorder_that_does_not_tell_its_backlog(answer: object) -> None:
    """It is not worth failing for."""
    fake = FakeRecorder()
    fake.backlogs = [answer]

    await recorder(fake).until_written()

    assert fake.commands["recorder/info"] == 1


async def test_a_recorder_that_may_not_tell_its_backlog() -> None:
    """Nor is a refusal."""
    fake = FakeRecorder()
    fake.refusal = CommandFailed("recorder/info", code="unauthorized", message="no")

    await recorder(fake).until_written()


# Odd answers


async def test_a_refusal_is_passed_on() -> None:
    """Who fills the gap decides."""
    fake = FakeRecorder()
    fake.refusal = CommandFailed("history", code="unknown_command", message="Unknown command.")

    with pytest.raises(CommandFailed):
        await answers(fake, span(0, 300))


@pytest.mark.parametrize(
    "odd",
    [
        {"s": 5, "lu": START_S + 2},
        {"s": "1"},
        {"s": "1", "lu": "noon"},
        {"s": "1", "lu": 1e300},
        {"s": "1", "lu": -1},
        {"s": "1", "lu": START_S, "lc": 1e300},
        None,
        [],
    ],
)
async def test_an_odd_row_costs_no_other(odd: object, caplog: pytest.LogCaptureFixture) -> None:
    """It is left out, and said."""
    fake = FakeRecorder({"sensor.a": [(1.0, "1"), (2.0, odd), (3.0, "3")]})

    found = await answers(fake, span(0, 10))

    assert [state for *_, state in read(found)] == ["1", "3"]
    assert "Left out 1 rows" in caplog.text


@pytest.mark.parametrize("answer", [[], {"sensor.a": 5}, "?"])
async def test_an_answer_that_is_no_history_is_said_so(answer: object) -> None:
    """Trying again may help."""

    async def call(command: str, **parameters: object) -> msgspec.Raw:
        assert command == "history/history_during_period"
        assert parameters["entity_ids"] == ["sensor.a"]
        return msgspec.Raw(msgspec.json.encode(answer))

    with pytest.raises(SourceProtocolError, match="history_during_period"):
        async for _ in Recorder(call, patience=QUICK).history(
            span(0, 10), ["sensor.a"], with_start=(), is_new=False
        ):
            pass


async def test_the_present_states_are_read_one_by_one() -> None:
    """Many of them, and an odd one among them."""
    fake = FakeRecorder()
    moment = moment_of(START).isoformat()
    fake.states = [
        {
            "entity_id": f"sensor.s{n}",
            "state": str(n),
            "last_changed": moment,
            "last_updated": moment,
        }
        for n in range(450)
    ] + [{"entity_id": "sensor.odd"}, 7]

    states = await recorder(fake).newest_states()

    assert len(states) == 450
    assert states["sensor.s449"].state == "449"


async def test_states_that_are_no_list_are_said_so() -> None:
    """Trying again may help."""
    fake = FakeRecorder()
    fake.states = {"no": "list"}

    with pytest.raises(SourceProtocolError, match="get_states"):
        await recorder(fake).newest_states()


@pytest.mark.parametrize(
    ("odd", "asked"),
    [
        ("sensor.a_1", True),
        ("sensor.A", False),
        ("sensor.a__b", False),
        ("sensor._a", False),
        ("sensor.a_", False),
        ("sensor", False),
        ("sensor.ä", False),
    ],
)
def test_a_name_of_the_past_does_not_spoil_the_question(odd: str, *, asked: bool) -> None:
    """Home Assistant refuses all for one that is invalid and has no state."""
    assert asked == (odd in all_entities({"light.b"}, {odd, "light.b"}))
    assert odd in all_entities({"light.b", odd}, {"light.b"})


def test_a_row_without_last_changed_has_none() -> None:
    """It is that of `last_updated`."""
    assert RecordedState("1", 1.0).lc is None
