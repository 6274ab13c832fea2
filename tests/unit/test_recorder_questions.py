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

from app.homeassistant.messages import RecordedState
from app.homeassistant.recorded_entities import find_entities
from app.homeassistant.recorder import HistoryPage, Recorder, is_entity_id
from app.model import Times, moment_of, nanoseconds
from app.runtime.errors import CommandFailed, SourceProtocolError

SECOND = 1_000_000_000
START_S = 1_795_000_000
START = START_S * SECOND


IDLE = {
    "backlog": 0,
    "recording": True,
    "migration_in_progress": False,
    "thread_running": True,
}


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
        self.lists: dict[str, object] = {}
        """Answers of other commands; what is not here is an unknown command."""
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
            case "history/history_during_period":
                answer = self._history(parameters)
            case _:
                answer = self._listed(command)
        return msgspec.Raw(answer if isinstance(answer, bytes) else msgspec.json.encode(answer))

    def _listed(self, command: str) -> object:
        if command not in self.lists:
            raise CommandFailed(command, code="unknown_command", message="Unknown command.")
        return self.lists[command]

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
        found = {
            name: [
                {"s": state, "a": {}, "lu": START_S + at} if isinstance(state, str) else state
                for at, state in self.rows.get(name, [])
                if start < at < end
            ]
            for name in names
        }
        if parameters["include_start_time_state"]:
            for name in names:
                past = [state for at, state in self.rows.get(name, []) if at <= start]
                first = [{"s": state, "a": {}, "lu": START_S + start} for state in past]
                found[name][:0] = first[-1:]
        return {name: rows for name, rows in found.items() if rows}


def span(oldest_s: float, newest_s: float) -> Times:
    """Return a span, in seconds since the start."""
    return Times(START + round(oldest_s * 1e6) * 1_000, START + round(newest_s * 1e6) * 1_000)


def recorder(fake: FakeRecorder) -> Recorder:
    """Return what sends the commands."""
    return Recorder(fake.call, commit_interval_s=5.0, sleep=fake.sleep)


async def answers(
    fake: FakeRecorder, times: Times, *, names: Sequence[str] = ("sensor.a",)
) -> list[HistoryPage]:
    """Return all answers about a span."""
    return [answer async for answer in recorder(fake).history(times, names)]


def read(found: Sequence[HistoryPage]) -> list[tuple[str, float, str | None]]:
    """Return the rows in the order in which they came."""
    return [
        (name, round(row.lu - START_S, 6), row.s)
        for answer in found
        for name, rows in answer.history.items()
        for row in rows
    ]


async def test_history_of_a_quiet_time_is_requested_in_growing_windows() -> None:
    """A week without changes takes few questions."""
    fake = FakeRecorder()

    found = await answers(fake, span(0, 7 * 86_400))

    lengths = [round(end - start) for start, end, *_ in fake.questions[:-1]]
    assert lengths[:5] == [60, 120, 240, 480, 960]
    assert max(lengths) <= 86_400
    assert len(lengths) < 20
    assert found[-1].through_ns == span(0, 7 * 86_400).newest_ns


async def test_history_of_a_busy_time_is_requested_in_short_windows() -> None:
    """An answer stays small, and never shorter than ten seconds is asked for."""
    fake = FakeRecorder({"sensor.a": [(number / 300, "1") for number in range(300 * 300)]})

    found = await answers(fake, span(0, 300))

    lengths = [round(end - start) for start, end, *_ in fake.questions[:-1]]
    assert lengths[:4] == [60, 30, 15, 10]
    assert {10} == set(lengths[4:-1])
    assert len(read(found)) == 300 * 300


@pytest.mark.parametrize("at", [0.0, 60.0, 60.000001, 180.000001, 180.000002, 299.999999, 300.0])
async def test_a_row_on_the_boundary_of_two_windows_comes_once(at: float) -> None:
    """On both ends, and where one window follows another."""
    fake = FakeRecorder({"sensor.a": [(at, "on the edge")], "sensor.b": [(at, "as well")]})

    found = await answers(fake, span(0, 300), names=("sensor.a", "sensor.b"))

    assert [("sensor.a", at, "on the edge"), ("sensor.b", at, "as well")] == read(found)


async def test_rows_outside_the_requested_span_do_not_come() -> None:
    """By a microsecond."""
    fake = FakeRecorder({"sensor.a": [(-0.000001, "before"), (300.000001, "after")]})

    assert read(await answers(fake, span(0, 300))) == []


