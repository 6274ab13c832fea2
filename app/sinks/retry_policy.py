"""Retry policy: delivery as a pure function of state and outcome.

========================  =============================================================
outcome                   what follows
========================  =============================================================
Accepted                  the cursor moves; the next batch may be twice as large
Refused, TooLarge         halve and resend; a single line becomes a dead letter
100 such lines in a row,  `refusing`: nothing more becomes a dead letter; after growing
none accepted between     waits one line is tried, until one is accepted
100 lines refused for the `refusing` as well, whatever is accepted between that does not
type of one field         have the field
OutOfBounds: retention    the points that the database dropped are counted as dropped, the
                          others as written; without a number: halve
OutOfBounds: limit        what is refused as a whole becomes dead letters; else split by series:
                          those known to be accepted, and the others. After 50 splits of one
                          batch, or one for 20 of its points if that is more, what is refused
                          in part becomes dead letters too
Held                      `holding`: the same again after growing waits of up to 60 s
Busy                      wait for the longer of Retry-After (at most 300 s) and our backoff
TimedOut                  wait; the next batch is half as large (at least 100)
ServerFailed,             wait; from the fifth failure of one batch on halve it whenever
Unavailable               the sink answers a ping nevertheless
a single line that fails  dead letter, if each time another line was accepted meanwhile
for 10 minutes
========================  =============================================================

How many requests it takes to find the bad lines. Halving visits a binary tree of depth
ceil(log2 n); only a span with a bad line in it is cut, so k bad lines among n cost at most
`1 + 2·k·ceil(log2 n)` requests: 21 for one in 1,000.

For a limit it takes three when all accepted series are known: the batch, these, the others. A
split takes two, so no batch takes more than 101, or a tenth of its points. What is accepted in
such a batch is known from then on.

What `refusing` means for the lines before it. The first 99 lines of the run are dead letters
already: each became one before anyone could know that it was not the line's fault. They keep
the database's reason and can be retried when the database is fixed. The hundredth and all behind
it stay in the journal. A restart forgets the run, so a refusing database costs at most 99 more
dead letters per start.

A refusal for age or for a limit says nothing about other lines, so it neither begins nor
continues a run.

A probe sends one other line, to learn whether the database takes any. It moves no cursor. While
refusing, probes try the first line, the newest, and one in between in turn; once one is accepted
everything is sent again from the first, in order, and the run up to that line is treated as bad
lines, however long it is. A field's type is only probed with lines that have the field. While a
single line makes the server fail, every other request is a probe with a line that was accepted
before, or, if there is none, with a later one: an error that every line meets is the server's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from app.health import SinkState
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

_GOLDEN = 0.618033988749895
_UNTRIED = "; this point may be stored: not every series of its batch was tried alone"
_MOST_CONFLICTS = 20
"""Fields whose refusals are counted at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of the policy."""

    max_points: int = 5_000
    """Points of one request, at most."""
    floor_points: int = 100
    """Timeouts make requests no smaller than this."""
    refusing_after: int = 100
    """Lines refused in a row that mean a refusing database and not bad lines."""
    failures: int = 5
    """Failures of one batch after which the batch itself is suspected."""
    stuck_s: float = 600.0
    """How long a line may fail while others are accepted, in seconds."""
    max_busy_s: float = 300.0
    """The longest wait that a sink may ask for, in seconds."""
    splits: int = 50
    """How often any batch may be split by series; smaller ones never need more."""
    points_per_split: int = 20
    """Larger batches may be split once for so many points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryState:
    """What delivery remembers between two requests."""

    target: int
    """Points of the next batch, at most."""
    ceiling: int
    """Where growth ends: lowered by TooLarge, slowly raised again by success."""
    condition: SinkState = "ok"
    refused_in_a_row: int = 0
    """Single lines refused since the last acceptance."""
    conflicts: Mapping[FieldName, int] = field(default_factory=dict)
    """Single lines refused for the type of a field since a line with that field was accepted."""
    trusted_through: int = 0
    """A line up to this number was accepted by a probe: refusals before it are bad lines."""
    probes: int = 0
    """Probes made since the database began to refuse everything."""
    failures: int = 0
    """How often the current batch failed."""
    suspect_through: int = 0
    """Batches that end here or before are suspected of making the sink fail."""
    probe_next: bool = False
    """Whether the next request tries another line than the single one that keeps failing."""
    probes_failed: int = 0
    """Such requests that failed in a row."""
    others_accepted_since_s: float | None = None
    """Since when other lines were accepted while the current one failed; caller's clock."""

    @classmethod
    def starting(cls, limits: Limits) -> DeliveryState:
        """Return the state at the start of the process."""
        return cls(target=limits.max_points, ceiling=limits.max_points)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What was sent, and what is known apart from the outcome."""

    points: int
    last: int
    """Sequence number of the last point sent."""
    now_s: float
    """Now, on a monotonic clock."""
    alive: bool = False
    """Whether the sink answers a ping; only tried when `needs_ping`."""
    is_probe: bool = False
    """Whether it was another line than the one that keeps failing."""
    carried: frozenset[FieldName] = frozenset()
    """Which fields of `State.conflicts` the lines have; only known of accepted ones."""
    splits: int = 0
    """How often the batch it is a piece of was split by series."""
    batch_points: int = 0
    """How many points that batch has; 0 when it was not split."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send the current batch from its beginning, at once."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Send again after a wait: the longest of this one, the backoff's and the breaker's."""

    at_least_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Split:
    """Send the two halves one after the other; at once, or after a wait as in `Wait`."""

    wait: bool = False


@dataclass(frozen=True, slots=True)
class SplitBySeries:
    """Send two pieces one after the other, neither of which has a part of a series.

    Of a single series the two halves.
    """


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Store what was sent as dead letters, durably, then move the cursor behind it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Advance:
    """Move the cursor behind what was sent and count it as written, but for some points."""

    expired: int = 0
    """How many of the points are older than the database's retention, and were not stored."""


