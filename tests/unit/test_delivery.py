"""Delivery's decisions: the table of answers, halving, and the refusing database."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Literal

import pytest

from app.sinks.batches import FieldName
from app.sinks.outcomes import (
    Accepted,
    Busy,
    Held,
    Outcome,
    OutOfBounds,
    Refused,
    ServerFailed,
    TimedOut,
    TooLarge,
    Unavailable,
)
from app.sinks.retry_policy import (
    Action,
    Advance,
    Attempt,
    DeadLetter,
    DeliveryState,
    Limits,
    Send,
    Split,
    SplitBySeries,
    Wait,
    blamed,
    needs_ping,
    probed_index,
    refusing,
    step,
)

LIMITS = Limits()
START = DeliveryState.starting(LIMITS)
REFUSING = replace(START, refused_in_a_row=100, condition="refusing", probes=4)

REFUSED = Refused(reason="unable to parse", status=400)
TOO_LARGE = TooLarge(reason="request too large")
HELD = Held(reason="unauthorized", status=401, advice="Check INFLUXDB_TOKEN.")
TIMED_OUT = TimedOut(reason="no answer in time")
FAILED = ServerFailed(reason="broke down", status=500)
UNAVAILABLE = Unavailable(reason="reset")


def attempt_of(points: int, *, now_s: float = 0.0, alive: bool = False) -> Attempt:
    """Return an attempt with the points 1 to `points`."""
    return Attempt(points=points, last=points, now_s=now_s, alive=alive)


@pytest.mark.parametrize(
    ("state", "answer", "attempt", "action", "condition"),
    [
        (START, Accepted(), attempt_of(100), Advance(), "ok"),
        (START, REFUSED, attempt_of(100), Split(), "ok"),
        (START, REFUSED, attempt_of(1), DeadLetter("unable to parse"), "ok"),
        (START, TOO_LARGE, attempt_of(100), Split(), "ok"),
        (START, TOO_LARGE, attempt_of(1), DeadLetter("request too large"), "ok"),
        (START, HELD, attempt_of(100), Wait(), "holding"),
        (START, Busy(reason="b"), attempt_of(100), Wait(0.0), "waiting"),
        (START, Busy(reason="b", retry_after_s=7.5), attempt_of(100), Wait(7.5), "waiting"),
        (START, Busy(reason="b", retry_after_s=-1.0), attempt_of(100), Wait(0.0), "waiting"),
        (START, Busy(reason="b", retry_after_s=9e9), attempt_of(100), Wait(300.0), "waiting"),
        (START, TIMED_OUT, attempt_of(5000), Split(wait=True), "waiting"),
        (START, TIMED_OUT, attempt_of(101), Split(wait=True), "waiting"),
        (START, TIMED_OUT, attempt_of(100), Wait(), "waiting"),
        (START, TIMED_OUT, attempt_of(1), Wait(), "waiting"),
        (START, FAILED, attempt_of(5000), Wait(), "waiting"),
        (START, UNAVAILABLE, attempt_of(5000), Wait(), "waiting"),
        (REFUSING, REFUSED, attempt_of(1), Wait(), "refusing"),
        (REFUSING, TOO_LARGE, attempt_of(1), Wait(), "refusing"),
        (REFUSING, FAILED, attempt_of(1, now_s=1e6, alive=True), Wait(), "waiting"),
        (REFUSING, HELD, attempt_of(1), Wait(), "holding"),
        (REFUSING, Accepted(), attempt_of(1), Send(), "ok"),
    ],
)
def test_each_answer_has_its_own_meaning(
    state: DeliveryState,
    answer: Outcome,
    attempt: Attempt,
    action: Action,
    condition: Literal["ok", "waiting", "holding", "refusing"],
) -> None:
    """G7, one row for each answer and size of batch."""
    after, taken = step(state, answer, attempt, LIMITS)

    assert action == taken
    assert condition == after.condition


def test_timeouts_make_batches_smaller_and_success_makes_them_larger() -> None:
    """A timeout halves the target down to the floor of 100, a success doubles it."""
    answers: list[Outcome] = [TIMED_OUT] * 7
    answers += [Accepted()] * 7
    state, targets = START, []
    for answer in answers:
        state, _ = step(state, answer, attempt_of(state.target), LIMITS)
        targets.append(state.target)

    down, up = [2500, 1250, 625, 312, 156, 100, 100], [200, 400, 800, 1600, 3200, 5000, 5000]
    assert down + up == targets


def test_a_size_limit_is_remembered_and_tested_again_only_now_and_then() -> None:
    """After a 413 growth ends at the size that passed, which rises slowly."""
    state, _ = step(START, TOO_LARGE, attempt_of(5000), LIMITS)
    successes = 0
    while state.target < LIMITS.max_points:
        state, _ = step(state, Accepted(), attempt_of(state.target), LIMITS)
        successes += 1

    assert 20 <= successes <= 40


def test_the_size_of_what_is_refused_says_nothing_about_the_next_batch() -> None:
    """Halving a batch with a bad line in it leaves the target alone."""
    state, _ = step(START, REFUSED, attempt_of(5000), LIMITS)

    assert state.target == 5000


def repeated(
    answer: Outcome, times: int, *, points: int, alive: bool, every_s: float = 30.0
) -> list[Action]:
    """Return what follows each time when a batch keeps getting the same answer."""
    state, actions = START, []
    for number in range(times):
        attempt = attempt_of(points, now_s=number * every_s, alive=alive)
        state, action = step(state, answer, attempt, LIMITS)
        actions.append(action)
    return actions


@pytest.mark.parametrize(("answer", "points"), [(FAILED, 50), (UNAVAILABLE, 50), (TIMED_OUT, 50)])
def test_a_batch_that_fails_five_times_on_a_living_sink_is_halved(
    answer: Outcome, points: int
) -> None:
    """Then it is something in the batch that breaks the sink."""
    assert [*[Wait()] * 4, Split(wait=True)] == repeated(answer, 5, points=points, alive=True)


@pytest.mark.parametrize("answer", [FAILED, UNAVAILABLE, TIMED_OUT])
def test_a_batch_is_left_whole_while_the_sink_is_dead(answer: Outcome) -> None:
    """However often it fails, as long as no ping is answered."""
    assert [Wait()] * 50 == repeated(answer, 50, points=100, alive=False)


def test_the_parts_of_a_suspected_batch_are_halved_at_their_first_failure() -> None:
    """Five more failures for every level would take an hour to find one line."""
    state = replace(START, failures=4)
    state, _ = step(state, FAILED, Attempt(points=8, last=8, now_s=0.0, alive=True), LIMITS)

    left = Attempt(points=4, last=4, now_s=1.0, alive=True)
    assert needs_ping(state, FAILED, left, LIMITS)
    assert Split(wait=True) == step(state, FAILED, left, LIMITS)[1]

    behind = Attempt(points=4, last=12, now_s=1.0, alive=True)
    assert not needs_ping(state, FAILED, behind, LIMITS)
    assert Wait() == step(state, FAILED, behind, LIMITS)[1]


def alone(
    answer: Outcome, probe: Outcome | None, times: int, *, every_s: float = 30.0
) -> list[Action]:
    """Return what follows each time a single line fails and the other line gets its answer."""
    state, now_s = replace(START, failures=4), 0.0
    actions: list[Action] = []
    while len(actions) < times:
        now_s += every_s
        is_probe = state.probe_next and probe is not None
        attempt = Attempt(points=1, last=1, now_s=now_s, alive=True, is_probe=is_probe)
        given = probe if is_probe and probe is not None else answer
        state, action = step(state, given, attempt, LIMITS)
        if not is_probe:
            actions.append(action)
    return actions


@pytest.mark.parametrize("answer", [FAILED, TIMED_OUT, UNAVAILABLE])
def test_a_single_line_that_fails_for_ten_minutes_while_others_are_accepted_is_a_dead_letter(
    answer: ServerFailed | TimedOut | Unavailable,
) -> None:
    """The clock starts with the first other line that is accepted."""
    actions = alone(answer, Accepted(), 12)

    assert [*[Wait()] * 11, DeadLetter(answer.reason)] == actions


@pytest.mark.parametrize("answer", [FAILED, TIMED_OUT, UNAVAILABLE])
@pytest.mark.parametrize("probe", [FAILED, TIMED_OUT, UNAVAILABLE, HELD, Busy(reason="b"), None])
def test_a_line_is_not_blamed_while_no_other_is_accepted(
    answer: Outcome, probe: Outcome | None
) -> None:
    """A full disk, a proxy's error page or a wrong address fail for every line, however long."""
    assert [Wait()] * 100 == alone(answer, probe, 100)


