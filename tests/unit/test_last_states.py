"""The newest change of each entity, before and after a gap and a restart."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from app.backfill.last_states import LastStates
from app.model import NOWHERE, Change, Gap, LastState


def change(
    entity_id: str, state: str | None, time_ns: int, *, changed_ns: int | None = None
) -> Change:
    """Return a change as the pipeline sees it."""
    return Change(
        entity_id,
        entity_id.partition(".")[0],
        time_ns,
        state,
        None,
        None,
        b"{}",
        None,
        None,
        None,
        None,
        NOWHERE,
        changed_ns=time_ns if changed_ns is None else changed_ns,
    )


def gap(start_ns: int, *, number: int = 1) -> Gap:
    """Return a gap that begins there."""
    return Gap(
        id=number, start_ns=start_ns, end_ns=start_ns + 100, reason="restart", found_at=0, edge_at=0
    )


def test_the_last_state_is_that_of_the_newest_change() -> None:
    """Its state, since when it is so, and when the change was."""
    states = LastStates()
    states.update([change("sensor.a", "1", 10), change("sensor.b", "x", 11)])
    states.update([change("sensor.a", "1", 20, changed_ns=10)])

    assert {
        "sensor.a": LastState("1", 10, 20),
        "sensor.b": LastState("x", 11, 11),
    } == states.before(gap(50))
    assert states.entity_ids() == {"sensor.a", "sensor.b"}


def test_a_change_after_a_gap_began_hides_the_state_before_it() -> None:
    """The recorder is queried instead."""
    states = LastStates()
    states.update([change("sensor.a", "1", 10), change("sensor.b", "x", 60)])

    assert {"sensor.a": LastState("1", 10, 10)} == states.before(gap(50))


def test_states_before_a_gap_are_retained_until_it_is_closed() -> None:
    """Live events continue meanwhile."""
    states = LastStates()
    states.update([change("sensor.a", "1", 10)])
    states.retain_before(gap(50))
    states.update([change("sensor.a", "2", 90)])

    assert {"sensor.a": LastState("1", 10, 10)} == states.before(gap(50))
    states.discard_before(gap(50))
    assert states.before(gap(50)) == {}


def test_a_change_lost_in_a_crash_is_not_a_state_before_the_gap() -> None:
    """It was saved as the newest state; the recorder has it once more, and it is no past."""
    states = LastStates()
    states.open({"sensor.a": LastState("2", 60, 60)}, through=7)

    states.retain_before(gap(50))

    assert states.before(gap(50)) == {}


def test_states_before_gaps_are_retained_for_a_bounded_number_of_gaps() -> None:
    """The oldest is forgotten first: it asks the recorder."""
    states = LastStates()
    states.update([change("sensor.a", "1", 10)])
    for number in range(1, 22):
        states.retain_before(gap(50, number=number))
    states.update([change("sensor.a", "2", 90)])

    assert states.before(gap(50, number=1)) == {}
    assert states.before(gap(50, number=2)) == states.before(gap(50, number=21)) != {}


def test_only_changed_states_are_saved() -> None:
    """And what changed while it was being saved is saved the next time."""
    states = LastStates()
    states.update([change("sensor.a", "1", 10), change("sensor.b", "x", 11)])
    saved = states.states_to_save()
    states.update([change("sensor.b", "y", 20)])
    states.states_to_save()

    states.mark_saved(saved)

    assert {"sensor.a", "sensor.b"} == set(saved)
    assert {"sensor.b": LastState("y", 20, 20)} == states.states_to_save()


def test_states_whose_save_failed_are_saved_next_time() -> None:
    """Nothing is forgotten before it is on disk."""
    states = LastStates()
    states.update([change("sensor.a", "1", 10)])
    first = states.states_to_save()

    assert first == states.states_to_save()


def test_last_states_after_a_restart_are_the_saved_and_the_recalled_ones() -> None:
    """What is recalled from the journal's newest points is newer than what was saved."""
    states = LastStates()
    states.open({"sensor.a": LastState("1", 10, 10), "sensor.b": LastState("x", 1, 1)}, through=7)
    states.recall("sensor.a", LastState("2", 20, 20))

    assert states.through == 7
    assert states.get("sensor.a") == LastState("2", 20, 20)
    assert states.get("sensor.c") is None
    assert states.states_to_save() == {"sensor.a": LastState("2", 20, 20)}


def test_a_backfilled_change_updates_the_last_state_when_it_is_newer() -> None:
    """Where it is newer; a later live change stays the newest, also a removal."""
    states = LastStates()
    states.update([change("sensor.a", "1", 10), change("sensor.b", "9", 90)])

    states.backfilled(
        [
            change("sensor.a", "2", 20),
            change("sensor.b", "8", 30),
            change("sensor.c", "7", 40),
            change("sensor.c", None, 45),
        ]
    )

    assert states.before(gap(100)) == {
        "sensor.a": LastState("2", 20, 20),
        "sensor.b": LastState("9", 90, 90),
        "sensor.c": LastState(None, 45, 45),
    }
    assert states.states_to_save().keys() == {"sensor.a", "sensor.b", "sensor.c"}


def test_a_backfilled_change_is_a_state_before_a_later_gap() -> None:
    """Also when that was found before the first was filled; later changes do not."""
    states = LastStates()
    states.update([change("sensor.a", "1", 10)])
    states.retain_before(gap(50, number=1))
    states.retain_before(gap(200, number=2))

    states.backfilled([change("sensor.a", "2", 120), change("sensor.a", "3", 250)])

    assert states.before(gap(50, number=1)) == {"sensor.a": LastState("1", 10, 10)}
    assert states.before(gap(200, number=2)) == {"sensor.a": LastState("2", 120, 120)}


def test_states_before_the_rest_of_a_gap_include_backfilled_changes() -> None:
    """A fill that was interrupted goes on from there."""
    states = LastStates()
    states.update([change("sensor.a", "1", 10), change("sensor.b", "1", 10)])
    states.retain_before(gap(50))
    states.backfilled([change("sensor.a", "2", 80), change("sensor.b", "2", 140)])

    rest = replace(gap(50), filled_ns=100)

    assert states.before(rest) == {"sensor.a": LastState("2", 80, 80)}


def test_entities_that_changed_since_a_time_are_listed() -> None:
    """They may prove that the recorder has written what was before."""
    states = LastStates()
    states.update([change("sensor.a", "1", 10), change("sensor.b", "1", 60)])

    assert states.changed_since(60) == ["sensor.b"]
    assert states.changed_since(61) == []


def test_the_first_change_of_an_entity_since_the_start_is_known() -> None:
    """A later change does not replace it, a new entity of that id does, and a removal is none."""
    states = LastStates()
    later = msgspec.structs.replace(change("sensor.a", "2", 20), previous_state="1")
    states.update([change("sensor.a", "1", 10), later, change("sensor.b", None, 30)])
    first = states.first_seen_ns("sensor.a")
    states.update([change("sensor.a", None, 40), change("sensor.a", "1", 50)])

    assert (first, states.first_seen_ns("sensor.a")) == (10, 50)
    assert states.first_seen_ns("sensor.b") is None