Action: TypeAlias = Send | Wait | Split | SplitBySeries | DeadLetter | Advance


def step(  # noqa: PLR0911 - a table: a row each
    state: DeliveryState, outcome: Outcome, attempt: Attempt, limits: Limits
) -> tuple[DeliveryState, Action]:
    """Return the new state and what to do next."""
    if attempt.is_probe:
        return _probed(state, outcome, attempt), Wait()
    state = _resized(state, outcome, attempt, limits)
    match outcome:
        case Accepted():
            return _accepted(state, attempt, limits)
        case Refused() | TooLarge():
            return _refused(state, outcome, attempt, limits)
        case OutOfBounds():
            return _out_of_bounds(state, outcome, attempt, limits)
        case Held():
            return replace(state, condition="holding"), Wait()
        case Busy(retry_after_s=asked_s):
            wait_s = min(max(asked_s or 0.0, 0.0), limits.max_busy_s)
            return replace(state, condition="waiting"), Wait(wait_s)
        case _:
            return _failed(state, outcome, attempt, limits)


def needs_ping(state: DeliveryState, outcome: Outcome, attempt: Attempt, limits: Limits) -> bool:
    """Whether the step depends on the sink answering a ping."""
    if not isinstance(outcome, TimedOut | ServerFailed | Unavailable):
        return False
    if attempt.is_probe or refusing(state, limits):
        return False
    return state.failures + 1 >= limits.failures or attempt.last <= state.suspect_through


def refusing(state: DeliveryState, limits: Limits) -> bool:
    """Whether only single lines are sent, to find out when the database accepts one."""
    refused = (state.refused_in_a_row, *state.conflicts.values())
    return max(refused) >= limits.refusing_after


def blamed(state: DeliveryState, limits: Limits) -> FieldName | None:
    """Return the field whose type the database refuses in every line; None when there is none."""
    for conflict, refused in state.conflicts.items():
        if refused >= limits.refusing_after:
            return conflict
    return None


def probed_index(state: DeliveryState, points: int) -> int:
    """Return which of the lines in the backlog the next probe tries."""
    turn, place = divmod(state.probes, 3)
    if place == 0:
        return 0
    if place == 1:
        return points - 1
    # Multiples of the golden ratio reach all parts of a backlog evenly, however long it is.
    return int((turn + 1) * _GOLDEN % 1.0 * points)


