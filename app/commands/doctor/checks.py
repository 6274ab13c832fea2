"""What each reading means, and how to mend what is wrong. Pure: readings in, findings out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from statistics import median
from typing import Literal, TypeAlias

import msgspec

from app.commands.doctor.report import Finding, failed, ok, warning
from app.model import MEGABYTE
from app.runtime.connection_errors import Obstacle, Party, obstacle
from app.runtime.errors import CommandFailed, SourceUnavailable
from app.settings import SHORTEST_GOOD_KEY
from app.sinks.outcomes import Accepted, Busy, Held, Outcome, Refused

_OLDEST_TESTED = (2024, 3)
_CLOCK_TOLERANCE_S = 5.0
_SLOW_FSYNC_MS = 50.0
_WINDOW = timedelta(hours=1, minutes=1)
"""A minute more, because Home Assistant's clock is known to a second and the last ends now."""
_RUNNING = "RUNNING"
_MAY_NOT_READ = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}
_ENTITIES_ASKED = 50
_LISTENING_EVERYWHERE = {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound


def access(host: str, *, api_key: str | None) -> Finding | None:
    """Judge who would be answered; None when only holders of a long key are."""
    if api_key is None:
        return listening(host, has_key=False) or ok(
            "access",
            "Without an API_KEY every program of this machine is answered, and nothing that a"
            " recognized proxy forwards. A TCP forwarder, `ssh -L` or a proxy that adds no header"
            " (nginx since 1.29.7) cannot be recognized: set API_KEY if there is one.",
        )
    if len(api_key) >= SHORTEST_GOOD_KEY:
        return None
    return warning(
        "access",
        f"API_KEY has {len(api_key)} characters: it can be guessed, because a right key is"
        " accepted however many wrong ones came before.",
        f"Use at least {SHORTEST_GOOD_KEY} random characters, for example `openssl rand -hex 32`.",
    )


def listening(host: str, *, has_key: bool) -> Finding | None:
    """Warn when it listens for other machines and would answer none of them."""
    if host not in _LISTENING_EVERYWHERE or has_key:
        return None
    return warning(
        "access",
        f"The service would listen on {host}, and answer this machine only: API_KEY is unset.",
        "Set API_KEY, or leave WEBSOCKET_INGESTION_HOST at 127.0.0.1.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """What was read of DATA_DIR, or of the nearest folder above it that is there."""

    folder: str
    is_there: bool
    """Whether DATA_DIR itself is there."""
    trouble: str | None = None
    """Why nothing could be written; None when it could."""
    free_bytes: int = 0
    journal_bytes: int = 0
    fsync_ms: Sequence[float] = ()


def data_dir(disk: Disk) -> Finding:
    """Say whether the folder can be written."""
    if disk.trouble is not None:
        return failed(
            "data_dir",
            f"Nothing can be written in {disk.folder}: {disk.trouble}.",
            "Give the user of the service the right to write there, or set DATA_DIR to another"
            " folder.",
        )
    if not disk.is_there:
        return ok("data_dir", f"DATA_DIR is not there yet, and can be made in {disk.folder}.")
    return ok("data_dir", f"{disk.folder} can be written.")


def disk_space(disk: Disk, *, max_mb: int, min_free_mb: int) -> Finding:
    """Say whether the journal has room to grow to its bound."""
    free_mb, journal_mb = disk.free_bytes // MEGABYTE, disk.journal_bytes // MEGABYTE
    readings = {"free_mb": free_mb, "journal_mb": journal_mb}
    room_mb = free_mb - min_free_mb
    if room_mb <= 0:
        return failed(
            "disk_space",
            f"{free_mb} MB are free, and JOURNAL_MIN_FREE_MB keeps {min_free_mb} of them: the"
            " journal cannot grow, so an outage of the database would lose points.",
            "Make room on the disk, or set DATA_DIR to a larger one.",
            **readings,
        )
    if journal_mb + room_mb < max_mb:
        return warning(
            "disk_space",
            f"{free_mb} MB are free, so the journal can grow to {journal_mb + room_mb} MB and not"
            f" to the {max_mb} of JOURNAL_MAX_MB: it would last through a shorter outage.",
            f"Make room, or set JOURNAL_MAX_MB to {max(1, journal_mb + room_mb)} or less.",
            **readings,
        )
    return ok(
        "disk_space",
        f"{free_mb} MB are free, and the journal takes {max_mb} at most.",
        **readings,
    )


def fsync(disk: Disk) -> Finding:
    """Say how long the disk takes to make something durable."""
    took_ms = round(median(disk.fsync_ms), 2)
    count = len(disk.fsync_ms)
    seen = f"The disk makes a write durable in {took_ms:g} ms (median of {count})"
    if took_ms > _SLOW_FSYNC_MS:
        return warning(
            "fsync",
            f"{seen}, which is slow: each commit of the journal waits for it.",
            "Nothing is lost by it; a faster disk for DATA_DIR makes points durable sooner.",
            median_ms=took_ms,
        )
    return ok("fsync", f"{seen}.", median_ms=took_ms)


PortState: TypeAlias = Literal["free", "ours", "foreign", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """What was found where the service is to listen."""

    state: PortState
    address: str
    detail: str = ""
    """The status of our own service that runs there, or why one cannot listen."""


def port(reading: Port) -> Finding:
    """Say whether the service can listen, or does so already."""
    match reading.state:
        case "free":
            return ok("port", f"{reading.address} is free.")
        case "ours":
            return ok(
                "port",
                f"This service already runs at {reading.address}; it says it is {reading.detail}.",
                running=True,
            )
        case "foreign":
            return failed(
                "port",
                f"At {reading.address} another program listens, or a service that hangs.",
                "Stop it, or set WEBSOCKET_INGESTION_PORT to another port.",
            )
        case "refused":
            return failed(
                "port",
                f"The service cannot listen at {reading.address}: {reading.detail}.",
                "Set WEBSOCKET_INGESTION_HOST to an address of this machine, and"
                " WEBSOCKET_INGESTION_PORT to a port that its user may use.",
            )


def not_reached(name: str, party: Party, address: str, exc: BaseException) -> Finding:
    """Say why there is no connection, from the exception at the bottom of it."""
    found = obstacle(party, exc, url=address)
    if isinstance(exc, SourceUnavailable) and exc.advice is not None:
        found = Obstacle(str(exc), exc.advice)
    whom = party.name[0].upper() + party.name[1:]
    return failed(name, f"{whom} is not reached at {address}: {found.why}.", found.advice)


def not_speaking(address: str, said: str) -> Finding:
    """Say that a connection is accepted, and not answered as Home Assistant would."""
    return failed(
        "home_assistant",
        f"What accepts connections at {address} does not answer as Home Assistant does: {said}.",
        "Check HOME_ASSISTANT_URL; if it is Home Assistant, look at its log: it may hang.",
    )


def reached(address: str, *, ssl_verify: bool) -> Finding:
    """Say that Home Assistant is there, and how safe the way to it is."""
    seen = f"Home Assistant answers at {address}"
    if not address.startswith("wss:"):
        return ok("home_assistant", f"{seen}, without TLS.", tls=False)
    if ssl_verify:
        return ok("home_assistant", f"{seen}; its certificate is valid.", tls=True)
    return warning(
        "home_assistant",
        f"{seen}, and its certificate is not checked (HA_SSL_VERIFY=false): anyone in"
        " between can read the token.",
        "Give it a certificate that this machine trusts, and unset HA_SSL_VERIFY.",
        tls=True,
    )


def unchecked(finding: Finding) -> Finding:
    """Return the finding about the database with a warning that its certificate is not checked."""
    if finding.status != "ok":
        return finding
    return warning(
        finding.name,
        f"{finding.what} Its certificate is not checked (INFLUXDB_SSL_VERIFY=false): a"
        " machine in between can read the token.",
        "Give it a certificate that this machine trusts, and unset INFLUXDB_SSL_VERIFY.",
        **finding.readings,
    )


def token_refused(said: str) -> Finding:
    """Say what to do about a wrong token."""
    return failed(
        "token",
        f"Home Assistant refuses the token: {said}.",
        "In Home Assistant open your profile, Security, create a long-lived access token, and set"
        " HOME_ASSISTANT_TOKEN to it.",
    )


def version(ha_version: str | None, state: str, *, limited: str | None = None) -> Finding:
    """Say whether this Home Assistant is one we know, and running.

    Args:
        ha_version: as it says itself.
        state: its state, as `get_config` says.
        limited: why entities are missing although it runs, with the advice.
    """
    readings = {"ha_version": ha_version, "ha_state": state}
    if limited is not None:
        what, _, advice = limited.partition(". ")
        return warning("version", f"{what}.", advice, **readings)
    if state != _RUNNING:
        return warning(
            "version",
            f"Home Assistant {ha_version} says it is {state}: it is starting or stopping.",
            "Wait until it is RUNNING; until then entities may be missing.",
            **readings,
        )
    if _parsed(ha_version) < _OLDEST_TESTED:
        oldest = ".".join(map(str, _OLDEST_TESTED))
        return warning(
            "version",
            f"Home Assistant {ha_version} is older than all this service is tested with"
            f" ({oldest} and later).",
            "Update Home Assistant; until then this may work or not.",
            **readings,
        )
    return ok("version", f"Home Assistant {ha_version} is {state}.", **readings)


_VERSION_CHARS = 30


def _parsed(ha_version: str | None) -> tuple[int, ...]:
    parts = (ha_version or "")[:_VERSION_CHARS].split(".")[:2]
    return tuple(int(part) for part in parts if part.isdecimal())


class CurrentUser(msgspec.Struct, frozen=True):
    """What `auth/current_user` says, as far as it is read."""

    is_admin: bool = False


def rights(user: CurrentUser | None, *, refused: CommandFailed | None) -> Finding:
    """Say whose token it is, and whether that is enough.

    Args:
        user: None when Home Assistant does not say.
        refused: why it may not subscribe to `state_changed`; None when it may.
    """
    if refused is not None:
        return failed(
            "rights",
            f"The user of the token may not read state changes ({refused.code}).",
            "Create the token as another user, in the group of users or of administrators.",
        )
    if user is None:
        return ok("rights", "The token may read state changes; whose it is was not said.")
    if user.is_admin:
        return ok(
            "rights",
            "The token is an administrator's: it may change everything in Home Assistant. Reading"
            " is enough here; the token of a user who is none would do less harm in wrong hands.",
            is_admin=True,
        )
    return ok(
        "rights",
        "The token is that of a user who is no administrator, which is enough: it reads states,"
        " registries and history.",
        is_admin=False,
    )


class RecorderInfo(msgspec.Struct, frozen=True):
    """What `recorder/info` says, as far as it is read."""

    recording: bool = True
    backlog: int = 0


class Recent(msgspec.Struct, frozen=True):
    """One row of `get_states`, as far as it is read."""

    entity_id: str
    last_changed: datetime
    last_updated: datetime


def no_recorder(refused: CommandFailed, component: str) -> Finding:
    """Say what it means that Home Assistant cannot be asked for history."""
    return warning(
        "recorder",
        f"Home Assistant's {component} cannot be asked ({refused.code}): what is missed while this"
        " service or the connection is away cannot be read back.",
        f"Add `default_config:` or `{component}:` to Home Assistant's configuration.yaml, and"
        " restart it.",
        present=False,
    )


def liveliest(states: Collection[Recent]) -> list[str]:
    """Return the entities to ask history for: those that changed last are likely to have some."""
    newest = sorted(states, key=lambda state: state.last_changed, reverse=True)
    return [state.entity_id for state in newest[:_ENTITIES_ASKED]]


def newest(states: Collection[Recent]) -> datetime | None:
    """Return the newest moment in Home Assistant's states; None without any."""
    return max((state.last_updated for state in states), default=None)


def windows(now: datetime, max_hours: float) -> list[tuple[float, datetime, datetime]]:
    """Return hours back, and the hour that begins there, from the longest way back to the last."""
    ages = [max_hours]
    while ages[-1] > 1.0:
        ages.append(max(1.0, ages[-1] / 2))
    return [(age, now - timedelta(hours=age), now - timedelta(hours=age) + _WINDOW) for age in ages]


def recorder(info: RecorderInfo, *, found_hours: float | None, max_hours: float) -> Finding:
    """Say how far back history was found; None for not at all."""
    readings = {"present": True, "hours_back": found_hours}
    if not info.recording:
        return warning(
            "recorder",
            "Home Assistant's recorder is paused: what is missed meanwhile cannot be read back.",
            "Call the action recorder.enable in Home Assistant.",
            **readings,
        )
    if found_hours is None:
        return warning(
            "recorder",
            "Home Assistant's recorder runs, and no history was found of the last"
            f" {max_hours:g} hours.",
            "When Home Assistant is new that is all right; else look at `recorder:` in its"
            " configuration.yaml and at its disk.",
            **readings,
        )
    if found_hours < max_hours:
        return ok(
            "recorder",
            f"Home Assistant's recorder has history of {_span(found_hours)} ago, and none was found"
            f" of {_span(2 * found_hours)} ago or more: gaps can be filled about so far back.",
            **readings,
        )
    return ok(
        "recorder",
        f"Home Assistant's recorder has history of {_span(found_hours)} ago, as far as"
        " BACKFILL_MAX_HOURS looks back.",
        **readings,
    )


def _span(hours: float) -> str:
    days, rest = divmod(hours, 24)
    if days >= 1 and rest == 0:
        return "a day" if days == 1 else f"{days:g} days"
    return "an hour" if hours == 1 else f"{round(hours, 1):g} hours"


def state_clock(age_s: float | None) -> Finding:
    """Compare Home Assistant's clock with this machine's by the age of its newest state.

    A `Date` header would be that of a proxy in between. Only that a clock is ahead is certain.
    """
    name = "ha_clock"
    if age_s is None:
        return ok(name, "Home Assistant has no state that shows what time it is.")
    if age_s > _CLOCK_TOLERANCE_S:
        return ok(
            name,
            f"Home Assistant's newest state is {_seconds(round(age_s))} old by this machine's"
            " clock: nothing has changed since, or its clock is behind by less than that.",
            newest_state_age_s=round(age_s, 1),
        )
    return clock(
        name,
        "Home Assistant",
        -age_s,
        matters="Points carry Home Assistant's time, so they would lie there.",
    )


def clock(name: str, whose: str, difference_s: float | None, *, matters: str) -> Finding:
    """Say how far another clock is from this machine's; positive when it is ahead.

    The header that it is read from holds whole seconds, so less than some says nothing.
    """
    if difference_s is None:
        return ok(name, f"{whose} does not say what time it is.")
    off_s = round(abs(difference_s))
    if abs(difference_s) <= _CLOCK_TOLERANCE_S:
        return ok(
            name, f"{whose}'s clock and this machine's agree.", difference_s=round(difference_s, 1)
        )
    direction = "ahead of" if difference_s > 0 else "behind"
    return warning(
        name,
        f"{whose}'s clock is {_seconds(off_s)} {direction} this machine's. {matters}",
        "Let both machines set their clocks from the network (NTP).",
        difference_s=round(difference_s, 1),
    )


def _seconds(seconds: int) -> str:
    if seconds < 120:  # noqa: PLR2004 - below two minutes
        return f"{seconds} s"
    return f"{seconds // 60} minutes" if seconds < 7_200 else f"{seconds // 3_600} hours"  # noqa: PLR2004


def written(answer: Outcome, *, version: str, bucket: str) -> Finding:
    """Say what became of a point that was written."""
    match answer:
        case Accepted():
            return ok(
                "database_write",
                f"A point was written to {bucket!r}, in the way of InfluxDB {version[1:]}.",
                api=version,
            )
        case Held(reason=reason, advice=advice, status=status):
            code = "" if status is None else f" ({status})"
            return failed(
                "database_write", f"The database does not take points{code}: {reason}.", advice
            )
        case Refused(reason=reason, advice=advice):
            return failed(
                "database_write",
                f"The database refuses a point: {reason}.",
                advice or "Look at what INFLUXDB_BUCKET names.",
            )
        case Busy(reason=reason):
            return failed(
                "database_write",
                f"The database takes no points for now: {reason}.",
                "Look at its load and its limits, then ask again.",
            )
        case _:
            return failed(
                "database_write",
                f"No point could be written: {answer.reason}.",
                "Look at the log of the database, and check INFLUXDB_URL.",
            )


def data_api(trouble: str | None, address: str) -> Finding:
    """Say whether devices and entities can be sent; `trouble` is why not."""
    if trouble is None:
        return ok("data_api", f"The data API at {address} takes rows.")
    return failed(
        "data_api",
        f"The data API at {address} does not take rows: {trouble}.",
        "Check DATA_API_URL and DATA_API_KEY, and that the data API runs. Events are captured all"
        " the same.",
    )


def read_back(*, found: bool | None, status: int, removed: bool, measurement: str) -> Finding:
    """Say whether the point was found again, and whether it is still there.

    `found` is None when the database did not answer the question, but with `status`.
    """
    left = (
        "It was removed again."
        if removed
        else f"It stays, in the measurement {measurement}: it cannot be removed here."
    )
    readings = {"found": found, "removed": removed}
    if found:
        return ok("database_read_back", f"The point was read back. {left}", **readings)
    if found is None:
        refused = status in _MAY_NOT_READ
        reason = "these credentials may only write" if refused else "that is no answer"
        return warning(
            "database_read_back",
            f"The database accepted the point, and answered {status} when it was asked for it:"
            f" {reason}. {left}",
            "For this service writing is enough; to look at points, use credentials that may read.",
            **readings,
        )
    return warning(
        "database_read_back",
        f"The database accepted the point, and does not find it. {left}",
        "Check that what INFLUXDB_BUCKET names keeps points of now, and that nothing in between"
        " answers in its place.",
        **readings,
    )