@given(
    moments=st.lists(st.integers(0, 400_000_000), max_size=40).map(sorted),
    ends=st.tuples(st.integers(0, 400_000_000), st.integers(0, 400_000_000)).map(sorted),
)
async def test_no_row_is_lost_between_windows_of_any_length(
    moments: list[int], ends: list[int]
) -> None:
    """Each row of the span comes once, several in one microsecond included, in order."""
    rows = [(moment / 1e6, str(number)) for number, moment in enumerate(moments)]
    fake = FakeRecorder({"sensor.a": rows})
    oldest, newest = (end / 1e6 for end in ends)

    found = await answers(fake, span(oldest, newest))

    assert [state for at, state in rows if oldest <= at <= newest] == [
        state for _, _, state in read(found)
    ]


async def test_history_of_a_large_home_is_requested_in_batches_of_entities() -> None:
    """A window is done when the last part of it is."""
    names = [f"sensor.s{number}" for number in range(250)]
    fake = FakeRecorder({name: [(1.0, "1")] for name in names})

    found = await answers(fake, span(0, 60), names=names)

    assert [len(asked) for *_, asked, _ in fake.questions[:3]] == [100, 100, 50]
    assert [answer.through_ns for answer in found[:3]] == [None, None, START + 60 * SECOND]
    assert len(read(found)) == 250


async def test_the_row_before_a_moment_is_found_however_old_it_is() -> None:
    """With its own times; an entity without an earlier row is searched for once."""
    rows = {"sensor.a": [(-5.0, "1"), (-3.0, "2")], "sensor.b": [(-9 * 86_400.0, "3")]}
    fake = FakeRecorder({**rows, "sensor.new": [(0.0, "4"), (1.0, "5")]})

    found, older = await recorder(fake).rows_before(START, ["sensor.a", "sensor.b", "sensor.new"])

    assert {name: (row.s, row.lu - START_S) for name, row in found.items()} == {
        "sensor.a": ("2", -3.0),
        "sensor.b": ("3", -9 * 86_400.0),
    }
    assert older == {}
    assert sum("sensor.new" in names for *_, names, _ in fake.questions) == 1


async def test_only_the_state_is_known_of_a_row_older_than_ten_days() -> None:
    """Home Assistant does not show its times at a bearable cost."""
    fake = FakeRecorder({"sensor.a": [(-90 * 86_400.0, "1")]})

    found, older = await recorder(fake).rows_before(START, ["sensor.a"])

    assert (found, {name: row.s for name, row in older.items()}) == ({}, {"sensor.a": "1"})


async def test_the_rows_that_name_class_and_unit_are_searched_ten_minutes_back() -> None:
    """The last available one, and those after it, of an entity that is unavailable."""
    fake = FakeRecorder(
        {
            "sensor.present": [(1, "1"), (900, "2")],
            "sensor.silent": [(500, "1"), (700, "2"), (800, "unavailable"), (900, "unknown")],
            "sensor.long_silent": [(1, "1"), (300, "unknown")],
            "sensor.later": [(1_001, "1")],
        }
    )

    found = await recorder(fake).naming_rows(START + 1_000 * SECOND, [*fake.rows])

    assert {name: [row.s for row in rows] for name, rows in found.items()} == {
        "sensor.present": ["2"],
        "sensor.silent": ["2", "unavailable", "unknown"],
        "sensor.long_silent": ["unknown"],
    }


async def test_history_of_no_entities_sends_no_request() -> None:
    """A home without entities."""
    fake = FakeRecorder()

    assert await answers(fake, span(0, 300), names=()) == []
    assert fake.questions == []


# A recorder that is behind


class Reasons:
    """What the recorder was waited for, each reason once in a row."""

    def __init__(self) -> None:
        self.found: list[str | None] = []

    def __call__(self, reason: str | None) -> None:
        """Note a reason."""
        if self.found[-1:] != [reason]:
            self.found.append(reason)


async def written(
    fake: FakeRecorder, end_s: float, *, changed_later: Sequence[str] = ()
) -> list[str | None]:
    """Wait until everything up to a moment is written; return what was waited for."""
    reasons = Reasons()
    since_ns = span(end_s, end_s).newest_ns + 1_000
    await recorder(fake).until_written(
        later_changes=lambda: (since_ns, changed_later), obstructed=reasons
    )
    return reasons.found


async def test_a_row_after_the_moment_proves_that_all_before_it_is_written() -> None:
    """The recorder writes in order, whatever its backlog."""
    fake = FakeRecorder({"sensor.a": [(300.5, "1")]})
    fake.backlogs = [{"backlog": 5000}] * 1_000

    assert await written(fake, 300, changed_later=["sensor.a"]) == [None]
    assert fake.now == START_S + 1_000_000


async def test_a_row_at_the_moment_itself_proves_nothing() -> None:
    """Another row of the same microsecond may follow."""
    fake = FakeRecorder({"sensor.a": [(300.0, "1")]})

    await written(fake, 300, changed_later=["sensor.a"])

    assert fake.commands["recorder/info"] > 1