def test_a_line_is_not_blamed_for_what_failed_before_the_server_recovered() -> None:
    """Two other lines that fail in a row start the ten minutes again."""
    state = replace(START, failures=10, others_accepted_since_s=0.0)
    for _ in range(2):
        state, _ = step(state, FAILED, Attempt(points=1, last=1, now_s=9e9, is_probe=True), LIMITS)

    failed = Attempt(points=1, last=1, now_s=9e9, alive=True)
    assert Wait() == step(state, FAILED, failed, LIMITS)[1]


def test_a_single_line_is_not_blamed_while_the_sink_is_dead() -> None:
    """An outage of any length makes no dead letter."""
    assert [Wait()] * 100 == repeated(FAILED, 100, points=1, alive=False)


@pytest.mark.parametrize("answer", [Accepted(), REFUSED, HELD, Busy(reason="busy"), TOO_LARGE])
def test_nothing_but_a_failure_needs_a_ping(answer: Outcome) -> None:
    """A sink that answers is alive."""
    state = replace(START, failures=100)

    assert not needs_ping(state, answer, attempt_of(1), LIMITS)


@dataclass
class Run:
    """What became of the lines of one batch."""

    requests: int
    accepted: list[int]
    put_aside: list[int]
    waits: int
    state: DeliveryState


