"""What this service relies on in Home Assistant's answers, for the fake and a real one.

Each test creates its own entities, so the suite can run against a home in use.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeAlias
from uuid import uuid4

import msgspec
import pytest

from app.discovery.registries import list_registries
from app.homeassistant.messages import RecordedState, State
from app.homeassistant.recorder import Call, Recorder
from app.model import Times, moment_of, nanoseconds
from app.runtime.errors import CommandFailed

History: TypeAlias = dict[str, list[RecordedState]]

_MICROSECOND = timedelta(microseconds=1)
_ALL: Mapping[str, object] = {
    "significant_changes_only": False,
    "minimal_response": False,
    "no_attributes": False,
    "include_start_time_state": False,
}
_RECORDED_S = 20.0


class SetState(Protocol):
    """Sets the state of an entity, and creates it if needed."""

    def __call__(
        self, entity_id: str, state: str, attributes: Mapping[str, object]
    ) -> Awaitable[None]:
        """Return once the state is set."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """One Home Assistant as the suite sees it."""

    call: Call
    set_state: SetState
    remove: Callable[[str], Awaitable[None]]

    async def states(self, entity_id: str) -> list[State]:
        """Return the rows of `get_states` for an entity."""
        rows = msgspec.json.decode(await self.call("get_states"), type=list[State])
        return [row for row in rows if row.entity_id == entity_id]

    async def history(
        self, entity_ids: Sequence[str], start: datetime, **parameters: object
    ) -> History:
        """Return the recorded rows since `start`."""
        answer = await self.call(
            "history/history_during_period",
            **{**_ALL, "start_time": start.isoformat(), "entity_ids": entity_ids, **parameters},
        )
        return msgspec.json.decode(answer, type=History)

    async def recorded(
        self, entity_id: str, count: int, start: datetime, **parameters: object
    ) -> list[RecordedState]:
        """Wait for `count` rows of an entity, because the recorder lags, and return them."""
        until = time.monotonic() + _RECORDED_S
        while True:
            rows = (await self.history([entity_id], start, **parameters)).get(entity_id, [])
            if len(rows) >= count or time.monotonic() > until:
                return rows
            await asyncio.sleep(0.1)


def new_entity(domain: str = "sensor") -> str:
    """Return an unused entity id."""
    return f"{domain}.contract_{uuid4().hex[:12]}"


def moment(seconds: float) -> datetime:
    """Return the time of a row."""
    return datetime.fromtimestamp(seconds, UTC)


class HomeAssistantContract:
    """Derive from this and provide the fixture `home`."""

    async def test_the_user_of_the_token_can_be_requested(self, home: Home) -> None:
        """`auth/current_user` needs no privilege and includes `is_admin`."""
        user = msgspec.json.decode(await home.call("auth/current_user"), type=dict[str, object])

        assert {"id", "name", "is_owner", "is_admin", "credentials", "mfa_modules"} == user.keys()
        assert isinstance(user["is_admin"], bool)

    async def test_history_has_the_moments_of_the_states(self, home: Home) -> None:
        """To the microsecond; otherwise a backfilled point would differ from the live one."""
        entity_id, start = new_entity(), datetime.now(UTC)
        moments = []
        for number in range(20):
            await home.set_state(entity_id, str(number), {"unit_of_measurement": "W"})
            (state,) = await home.states(entity_id)
            moments.append(state.last_updated)

        rows = await home.recorded(entity_id, 20, start)

        assert moments == [moment(row.lu) for row in rows]
        assert [str(number) for number in range(20)] == [row.s for row in rows]
        assert all(row.lc is None for row in rows)

    async def test_attribute_updates_are_rows_with_last_changed(self, home: Home) -> None:
        """`lc` is present only when it differs from `lu`."""
        entity_id, start = new_entity(), datetime.now(UTC)
        for number in range(3):
            await home.set_state(entity_id, "on", {"n": number})
        (state,) = await home.states(entity_id)

        first, *others = await home.recorded(entity_id, 3, start)

        assert first.lc is None
        assert [moment(first.lu)] * 2 == [row.lc and moment(row.lc) for row in others]
        assert state.last_changed == moment(first.lu)
        assert [msgspec.json.decode(row.a) for row in (first, *others)] == [
            {"n": 0},
            {"n": 1},
            {"n": 2},
        ]

    async def test_attribute_updates_are_left_out_by_default(self, home: Home) -> None:
        """The default is made for charts, so the service requests all rows."""
        entity_id, start = new_entity(), datetime.now(UTC)
        for number in range(3):
            await home.set_state(entity_id, "on", {"n": number})
        await home.set_state(entity_id, "off", {})
        await home.recorded(entity_id, 4, start)

        significant = await home.history([entity_id], start, significant_changes_only=True)

        assert [row.s for row in significant[entity_id]] == ["on", "off"]

    async def test_a_removal_is_a_row_without_a_state(self, home: Home) -> None:
        """An entity that returns has an ordinary row."""
        entity_id, start = new_entity(), datetime.now(UTC)
        await home.set_state(entity_id, "1", {})
        await home.remove(entity_id)
        await home.set_state(entity_id, "2", {})

        rows = await home.recorded(entity_id, 3, start)

        assert [row.s for row in rows] == ["1", None, "2"]

    async def test_an_empty_state_differs_from_a_removal(self, home: Home) -> None:
        """As of a text input that was cleared."""
        entity_id, start = new_entity("input_text"), datetime.now(UTC)
        await home.set_state(entity_id, "x", {})
        await home.set_state(entity_id, "", {})

        rows = await home.recorded(entity_id, 2, start)

        assert [row.s for row in rows] == ["x", ""]

    async def test_both_ends_of_the_time_span_are_exclusive(self, home: Home) -> None:
        """So the service requests a microsecond more on either side."""
        entity_id, start = new_entity(), datetime.now(UTC)
        for number in range(3):
            await home.set_state(entity_id, str(number), {})
        first, second, third = (moment(row.lu) for row in await home.recorded(entity_id, 3, start))

        inner = await home.history(
            [entity_id], first + _MICROSECOND, end_time=(third - _MICROSECOND).isoformat()
        )
        outer = await home.history(
            [entity_id], first - _MICROSECOND, end_time=(third + _MICROSECOND).isoformat()
        )

        assert [second] == [moment(row.lu) for row in inner[entity_id]]
        assert [first, second, third] == [moment(row.lu) for row in outer[entity_id]]

    async def test_the_state_at_the_start_has_the_start_as_its_time(self, home: Home) -> None:
        """It has the state of that moment, and the requested start as its time."""
        entity_id, start = new_entity(), datetime.now(UTC)
        for number in range(3):
            await home.set_state(entity_id, str(number), {"n": number})
        rows = await home.recorded(entity_id, 3, start)
        middle = moment(rows[1].lu) + _MICROSECOND

        answer = await home.history([entity_id], middle, include_start_time_state=True)

        initial, last = answer[entity_id]
        assert ("1", middle, None) == (initial.s, moment(initial.lu), initial.lc)
        assert rows[2] == last

    async def test_an_entity_without_rows_is_left_out(self, home: Home) -> None:
        """Even an unknown entity."""
        entity_id = new_entity()

        assert await home.history([entity_id], datetime.now(UTC) - timedelta(hours=1)) == {}

    async def test_a_time_span_in_the_future_is_empty(self, home: Home) -> None:
        """As when the clocks differ."""
        entity_id = new_entity()
        await home.set_state(entity_id, "1", {})

        assert await home.history([entity_id], datetime.now(UTC) + timedelta(hours=1)) == {}

    @pytest.mark.parametrize(
        ("parameters", "code"),
        [
            ({}, "invalid_format"),
            ({"entity_ids": ["nonsense"]}, "invalid_entity_ids"),
            ({"entity_ids": ["sensor.a", "sensor.a__b"]}, "invalid_entity_ids"),
            ({"entity_ids": ["sensor.A"]}, "invalid_entity_ids"),
            ({"entity_ids": ["sensor._a"]}, "invalid_entity_ids"),
            ({"entity_ids": ["sensor.a_"]}, "invalid_entity_ids"),
            ({"entity_ids": ["sensor.a"], "start_time": "yesterday"}, "invalid_start_time"),
            ({"entity_ids": ["sensor.a"], "end_time": "tomorrow"}, "invalid_end_time"),
        ],
    )
    async def test_invalid_history_requests_are_refused(
        self, home: Home, parameters: Mapping[str, object], code: str
    ) -> None:
        """Each with its error code."""
        start = (datetime.now(UTC) - timedelta(hours=1)).isoformat()

        with pytest.raises(CommandFailed) as refused:
            await home.call("history/history_during_period", **{"start_time": start, **parameters})

        assert refused.value.code == code

    async def test_the_recorder_reports_its_backlog(self, home: Home) -> None:
        """The service waits for an empty backlog before it trusts the history."""
        info = msgspec.json.decode(await home.call("recorder/info"))

        assert isinstance(info["backlog"], int)
        assert info["recording"] is True

    async def test_the_service_reads_every_row_once(self, home: Home) -> None:
        """With its own recorder client, window after window."""
        entity_ids = [new_entity() for _ in range(3)]
        start = datetime.now(UTC)
        moments = []
        for number in range(30):
            entity_id = entity_ids[number % 3]
            await home.set_state(entity_id, str(number // 6), {"n": number})
            (state,) = await home.states(entity_id)
            moments.append((entity_id, state.last_updated))
        for entity_id in entity_ids:
            await home.recorded(entity_id, 10, start)
        times = Times(nanoseconds(moments[0][1]), nanoseconds(moments[-1][1]))
        recorder = Recorder(home.call, commit_interval_s=1.0)

        await recorder.until_written(
            later_changes=lambda: (times.newest_ns, ()), obstructed=lambda _: None
        )
        read = [
            (entity_id, moment(row.lu))
            async for answer in recorder.history(times, entity_ids)
            for entity_id, rows in answer.history.items()
            for row in rows
        ]

        assert sorted(moments) == sorted(read)
        assert times == Times(*(nanoseconds(moment_of(time_ns)) for time_ns in times))

    async def test_the_registries_can_be_read(self, home: Home) -> None:
        """Rows have their required fields and refer to devices and areas that exist."""
        registries = await list_registries(home.call)

        devices = {device.id for device in registries.devices}
        areas = {area.area_id for area in registries.areas}
        assert devices
        assert registries.entities
        assert {entity.device_id for entity in registries.entities} - {None} <= devices
        assert {device.area_id for device in registries.devices} - {None} <= areas
        assert all(entity.platform for entity in registries.entities)