def _resized(
    state: DeliveryState, outcome: Outcome, attempt: Attempt, limits: Limits
) -> DeliveryState:
    half = max(limits.floor_points, attempt.points // 2)
    match outcome:
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


def _accepted(
    state: DeliveryState, attempt: Attempt, limits: Limits
) -> tuple[DeliveryState, Action]:
    was_refusing = refusing(state, limits)
    state = replace(_for_next_batch(state), condition="ok", refused_in_a_row=0, probes=0)
    if was_refusing:
        trusted = max(state.trusted_through, attempt.last)
        return replace(state, trusted_through=trusted, conflicts={}), Send()
    if attempt.carried:
        left = {
            name: count for name, count in state.conflicts.items() if name not in attempt.carried
        }
        state = replace(state, conflicts=left)
    return state, Advance()


def _refused(
    state: DeliveryState, outcome: Refused | TooLarge, attempt: Attempt, limits: Limits
) -> tuple[DeliveryState, Action]:
    if refusing(state, limits):
        return replace(state, condition="refusing", probes=state.probes + 1), Wait()
    state = _for_next_batch(replace(state, condition="ok"))
    if attempt.points > 1:
        return state, Split()
    if attempt.last <= state.trusted_through:
        return state, DeadLetter(outcome.reason)
    conflict = outcome.conflict if isinstance(outcome, Refused) else None
    state = replace(
        state,
        refused_in_a_row=state.refused_in_a_row + 1,
        conflicts=_with_one_more(state.conflicts, conflict),
    )
    if refusing(state, limits):
        return replace(state, condition="refusing", probes=0), Wait()
    return state, DeadLetter(outcome.reason)


def _out_of_bounds(
    state: DeliveryState, outcome: OutOfBounds, attempt: Attempt, limits: Limits
) -> tuple[DeliveryState, Action]:
    if refusing(state, limits):
        return replace(state, condition="refusing", probes=state.probes + 1), Wait()
    state = _for_next_batch(replace(state, condition="ok"))
    dropped = 1 if attempt.points == 1 else outcome.dropped or 0
    if outcome.cause == "limit":
        return state, _over_limit(outcome, attempt, limits, dropped=dropped)
    if 0 < dropped <= attempt.points:
        if dropped < attempt.points:
            state = replace(state, refused_in_a_row=0)
        return state, Advance(expired=dropped)
    return state, Split()


def _over_limit(
    outcome: OutOfBounds, attempt: Attempt, limits: Limits, *, dropped: int
) -> DeadLetter | SplitBySeries:
    if dropped == attempt.points:
        return DeadLetter(outcome.reason)
    if attempt.splits >= max(limits.splits, attempt.batch_points // limits.points_per_split):
        return DeadLetter(outcome.reason + _UNTRIED)
    return SplitBySeries()


def _failed(
    state: DeliveryState,
    outcome: TimedOut | ServerFailed | Unavailable,
    attempt: Attempt,
    limits: Limits,
) -> tuple[DeliveryState, Action]:
    if refusing(state, limits):
        return replace(state, condition="waiting", probes=state.probes + 1), Wait()
    suspected = needs_ping(state, outcome, attempt, limits) and attempt.alive
    state = replace(
        state,
        condition="waiting",
        failures=state.failures + 1,
        suspect_through=attempt.last if suspected else state.suspect_through,
    )
    if attempt.points > 1:
        if suspected or attempt.points > state.target:
            return _for_next_batch(state), Split(wait=True)
        return state, Wait()
    if not suspected:
        return replace(state, probes_failed=0, others_accepted_since_s=None), Wait()
    since_s = state.others_accepted_since_s
    is_stuck = since_s is not None and attempt.now_s - since_s >= limits.stuck_s
    if is_stuck and not state.probes_failed:
        return _for_next_batch(state), DeadLetter(outcome.reason)
    return replace(state, probe_next=True), Wait()


def _probed(state: DeliveryState, outcome: Outcome, attempt: Attempt) -> DeliveryState:
    """Return the state after a probe with another line than the one that keeps failing."""
    state = replace(state, probe_next=False, probes=state.probes + 1)
    match outcome:
        case Accepted():
            since_s = state.others_accepted_since_s
            since_s = attempt.now_s if since_s is None else since_s
            return replace(
                state, others_accepted_since_s=since_s, probes_failed=0, refused_in_a_row=0
            )
        case Refused() | TooLarge() | OutOfBounds():
            return state
    # The other line may be as bad as this one; two in a row are an error of the server.
    if state.probes_failed == 0:
        return replace(state, probes_failed=1)
    return replace(state, probes_failed=2, others_accepted_since_s=None)


def _with_one_more(
    conflicts: Mapping[FieldName, int], conflict: FieldName | None
) -> Mapping[FieldName, int]:
    if conflict is None:
        return conflicts
    counts = {**conflicts, conflict: conflicts.get(conflict, 0) + 1}
    if len(counts) > _MOST_CONFLICTS:
        del counts[min(counts, key=counts.__getitem__)]
    return counts


def _for_next_batch(state: DeliveryState) -> DeliveryState:
    return replace(
        state, failures=0, probe_next=False, probes_failed=0, others_accepted_since_s=None
    )
