"""What to do about an answer: delivery as a pure function of state and answer.

========================  =============================================================
answer                    what follows
========================  =============================================================
Accepted                  the cursor moves; the next batch may be twice as large
Refused, TooLarge         halve and resend; a single line becomes a dead letter
100 such lines in a row,  `refusing`: nothing more is put aside; after growing waits one
none accepted between     line is tried, until one is accepted
Held                      `holding`: the same again after growing waits of up to 60 s
Busy                      wait for the longer of what was asked (at most 300 s) and ours
TimedOut                  wait; the next batch is half as large (at least 100)
ServerFailed,             wait; from the fifth failure of one batch on halve it whenever
Unavailable               the sink answers a ping all the same
a single line fails for   dead letter, if the sink answers a ping all the same; never
10 minutes (5xx, timeout) for Unavailable, which says nothing about the line
========================  =============================================================

How many requests it takes to find the bad lines. Halving visits a binary tree of depth
ceil(log2 n); only a span with a bad line in it is cut, so k bad lines among n cost at most
`1 + 2·k·ceil(log2 n)` requests: 21 for one in 1,000.

What `refusing` means for the lines before it. The first 99 lines of the run are dead letters
already: each was put aside before anyone could know that it was not the line's fault. They stay
there with the database's reason, settled and durable, and are to be retried when the database
is mended. The hundredth and all behind it are held in the journal. A restart forgets
the run, so a refusing database costs at most 99 more dead letters per start.

A probe tries the first held line and one further back in turn, so that neither a database
that takes lines again nor a long run of bad lines at the head goes unnoticed. It moves no cursor:
once one is accepted everything is sent again from the head, in order, and the
run up to that line is treated as bad lines, however long it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from app.sink.answers import (
    Accepted,
    Answer,
    Busy,
    Held,
    Refused,
    ServerFailed,
    TimedOut,
    TooLarge,
    Unavailable,
)
from app.snapshot import SinkState

_GOLDEN = 0.618033988749895


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How patient delivery is."""

    max_points: int = 5_000
    """Points of one request, at most."""
    floor_points: int = 100
    """Timeouts make requests no smaller than this."""
    refusing_after: int = 100
    """Lines refused in a row that mean a refusing database and not bad lines."""
    failures: int = 5
    """Failures of one batch after which the batch itself is suspected."""
    stuck_s: float = 600.0
    """How long a single suspected line may hold up all others, in seconds."""
    max_busy_s: float = 300.0
    """The longest wait that a sink may ask for, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All that delivery remembers between two answers."""

    target: int
    """Points of the next batch, at most."""
    ceiling: int
    """Where growth ends: lowered by TooLarge, slowly raised again by success."""
    condition: SinkState = "ok"
    refused_in_a_row: int = 0
    """Single lines refused since the last acceptance."""
    trusted_through: int = 0
    """A line up to this number was accepted by a probe: refusals before it are bad lines."""
    probes: int = 0
    """Probes made since the database began to refuse everything."""
    failures: int = 0
    """How often the batch in hand failed."""
    suspect_through: int = 0
    """Batches that end here or before are suspected to be what breaks the sink."""
    failing_since_s: float | None = None
    """When the single line in hand first failed, on the caller's clock."""

    @classmethod
    def starting(cls, limits: Limits) -> State:
        """Return the state at the start of the process."""
        return cls(target=limits.max_points, ceiling=limits.max_points)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What was sent, and what is known beside the answer."""

    points: int
    last: int
    """Sequence number of the last point sent."""
    now_s: float
    """Now, on any clock that only moves forward."""
    alive: bool = False
    """Whether the sink answers a ping; only asked when `needs_ping`."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send what is in hand from its beginning, at once."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Send again after a wait: the longest of this one, the backoff's and the breaker's."""

    at_least_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Split:
    """Send the two halves one after the other; at once, or after a wait as in `Wait`."""

    wait: bool = False


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Put the single line aside, durably, then move the cursor behind it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Advance:
    """Move the cursor behind what was sent and count it as written."""


Action: TypeAlias = Send | Wait | Split | DeadLetter | Advance


def step(state: State, answer: Answer, attempt: Attempt, limits: Limits) -> tuple[State, Action]:
    """Return what delivery knows now and what it does next."""
    state = _resized(state, answer, attempt, limits)
    match answer:
        case Accepted():
            return _accepted(state, attempt, limits)
        case Refused() | TooLarge():
            return _refused(state, answer.reason, attempt, limits)
        case Held():
            return replace(state, condition="holding"), Wait()
        case Busy(retry_after_s=asked_s):
            wait_s = min(max(asked_s or 0.0, 0.0), limits.max_busy_s)
            return replace(state, condition="waiting"), Wait(wait_s)
        case _:
            return _failed(state, answer, attempt, limits)


def needs_ping(state: State, answer: Answer, attempt: Attempt, limits: Limits) -> bool:
    """Whether the step wants to know if the sink answers a ping."""
    if not isinstance(answer, TimedOut | ServerFailed | Unavailable) or refusing(state, limits):
        return False
    return state.failures + 1 >= limits.failures or attempt.last <= state.suspect_through


def refusing(state: State, limits: Limits) -> bool:
    """Whether only single lines are sent now, to find out when the database takes one."""
    return state.refused_in_a_row >= limits.refusing_after


def probed_index(state: State, points: int) -> int:
    """Return which of the lines in hand the next probe tries."""
    turn, away_from_head = divmod(state.probes, 2)
    # Multiples of the golden ratio reach all parts of a batch evenly, however long it is.
    return int((turn + 1) * _GOLDEN % 1.0 * points) if away_from_head else 0


def _resized(state: State, answer: Answer, attempt: Attempt, limits: Limits) -> State:
    half = max(limits.floor_points, attempt.points // 2)
    match answer:
        case Accepted():
            # Slowly, so that a proxy's size limit is met once in 30 requests, not in every other.
            raised = state.ceiling + max(1, state.ceiling // 32)
            ceiling = min(limits.max_points, raised)
            return replace(state, ceiling=ceiling, target=min(ceiling, state.target * 2))
        case TooLarge():
            return replace(state, ceiling=half, target=min(state.target, half))
        case TimedOut():
            return replace(state, target=min(state.target, half))
        case _:
            return state


def _accepted(state: State, attempt: Attempt, limits: Limits) -> tuple[State, Action]:
    was_refusing = refusing(state, limits)
    state = replace(_with_next_in_hand(state), condition="ok", refused_in_a_row=0, probes=0)
    if was_refusing:
        trusted = max(state.trusted_through, attempt.last)
        return replace(state, trusted_through=trusted), Send()
    return state, Advance()


def _refused(state: State, reason: str, attempt: Attempt, limits: Limits) -> tuple[State, Action]:
    if refusing(state, limits):
        return replace(state, condition="refusing", probes=state.probes + 1), Wait()
    state = replace(state, condition="ok")
    if attempt.points > 1:
        return _with_next_in_hand(state), Split()
    return _dead_letter(state, reason, attempt, limits)


def _failed(
    state: State,
    answer: TimedOut | ServerFailed | Unavailable,
    attempt: Attempt,
    limits: Limits,
) -> tuple[State, Action]:
    if refusing(state, limits):
        return replace(state, condition="waiting", probes=state.probes + 1), Wait()
    suspected = needs_ping(state, answer, attempt, limits) and attempt.alive
    since_s = attempt.now_s if state.failing_since_s is None else state.failing_since_s
    state = replace(
        state,
        condition="waiting",
        failures=state.failures + 1,
        failing_since_s=since_s if attempt.points == 1 else None,
        suspect_through=attempt.last if suspected else state.suspect_through,
    )
    if suspected and attempt.points > 1:
        return _with_next_in_hand(state), Split(wait=True)
    is_stuck = attempt.now_s - since_s >= limits.stuck_s
    if suspected and is_stuck and not isinstance(answer, Unavailable):
        return _dead_letter(state, answer.reason, attempt, limits)
    if attempt.points > state.target:
        return _with_next_in_hand(state), Split(wait=True)
    return state, Wait()


def _dead_letter(
    state: State, reason: str, attempt: Attempt, limits: Limits
) -> tuple[State, Action]:
    state = _with_next_in_hand(state)
    if attempt.last <= state.trusted_through:
        return state, DeadLetter(reason)
    state = replace(state, refused_in_a_row=state.refused_in_a_row + 1)
    if refusing(state, limits):
        return replace(state, condition="refusing", probes=0), Wait()
    return state, DeadLetter(reason)


def _with_next_in_hand(state: State) -> State:
    return replace(state, failures=0, failing_since_s=None)