def deliver(
    lines: int,
    refuses: Callable[[range], bool],
    *,
    max_requests: int = 100_000,
    max_waits: int = 0,
    state: DeliveryState = START,
) -> Run:
    """Deliver the lines 1 to `lines` to a database that takes a request whole or not at all."""
    outcome = Run(0, [], [], 0, state)
    parts = deque([range(1, lines + 1)])
    while parts and outcome.requests < max_requests and outcome.waits <= max_waits:
        head = sent = parts[0]
        if refusing(outcome.state, LIMITS):
            index = probed_index(outcome.state, len(head))
            sent = head[index : index + 1]
        outcome.requests += 1
        answer = REFUSED if refuses(sent) else Accepted()
        attempt = Attempt(points=len(sent), last=sent[-1], now_s=0.0)
        outcome.state, action = step(outcome.state, answer, attempt, LIMITS)
        match action:
            case Advance():
                outcome.accepted += parts.popleft()
            case Split():
                parts.popleft()
                parts.extendleft([head[len(head) // 2 :], head[: len(head) // 2]])
            case DeadLetter():
                outcome.put_aside += parts.popleft()
            case Wait():
                outcome.waits += 1
                parts = deque([range(head[0], lines + 1)])
            case Send():
                pass
    return outcome


def bound(lines: int, bad: Collection[int]) -> int:
    """Return the number of requests that the docstring promises."""
    return 1 + 2 * len(bad) * math.ceil(math.log2(lines))


def test_one_bad_line_among_a_thousand_is_found_at_any_place() -> None:
    """With at most 21 requests, and every other line is accepted, in order."""
    for bad in range(1, 1001):
        outcome = deliver(1000, lambda sent, bad=bad: bad in sent)  # type: ignore[misc]

        assert [bad] == outcome.put_aside
        assert [line for line in range(1, 1001) if line != bad] == outcome.accepted
        assert outcome.requests <= bound(1000, [bad]) == 21


@pytest.mark.parametrize("bad", [[1, 1000], [500, 501], [*range(100, 199)], [*range(7, 1000, 37)]])
def test_several_bad_lines_cost_no_more_than_promised(bad: list[int]) -> None:
    """Up to 99 in a row are bad lines, not a bad database."""
    outcome = deliver(1000, lambda sent: not set(bad).isdisjoint(sent))

    assert bad == outcome.put_aside
    assert 1000 - len(bad) == len(outcome.accepted)
    assert outcome.requests <= bound(1000, bad)


def test_a_hundred_refused_in_a_row_mean_a_refusing_database() -> None:
    """99 become dead letters before that is clear; from then on everything is held."""
    outcome = deliver(5000, lambda _: True, max_waits=50)

    assert [*range(1, 100)] == outcome.put_aside
    assert outcome.accepted == []
    assert outcome.state.condition == "refusing"


def test_an_acceptance_between_refusals_starts_the_count_again() -> None:
    """A batch with every second line bad is a batch with many bad lines."""
    outcome = deliver(1000, lambda sent: len(sent) > 1 or sent[0] % 2 == 0)

    assert len(outcome.put_aside) == 500
    assert outcome.waits == 0


def test_a_database_that_takes_lines_again_gets_every_held_line() -> None:
    """Nothing more became a dead letter while it refused, and the order holds."""
    stopped = deliver(1000, lambda _: True, max_waits=7)

    outcome = deliver(901, lambda _: False, max_waits=7, state=stopped.state)

    assert [*range(1, 902)] == outcome.accepted
    assert outcome.state.condition == "ok"


def test_a_long_run_of_bad_lines_does_not_hold_up_the_good_ones_for_ever() -> None:
    """A probe behind the run is accepted, and then the whole run becomes dead letters."""
    outcome = deliver(2000, lambda sent: sent[0] <= 700, max_waits=10)

    assert [*range(1, 701)] == outcome.put_aside
    assert [*range(701, 2001)] == outcome.accepted


def test_probes_reach_the_head_the_newest_and_all_parts_of_the_backlog() -> None:
    """In turn; the third of them spread over the whole backlog."""
    indices = [probed_index(replace(REFUSING, probes=number), 1000) for number in range(60)]

    assert indices[::3] == [0] * 20
    assert indices[1::3] == [999] * 20
    assert len({index // 40 for index in indices[2::3]}) == 20


CONFLICT = Refused(reason="field type conflict", conflict=FieldName("value", "home"))


def refused_singly(
    state: DeliveryState, answer: Outcome, times: int
) -> tuple[DeliveryState, list[Action]]:
    """Return what follows when single lines get the same answer."""
    actions = []
    for _ in range(times):
        state, action = step(state, answer, attempt_of(1), LIMITS)
        actions.append(action)
    return state, actions


def test_a_conflicting_field_is_counted_through_lines_without_it() -> None:
    """An acceptance of lines without the field ends the run, but not the count of the field."""
    state, _ = refused_singly(START, CONFLICT, 50)
    state, _ = step(state, Accepted(), attempt_of(100), LIMITS)
    state, actions = refused_singly(state, CONFLICT, 50)

    assert [*[DeadLetter(CONFLICT.reason)] * 49, Wait()] == actions
    assert refusing(state, LIMITS)
    assert blamed(state, LIMITS) == CONFLICT.conflict
    assert state.condition == "refusing"


def test_a_line_with_the_field_that_is_accepted_ends_its_count() -> None:
    """Then the others are bad lines."""
    state, _ = refused_singly(START, CONFLICT, 99)
    carried = frozenset({FieldName("value", "home")})
    accepted = Attempt(points=1, last=1, now_s=0.0, carried=carried)
    state, _ = step(state, Accepted(), accepted, LIMITS)

    assert not refusing(refused_singly(state, CONFLICT, 99)[0], LIMITS)


@pytest.mark.parametrize(
    ("answer", "points", "action"),
    [
        (OutOfBounds(cause="retention", reason="r", dropped=3), 10, Advance(expired=3)),
        (OutOfBounds(cause="retention", reason="r", dropped=10), 10, Advance(expired=10)),
        (OutOfBounds(cause="retention", reason="r", dropped=11), 10, Split()),
        (OutOfBounds(cause="retention", reason="r", dropped=0), 10, Split()),
        (OutOfBounds(cause="retention", reason="r"), 10, Split()),
        (OutOfBounds(cause="retention", reason="r"), 1, Advance(expired=1)),
        (OutOfBounds(cause="limit", reason="r", dropped=3), 10, SplitBySeries()),
        (OutOfBounds(cause="limit", reason="r", dropped=11), 10, SplitBySeries()),
        (OutOfBounds(cause="limit", reason="r"), 10, SplitBySeries()),
        (OutOfBounds(cause="limit", reason="r", dropped=10), 10, DeadLetter("r")),
        (OutOfBounds(cause="limit", reason="r"), 1, DeadLetter("r")),
    ],
)
def test_a_refusal_for_age_or_a_limit_concerns_those_points_only(
    answer: OutOfBounds, points: int, action: Action
) -> None:
    """However many there are: a thousand in a row leave the database trusted."""
    state, taken = step(START, answer, attempt_of(points), LIMITS)
    for _ in range(1000):
        state, _ = step(state, answer, attempt_of(points), LIMITS)

    assert action == taken
    assert not refusing(state, LIMITS)
    assert state.condition == "ok"


@pytest.mark.parametrize(
    ("batch_points", "splits"), [(100, 50), (1_000, 50), (5_000, 250), (50_000, 2_500)]
)
def test_a_batch_is_split_by_series_only_so_often(batch_points: int, splits: int) -> None:
    """What a limit refuses in part after that becomes dead letters, which may be stored."""
    answer = OutOfBounds(cause="limit", reason="r", dropped=3)
    last = replace(attempt_of(10), splits=splits - 1, batch_points=batch_points)

    assert step(START, answer, last, LIMITS)[1] == SplitBySeries()
    _, action = step(START, answer, replace(last, splits=splits), LIMITS)
    assert isinstance(action, DeadLetter)
    assert action.reason.startswith("r; this point may be stored")


@pytest.mark.parametrize("points", [1, 2])
def test_a_probe_stays_inside_what_is_held(points: int) -> None:
    """Also when that is next to nothing."""
    tried = {probed_index(replace(REFUSING, probes=number), points) for number in range(100)}

    assert set(range(points)) == tried