async def test_an_idle_recorder_has_written_everything_after_two_commit_intervals() -> None:
    """What it took from its backlog is committed by then."""
    fake = FakeRecorder()
    fake.backlogs = [IDLE] * 1_000

    assert await written(fake, 300) == [None]
    assert fake.now == START_S + 1_000_000 + 10


async def test_backfill_waits_for_a_locked_recorder_database_indefinitely() -> None:
    """A backup locks it for minutes, and the backlog grows meanwhile."""
    fake = FakeRecorder()
    locked: list[object] = [{**IDLE, "backlog": number} for number in range(1, 201)]
    fake.backlogs = locked + [IDLE] * 1_000

    reasons = await written(fake, 300)

    assert fake.now >= START_S + 1_000_000 + 200 + 10
    assert "its recorder has yet to write 200 events" in reasons
    assert reasons[-1] is None


async def test_a_backlog_of_the_recorder_restarts_the_wait() -> None:
    """An empty backlog in a busy moment proves nothing."""
    fake = FakeRecorder()
    fake.backlogs = [*[IDLE] * 9, {**IDLE, "backlog": 1}, *[IDLE] * 1_000]

    await written(fake, 300)

    assert fake.now == START_S + 1_000_000 + 10 + 10


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({"recording": False}, "does not record"),
        ({"migration_in_progress": True}, "migrating"),
        ({"thread_running": False}, "not running"),
    ],
)
async def test_backfill_waits_for_a_recorder_that_does_not_write(
    status: dict[str, object], reason: str
) -> None:
    """Its empty backlog proves nothing."""
    fake = FakeRecorder()
    fake.backlogs = [{**IDLE, **status}] * 300 + [IDLE] * 1_000

    reasons = await written(fake, 300)

    assert reason in str(reasons[0])
    assert fake.now >= START_S + 1_000_000 + 300


async def test_a_recorder_without_a_status_must_show_a_later_row() -> None:
    """Nothing else proves that it has written."""
    fake = FakeRecorder()
    fake.backlogs = ["?"] * 1_000
    fake.late = [(fake.now + 400, "sensor.a", (301.0, "1"))]

    await written(fake, 300, changed_later=["sensor.a"])

    assert fake.now == START_S + 1_000_000 + 400


async def test_a_later_row_is_searched_in_some_of_many_entities() -> None:
    """Of thousands of entities twenty are requested."""
    fake = FakeRecorder()
    fake.backlogs = [IDLE] * 1_000

    await written(fake, 300, changed_later=[f"sensor.s{number}" for number in range(5_000)])

    assert max(len(names) for *_, names, _ in fake.questions) <= 20


@pytest.mark.parametrize(
    ("answer", "missing"),
    [
        ({"components": ["history", "recorder", "sun"]}, None),
        ({"components": ["history", "sun"]}, "recorder"),
        ({"components": ["recorder"]}, "history"),
        ({"components": []}, None),
        ({}, None),
        ("?", None),
    ],
)
async def test_an_integration_that_is_not_set_up_is_named(
    answer: object, missing: str | None
) -> None:
    """Without the recorder `recorder/info` is never answered."""
    fake = FakeRecorder()
    fake.lists["get_config"] = answer

    assert await recorder(fake).missing_component() == missing


# Which entities


async def test_entities_are_collected_from_every_source() -> None:
    """Those of today and those of the past, each once."""
    fake = FakeRecorder()
    fake.lists = {
        "config/entity_registry/list": [{"entity_id": "sensor.disabled", "disabled_by": "user"}],
        "recorder/list_statistic_ids": [
            {"statistic_id": "sensor.removed_meter"},
            {"statistic_id": "tibber:energy"},
        ],
        "logbook/get_events": [
            {"when": START_S + 1.5, "domain": "homeassistant", "message": "stopped"},
            {"when": START_S + 9.5, "domain": "homeassistant", "message": "started"},
            {"when": START_S + 20.0, "entity_id": "switch.short_lived", "state": "on"},
            {"when": START_S + 21.0, "domain": "automation", "message": "triggered"},
            {"when": "noon"},
        ],
    }
    own = {"states": {"light.here", "Light.odd"}, "captured": {"light.gone", "Light.invalid"}}

    found = await find_entities(recorder(fake), span(0, 60), own=own)

    assert found.entity_ids == [
        "Light.odd",
        "light.gone",
        "light.here",
        "sensor.disabled",
        "sensor.removed_meter",
        "switch.short_lived",
    ]
    assert found.sources == ("states", "captured", "entity_registry", "statistics", "logbook")
    assert len(found.limitations) == 1
    assert found.lifecycle.stopped_ns == [START + 1_500_000_000]
    assert found.lifecycle.started_ns == [START + 9_500_000_000]


