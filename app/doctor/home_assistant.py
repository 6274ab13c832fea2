"""Checks of Home Assistant: sends every kind of request that the service sends, once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from app.container import Container
from app.doctor import checks
from app.doctor.checks import CurrentUser, Recent, RecorderInfo
from app.doctor.findings import Finding, failed, ok
from app.homeassistant.commands import open_commands
from app.runtime.connection_errors import HOME_ASSISTANT, limited_mode
from app.runtime.errors import CommandFailed, SourceAuthRejected, SourceError, SourceProtocolError
from app.runtime.logging import shown_url
from app.runtime.tolerant_json import UNREADABLE

if TYPE_CHECKING:
    from app.homeassistant.commands import Commands
    from app.settings import Settings

NAMES = ("home_assistant", "token", "version", "ha_clock", "recorder", "rights")

_CONNECT_S = 6.0
_ANSWER_S = 8.0


class _Config(msgspec.Struct, frozen=True):
    state: str = "RUNNING"
    recovery_mode: object = False
    safe_mode: object = False


async def check(
    chosen: Settings, *, clock: Callable[[], datetime]
) -> AsyncGenerator[Finding, None]:
    """Yield the findings in the order of NAMES, up to one that makes the rest impossible."""
    url = shown_url(chosen.home_assistant.url)
    answers = checks.reached(url, ssl_verify=chosen.home_assistant.ssl_verify)
    is_connected = False
    try:
        endpoint = Container(settings=chosen).endpoint(
            open_timeout_s=_CONNECT_S, auth_timeout_s=_CONNECT_S, command_timeout_s=_ANSWER_S
        )
        async with open_commands(endpoint) as commands:
            is_connected = True
            yield answers
            yield ok("token", "Home Assistant accepts the token.")
            async for finding in _commands(commands, chosen, clock):
                yield finding
    except SourceAuthRejected as exc:
        yield answers
        yield checks.token_refused(str(exc))
    except SourceProtocolError as exc:
        if not is_connected:  # otherwise the command has yielded a finding
            yield checks.not_speaking(url, str(exc))
    except SourceError as exc:
        if not is_connected:
            yield checks.not_reached(NAMES[0], HOME_ASSISTANT, url, exc)


async def _commands(
    commands: Commands, chosen: Settings, clock: Callable[[], datetime]
) -> AsyncIterator[Finding]:
    steps: dict[str, Callable[[], Awaitable[Finding]]] = {
        "version": lambda: _version(commands),
        "ha_clock": lambda: _clock(commands, clock),
        "recorder": lambda: _recorder(commands, chosen.backfill.max_hours),
        "rights": lambda: _rights(commands),
    }
    for name, step in steps.items():
        try:
            yield await step()
        except (SourceError, *UNREADABLE) as exc:
            yield failed(
                name,
                f"Home Assistant does not answer as expected: {exc}.",
                "Look at Home Assistant's log; it may be overloaded, starting or stopping.",
            )
            return


async def _version(commands: Commands) -> Finding:
    config = msgspec.json.decode(await commands.call("get_config"), type=_Config)
    limited = limited_mode(recovery=config.recovery_mode is True, safe=config.safe_mode is True)
    return checks.version(commands.ha_version, config.state, limited=limited)


async def _clock(commands: Commands, clock: Callable[[], datetime]) -> Finding:
    states = await _states(commands)
    newest = checks.newest(states)
    age_s = None if newest is None else (clock() - newest).total_seconds()
    finding = checks.state_clock(age_s)
    return replace(finding, readings={**finding.readings, "entities": len(states)})


async def _states(commands: Commands) -> list[Recent]:
    return msgspec.json.decode(await commands.call("get_states"), type=list[Recent])


async def _recorder(commands: Commands, max_hours: float) -> Finding:
    try:
        info = msgspec.json.decode(await commands.call("recorder/info"), type=RecorderInfo)
    except CommandFailed as exc:
        return checks.no_recorder(exc, "recorder")
    try:
        hours = await _hours_back(commands, await _states(commands), max_hours)
    except CommandFailed as exc:
        return checks.no_recorder(exc, "history")
    return checks.recorder(info, found_hours=hours, max_hours=max_hours)


async def _hours_back(commands: Commands, states: list[Recent], max_hours: float) -> float | None:
    """Return the age of the oldest hour, of those tried, that has history; None without any."""
    entity_ids = checks.recently_changed(states)
    now = checks.newest(states) or datetime.now().astimezone()
    for hours, start, end in checks.windows(now, max_hours):
        answer = await commands.call(
            "history/history_during_period",
            start_time=start.isoformat(),
            end_time=end.isoformat(),
            entity_ids=entity_ids,
            include_start_time_state=False,
            significant_changes_only=False,
            minimal_response=True,
            no_attributes=True,
        )
        if msgspec.json.decode(answer, type=dict[str, msgspec.Raw]):
            return hours
    return None


async def _rights(commands: Commands) -> Finding:
    user, refused = None, None
    with suppress(CommandFailed):  # it is only shown; the subscription is what counts
        user = msgspec.json.decode(await commands.call("auth/current_user"), type=CurrentUser)
    try:
        # The last command: from now on events arrive in between.
        await commands.call("subscribe_events", event_type="state_changed")
    except CommandFailed as exc:
        refused = exc
    return checks.rights(user, refused=refused)
