"""A house in which nothing changes until a test changes it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from simulator.fake_home_assistant import (
    Fire,
    JsonObject,
    RegistryKind,
    registry_updated,
    state_changed,
    state_row,
)

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


class StillHouse:
    """Fixed states and registries; each change is one millisecond after the one before."""

    def __init__(
        self, *, fire: Fire | None = None, clock: Callable[[], datetime] | None = None
    ) -> None:
        """Assign; without `fire` (it may be set later) events are not sent.

        With a `clock`, changes have its time, and no two the same.
        """
        self.fire = fire
        self.ha_state = "RUNNING"
        self.rows: dict[RegistryKind, list[JsonObject]] = {}
        self.entries: list[JsonObject] = []
        self.backlog = 0
        self.recording = True
        self.components: list[str] = []
        """The integrations that are set up; empty if Home Assistant does not list them."""
        self.uncommitted_since: str | None = None
        """The `last_updated` from which on rows are not committed yet; None: all are."""
        self.recorded: dict[str, list[JsonObject]] = {}
        """The states that the recorder holds, by entity, oldest first."""
        self.logbook_entries: list[JsonObject] = []
        """The entries of the logbook, each with `when` in seconds since the epoch."""
        self.statistic_ids: list[str] = []
        self._moments = _times_of(clock) if clock else _fictitious_times()
        self._states: dict[str, JsonObject] = {}

    def set_state(
        self, entity_id: str, state: str, attributes: JsonObject | None = None
    ) -> JsonObject:
        """Set the state of an entity, fire the event, and return it.

        Without `attributes` the entity retains its own.
        """
        at = next(self._moments)
        old = self._states.get(entity_id)
        if attributes is None:
            attributes = _object(old["attributes"]) if old else {}
        changed_at = None
        if old and old["state"] == state:
            changed_at = datetime.fromisoformat(str(old["last_changed"]))
        new = state_row(entity_id, state, attributes, at=at, changed_at=changed_at)
        self._states[entity_id] = new
        return self._record(old, new, at)

    def remove(self, entity_id: str) -> JsonObject:
        """Remove an entity, fire the event, and return it."""
        return self._record(self._states.pop(entity_id), None, next(self._moments))

    def change_every(self, seconds: float, *, since_s: float) -> datetime:
        """Space changes evenly from so many seconds ago on; return the time of the first."""
        start = datetime.now(UTC) - timedelta(seconds=since_s)
        self._moments = (start + timedelta(seconds=n * seconds) for n in itertools.count())
        return start

    def restart_time(self, clock: Callable[[], datetime]) -> None:
        """Use this clock for changes, also if it is behind."""
        self._moments = _times_of(clock)

    def restart(self, *, is_clean: bool = True) -> list[JsonObject]:
        """Lose all states, write each again and return the events, as Home Assistant restarts.

        A kill (not `is_clean`) leaves no entry of the stop in the logbook.
        """
        if is_clean:
            self._log("stopped")
        former, self._states = self._states, {}
        self.let_pass(seconds=10)
        events = [
            self.set_state(entity_id, str(row["state"]), _object(row["attributes"]))
            for entity_id, row in former.items()
        ]
        self._log("started")
        return events

    def let_pass(self, *, seconds: float) -> None:
        """Advance the time without a change."""
        moments, pause = self._moments, timedelta(seconds=seconds)
        self._moments = (moment + pause for moment in moments)

    def _log(self, message: str) -> None:
        entry: JsonObject = {"domain": "homeassistant", "message": message}
        self.logbook_entries.append({**entry, "when": next(self._moments).timestamp()})

    def put_row(self, kind: RegistryKind, row: JsonObject, *, id_name: str) -> None:
        """Add a row to a registry and fire the event."""
        self.rows.setdefault(kind, []).append(row)
        if self.fire:
            data = {"action": "create", id_name: row[id_name]}
            self.fire(registry_updated(kind, data, at=next(self._moments)))

    def change_row(self, kind: RegistryKind, id_name: str, row_id: str, **values: object) -> None:
        """Change a row of a registry and fire the event, with the old values."""
        rows = self.rows[kind]
        (row,) = (row for row in rows if row[id_name] == row_id)
        rows[rows.index(row)] = {**row, **values}
        if self.fire:
            name = f"{kind}_id" if id_name == "id" else id_name
            data = {"action": "update", name: row_id, "changes": {n: row.get(n) for n in values}}
            self.fire(registry_updated(kind, data, at=next(self._moments)))

    def rename(self, entity_id: str, new_entity_id: str) -> None:
        """Change the id in the row of an entity and fire the event."""
        rows = self.rows["entity"]
        (row,) = (row for row in rows if row["entity_id"] == entity_id)
        rows[rows.index(row)] = {**row, "entity_id": new_entity_id}
        if self.fire:
            data = {
                "action": "update",
                "entity_id": new_entity_id,
                "old_entity_id": entity_id,
                "changes": {"entity_id": entity_id},
            }
            self.fire(registry_updated("entity", data, at=next(self._moments)))

    def rename_with_history(self, entity_id: str, new_entity_id: str) -> None:
        """Rename an entity as Home Assistant does: its whole history moves to the new id.

        The removal of the old state is an event, and is not recorded.
        """
        at_s = next(self._moments).timestamp()
        (row,) = (row for row in self.rows["entity"] if row["entity_id"] == entity_id)
        self.rows["entity"][self.rows["entity"].index(row)] = {**row, "modified_at": at_s}
        self.rename(entity_id, new_entity_id)
        self.recorded[new_entity_id] = self.recorded.pop(entity_id)
        old = self._states.pop(entity_id)
        if self.fire:
            self.fire(state_changed(old, None, at=next(self._moments)))
        self.set_state(new_entity_id, str(old["state"]), _object(old["attributes"]))

    def states(self) -> Sequence[JsonObject]:
        """Return all states."""
        return list(self._states.values())

    def registry(self, kind: RegistryKind) -> Sequence[JsonObject]:
        """Return the rows of a registry."""
        return self.rows.get(kind, [])

    def config(self) -> JsonObject:
        """Return the configuration, with the state of Home Assistant itself."""
        config = {"state": self.ha_state, "location_name": "Still house"}
        return {**config, "components": self.components} if self.components else config

    def config_entries(self) -> Sequence[JsonObject]:
        """Return `entries`."""
        return self.entries

    def recorder(self) -> JsonObject:
        """Return the backlog, and whether it is recording."""
        return {"backlog": self.backlog, "recording": self.recording}

    def history(
        self, start: datetime, end: datetime, entity_ids: Sequence[str]
    ) -> Mapping[str, Sequence[JsonObject]]:
        """Return the rows recorded between start and end."""
        return {
            entity_id: sorted(
                (
                    row
                    for row in self.recorded.get(entity_id, [])
                    if start < datetime.fromisoformat(str(row["last_updated"])) < end
                    and str(row["last_updated"]) < (self.uncommitted_since or "~")
                ),
                key=lambda row: str(row["last_updated"]),
            )
            for entity_id in entity_ids
        }

    def logbook(self, start: datetime, end: datetime) -> Sequence[JsonObject]:
        """Return the logbook entries between start and end."""
        return [
            entry
            for entry in self.logbook_entries
            if start.timestamp() < float(str(entry["when"])) < end.timestamp()
        ]

    def statistics(self) -> Sequence[JsonObject]:
        """Return the entities with statistics."""
        return [{"statistic_id": entity_id} for entity_id in self.statistic_ids]

    def _record(self, old: JsonObject | None, new: JsonObject | None, at: datetime) -> JsonObject:
        event = state_changed(old, new, at=at)
        row = new or state_row(str((old or {})["entity_id"]), None, {}, at=at)
        self.recorded.setdefault(str(row["entity_id"]), []).append(row)
        if self.fire:
            self.fire(event)
        return event


def now() -> datetime:
    """Return the time, as a clock for a house."""
    return datetime.now(UTC)


def _fictitious_times() -> Iterator[datetime]:
    return (NOON + timedelta(milliseconds=n) for n in itertools.count())


def _times_of(clock: Callable[[], datetime]) -> Iterator[datetime]:
    last = clock()
    while True:
        last = max(clock(), last + timedelta(microseconds=1))
        yield last


def _object(value: object) -> JsonObject:
    assert isinstance(value, dict)
    return value