async def test_a_refused_source_is_left_out_and_named() -> None:
    """The rest is there all the same."""
    fake = FakeRecorder()

    found = await find_entities(recorder(fake), span(0, 60), own={"states": {"light.here"}})

    assert (found.entity_ids, found.sources) == (["light.here"], ("states",))
    for name, limitation in zip(
        ("entity_registry", "statistics", "logbook"), found.limitations, strict=False
    ):
        assert f"does not show {name}: " in limitation


@pytest.mark.parametrize(
    ("entries", "length_s", "parts"), [(0, 259_199, 4), (5_000, 259_199, 12), (20_001, 50_399, 15)]
)
async def test_a_long_span_of_the_logbook_is_read_in_parts(
    entries: int, length_s: int, parts: int
) -> None:
    """The more entries there are, the shorter the parts, so that no response is too large."""
    fake = FakeRecorder()
    fake.lists["logbook/get_events"] = [{"when": START_S, "entity_id": "light.a"}] * entries

    await recorder(fake).logbook(span(0, length_s))

    assert fake.commands["logbook/get_events"] == parts


async def test_an_entity_id_that_became_invalid_does_not_fail_the_request() -> None:
    """Home Assistant refuses all for one that is invalid and has lost its state."""
    fake = FakeRecorder({"sensor.a": [(1.0, "1")]})
    answer = fake.call

    async def call(command: str, **parameters: object) -> msgspec.Raw:
        if "Sensor.odd" in cast("Sequence[str]", parameters["entity_ids"]):
            raise CommandFailed(command, code="invalid_entity_ids", message="Invalid entity_ids")
        return await answer(command, **parameters)

    found = [a async for a in Recorder(call).history(span(0, 60), ["Sensor.odd", "sensor.a"])]

    assert read(found) == [("sensor.a", 1.0, "1")]


# Odd answers


async def test_a_refused_history_request_raises_the_reason() -> None:
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
async def test_an_unreadable_row_of_history_costs_only_itself(
    odd: object, caplog: pytest.LogCaptureFixture
) -> None:
    """It is left out, and said."""
    fake = FakeRecorder({"sensor.a": [(1.0, "1"), (2.0, odd), (3.0, "3")]})

    found = await answers(fake, span(0, 10))

    assert [state for *_, state in read(found)] == ["1", "3"]
    assert "Left out 1 rows" in caplog.text


@pytest.mark.parametrize("answer", [[], {"sensor.a": 5}, "?"])
async def test_an_answer_that_is_not_history_is_a_protocol_error(answer: object) -> None:
    """Trying again may help."""

    async def call(command: str, **parameters: object) -> msgspec.Raw:
        assert command == "history/history_during_period"
        assert parameters["entity_ids"] == ["sensor.a"]
        return msgspec.Raw(msgspec.json.encode(answer))

    with pytest.raises(SourceProtocolError, match="history_during_period"):
        async for _ in Recorder(call).history(span(0, 10), ["sensor.a"]):
            pass


async def test_an_unreadable_current_state_costs_only_itself() -> None:
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


async def test_states_that_are_not_a_list_are_a_protocol_error() -> None:
    """Trying again may help."""
    fake = FakeRecorder()
    fake.states = {"no": "list"}

    with pytest.raises(SourceProtocolError, match="get_states"):
        await recorder(fake).newest_states()


@pytest.mark.parametrize(
    ("text", "valid"),
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
def test_entity_ids_follow_the_rules_of_today(text: str, *, valid: bool) -> None:
    """Home Assistant's own rule."""
    assert is_entity_id(text) == valid


def test_a_recorded_row_without_last_changed_has_none() -> None:
    """It is that of `last_updated`."""
    assert RecordedState("1", 1.0).lc is None


# Entities whose history fails


async def failing(*, bad: Collection[str], of: int) -> tuple[list[str], int]:
    """Return the entities that are found to fail, and how many questions it took."""
    questions = 0

    async def call(command: str, **parameters: object) -> msgspec.Raw:
        nonlocal questions
        questions += 1
        if {*bad}.intersection(msgspec.convert(parameters["entity_ids"], list[str])):
            raise CommandFailed(command, code="unknown_error", message="Unknown error")
        return msgspec.Raw(b"{}")

    names = [f"sensor.s{number}" for number in range(of)]
    return await Recorder(call).failing(names, span(0, 60)), questions


async def test_entities_whose_history_fails_are_found_by_halving() -> None:
    """One of a thousand costs a few questions more."""
    assert await failing(bad=["sensor.s7"], of=1_000) == (["sensor.s7"], 10 + 2 * 7)


async def test_a_recorder_that_fails_for_every_entity_is_not_searched_for_long() -> None:
    """No entity is to blame then."""
    with pytest.raises(CommandFailed):
        await failing(bad=[f"sensor.s{number}" for number in range(1_000)], of=1_000)
