"""What each reading means, and how to fix what is wrong. Pure: readings in, findings out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from statistics import median
from typing import Literal, TypeAlias

import msgspec

from app.doctor.findings import Finding, failed, ok, warning
from app.model import MEGABYTE
from app.runtime.connection_errors import Obstacle, Party, obstacle
from app.runtime.errors import CommandFailed, SourceUnavailable
from app.settings import SHORTEST_GOOD_KEY
from app.sinks.outcomes import Accepted, Busy, Held, Outcome, Refused

_OLDEST_TESTED = (2024, 3)
_CLOCK_TOLERANCE_S = 5.0
_SLOW_FSYNC_MS = 50.0
_WINDOW = timedelta(hours=1, minutes=1)
"""A minute longer than an hour: Home Assistant's clock is known only to the second."""
_RUNNING = "RUNNING"
_MAY_NOT_READ = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}
_ENTITIES_ASKED = 50
_LISTENING_EVERYWHERE = {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound


def access(host: str, *, api_key: str | None) -> Finding | None:
    """Return who would be answered; None when a long key is required."""
    if api_key is None:
        return listening(host, has_key=False) or ok(
            "access",
            "Without an API_KEY every program of this machine is answered, and no request that a"
            " recognized proxy forwards. A TCP forwarder, `ssh -L` or a proxy that adds no header"
            " (nginx since 1.29.7) cannot be recognized: set API_KEY if you use one.",
        )
    if len(api_key) >= SHORTEST_GOOD_KEY:
        return None
    return warning(
        "access",
        f"API_KEY has only {len(api_key)} characters and can be guessed: the right key is"
        " accepted however many wrong ones came before.",
        f"Use at least {SHORTEST_GOOD_KEY} random characters, for example `openssl rand -hex 32`.",
    )


def listening(host: str, *, has_key: bool) -> Finding | None:
    """Warn when the service listens for other machines but would answer none."""
    if host not in _LISTENING_EVERYWHERE or has_key:
        return None
    return warning(
        "access",
        f"The service would listen on {host} but answer only this machine: API_KEY is unset.",
        "Set API_KEY, or leave WEBSOCKET_INGESTION_HOST at 127.0.0.1.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """What was read of DATA_DIR, or of the nearest folder above it that exists."""

    folder: str
    is_there: bool
    """Whether DATA_DIR itself exists."""
    problem: str | None = None
    """Why writing failed; None when it succeeded."""
    free_bytes: int = 0
    journal_bytes: int = 0
    fsync_ms: Sequence[float] = ()


def data_dir(disk: Disk) -> Finding:
    """Return whether the folder can be written."""
    if disk.problem is not None:
        return failed(
            "data_dir",
            f"{disk.folder} cannot be written: {disk.problem}.",
            "Let the user of the service write there, or set DATA_DIR to another folder.",
        )
    if not disk.is_there:
        return ok("data_dir", f"DATA_DIR does not exist yet, and can be created in {disk.folder}.")
    return ok("data_dir", f"{disk.folder} can be written.")


def disk_space(disk: Disk, *, max_mb: int, min_free_mb: int) -> Finding:
    """Return whether the journal has room to grow to its limit."""
    free_mb, journal_mb = disk.free_bytes // MEGABYTE, disk.journal_bytes // MEGABYTE
    readings = {"free_mb": free_mb, "journal_mb": journal_mb}
    room_mb = free_mb - min_free_mb
    if room_mb <= 0:
        return failed(
            "disk_space",
            f"{free_mb} MB are free, and JOURNAL_MIN_FREE_MB reserves {min_free_mb}: the journal"
            " cannot grow, so an outage of the database would lose points.",
            "Free space on the disk, or set DATA_DIR to a larger one.",
            **readings,
        )
    if journal_mb + room_mb < max_mb:
        return warning(
            "disk_space",
            f"{free_mb} MB are free, so the journal can grow to {journal_mb + room_mb} MB instead"
            f" of the {max_mb} of JOURNAL_MAX_MB: it would bridge a shorter outage.",
            f"Free space, or set JOURNAL_MAX_MB to {max(1, journal_mb + room_mb)} or less.",
            **readings,
        )
    return ok(
        "disk_space",
        f"{free_mb} MB are free; the journal takes at most {max_mb}.",
        **readings,
    )


def fsync(disk: Disk) -> Finding:
    """Return how long the disk takes to make a write durable."""
    took_ms = round(median(disk.fsync_ms), 2)
    count = len(disk.fsync_ms)
    seen = f"The disk makes a write durable in {took_ms:g} ms (median of {count})"
    if took_ms > _SLOW_FSYNC_MS:
        return warning(
            "fsync",
            f"{seen}, which is slow: each commit of the journal waits for it.",
            "Nothing is lost; a faster disk for DATA_DIR makes points durable sooner.",
            median_ms=took_ms,
        )
    return ok("fsync", f"{seen}.", median_ms=took_ms)


PortState: TypeAlias = Literal["free", "ours", "foreign", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """What uses the port of the service."""

    state: PortState
    address: str
    detail: str = ""
    """The status of our own service that runs there, or why it cannot listen."""


def port(reading: Port) -> Finding:
    """Return whether the service can listen, or does so already."""
    match reading.state:
        case "free":
            return ok("port", f"{reading.address} is free.")
        case "ours":
            return ok(
                "port",
                f"This service already runs at {reading.address}; its status is {reading.detail}.",
                running=True,
            )
        case "foreign":
            return failed(
                "port",
                f"Another program, or a service that hangs, listens at {reading.address}.",
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
    """Return why there is no connection, from the exception that caused it."""
    found = obstacle(party, exc, url=address)
    if isinstance(exc, SourceUnavailable) and exc.advice is not None:
        found = Obstacle(str(exc), exc.advice)
    whom = party.name[0].upper() + party.name[1:]
    return failed(name, f"{whom} cannot be reached at {address}: {found.why}.", found.advice)


def not_speaking(address: str, answer: str) -> Finding:
    """Return that something accepts connections there, but is not Home Assistant."""
    return failed(
        "home_assistant",
        f"The server at {address} does not answer like Home Assistant: {answer}.",
        "Check HOME_ASSISTANT_URL. If it is Home Assistant, look at its log: it may hang.",
    )


def reached(address: str, *, ssl_verify: bool) -> Finding:
    """Return that Home Assistant answers, and whether the connection is protected."""
    seen = f"Home Assistant answers at {address}"
    if not address.startswith("wss:"):
        return ok("home_assistant", f"{seen}, without TLS.", tls=False)
    if ssl_verify:
        return ok("home_assistant", f"{seen}; its certificate is valid.", tls=True)
    return warning(
        "home_assistant",
        f"{seen}, and its certificate is not checked (HA_SSL_VERIFY=false): anyone in between"
        " can read the token.",
        "Give it a certificate that this machine trusts, and unset HA_SSL_VERIFY.",
        tls=True,
    )


def unchecked(finding: Finding) -> Finding:
    """Return the finding as a warning that the certificate of the database is not checked."""
    if finding.status != "ok":
        return finding
    return warning(
        finding.name,
        f"{finding.what} Its certificate is not checked (INFLUXDB_SSL_VERIFY=false): a"
        " machine in between can read the token.",
        "Give it a certificate that this machine trusts, and unset INFLUXDB_SSL_VERIFY.",
        **finding.readings,
    )


def token_refused(reason: str) -> Finding:
    """Return that the token is wrong."""
    return failed(
        "token",
        f"Home Assistant refuses the token: {reason}.",
        "Create a long-lived access token in Home Assistant (your profile, Security), and set"
        " HOME_ASSISTANT_TOKEN to it.",
    )


def version(ha_version: str | None, state: str, *, limited: str | None = None) -> Finding:
    """Return whether this version of Home Assistant is supported, and whether it runs.

    Args:
        ha_version: the version it reports.
        state: its state, from `get_config`.
        limited: why entities are missing although it runs, with the advice.
    """
    readings = {"ha_version": ha_version, "ha_state": state}
    if limited is not None:
        what, _, advice = limited.partition(". ")
        return warning("version", f"{what}.", advice, **readings)
    if state != _RUNNING:
        return warning(
            "version",
            f"Home Assistant {ha_version} is {state}: it is starting or stopping.",
            "Wait until it is RUNNING; until then entities may be missing.",
            **readings,
        )
    if _parsed(ha_version) < _OLDEST_TESTED:
        oldest = ".".join(map(str, _OLDEST_TESTED))
        return warning(
            "version",
            f"Home Assistant {ha_version} is older than every version that this service is tested"
            f" with ({oldest} and later).",
            "Update Home Assistant; until then this may not work.",
            **readings,
        )
    return ok("version", f"Home Assistant {ha_version} is {state}.", **readings)


_VERSION_CHARS = 30


def _parsed(ha_version: str | None) -> tuple[int, ...]:
    parts = (ha_version or "")[:_VERSION_CHARS].split(".")[:2]
    return tuple(int(part) for part in parts if part.isdecimal())


class CurrentUser(msgspec.Struct, frozen=True):
    """The part of `auth/current_user` that is read."""

    is_admin: bool = False


def rights(user: CurrentUser | None, *, refused: CommandFailed | None) -> Finding:
    """Return whether the token has the necessary permissions.

    Args:
        user: its user; None when Home Assistant does not say.
        refused: why it may not subscribe to `state_changed`; None when it may.
    """
    if refused is not None:
        return failed(
            "rights",
            f"The user of the token may not read state changes ({refused.code}).",
            "Create the token as a user in the group of users or of administrators.",
        )
    if user is None:
        return ok("rights", "The token may read state changes; its user is unknown.")
    if user.is_admin:
        return ok(
            "rights",
            "The token is an administrator's and may change everything in Home Assistant. The token"
            " of an ordinary user is enough for this service, and safer.",
            is_admin=True,
        )
    return ok(
        "rights",
        "The token is an ordinary user's, which is enough: it reads states, registries and"
        " history.",
        is_admin=False,
    )


class RecorderInfo(msgspec.Struct, frozen=True):
    """The part of `recorder/info` that is read."""

    recording: bool = True
    backlog: int = 0


class Recent(msgspec.Struct, frozen=True):
    """The part of a row of `get_states` that is read."""

    entity_id: str
    last_changed: datetime
    last_updated: datetime


def no_recorder(refused: CommandFailed, component: str) -> Finding:
    """Return that Home Assistant has no history to read from."""
    return warning(
        "recorder",
        f"Home Assistant's {component} is not available ({refused.code}): changes missed while this"
        " service or the connection is down cannot be read back.",
        f"Add `default_config:` or `{component}:` to Home Assistant's configuration.yaml, and"
        " restart it.",
        present=False,
    )


def recently_changed(states: Collection[Recent]) -> list[str]:
    """Return the entities that changed last, which are likely to have history."""
    newest = sorted(states, key=lambda state: state.last_changed, reverse=True)
    return [state.entity_id for state in newest[:_ENTITIES_ASKED]]


def newest(states: Collection[Recent]) -> datetime | None:
    """Return when Home Assistant's newest state was updated; None without states."""
    return max((state.last_updated for state in states), default=None)


def windows(now: datetime, max_hours: float) -> list[tuple[float, datetime, datetime]]:
    """Return the hours to look for history in, oldest first: age in hours, start and end."""
    ages = [max_hours]
    while ages[-1] > 1.0:
        ages.append(max(1.0, ages[-1] / 2))
    return [(age, now - timedelta(hours=age), now - timedelta(hours=age) + _WINDOW) for age in ages]


def recorder(info: RecorderInfo, *, found_hours: float | None, max_hours: float) -> Finding:
    """Return how far back the recorder has history; `found_hours` is None without any."""
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
            f"Home Assistant's recorder runs, but has no history of the last {max_hours:g} hours.",
            "That is fine if Home Assistant is new; otherwise check `recorder:` in its"
            " configuration.yaml, and its disk.",
            **readings,
        )
    if found_hours < max_hours:
        return ok(
            "recorder",
            f"Home Assistant's recorder keeps between {_span(found_hours)} and"
            f" {_span(2 * found_hours)} of history; older gaps cannot be filled.",
            **readings,
        )
    return ok(
        "recorder",
        f"Home Assistant's recorder has history of {_span(found_hours)} ago, which is as far as"
        " BACKFILL_MAX_HOURS goes back.",
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
        return ok(name, "Home Assistant has no state that shows its time.")
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
        matters="Points carry Home Assistant's time, so every point would be off by that.",
    )


def clock(name: str, whose: str, difference_s: float | None, *, matters: str) -> Finding:
    """Return how far another clock is from this machine's; positive when it is ahead.

    The header that it is read from has whole seconds, so small differences mean nothing.
    """
    if difference_s is None:
        return ok(name, f"{whose} does not report its time.")
    off_s = round(abs(difference_s))
    if abs(difference_s) <= _CLOCK_TOLERANCE_S:
        return ok(
            name, f"{whose}'s clock and this machine's agree.", difference_s=round(difference_s, 1)
        )
    direction = "ahead of" if difference_s > 0 else "behind"
    return warning(
        name,
        f"{whose}'s clock is {_seconds(off_s)} {direction} this machine's. {matters}",
        "Synchronize the clocks of both machines over the network (NTP).",
        difference_s=round(difference_s, 1),
    )


def _seconds(seconds: int) -> str:
    if seconds < 120:  # noqa: PLR2004 - below two minutes
        return f"{seconds} s"
    return f"{seconds // 60} minutes" if seconds < 7_200 else f"{seconds // 3_600} hours"  # noqa: PLR2004


def written(answer: Outcome, *, version: str, bucket: str) -> Finding:
    """Return whether a point was written."""
    match answer:
        case Accepted():
            return ok(
                "database_write",
                f"A point was written to {bucket!r} with the API of InfluxDB {version[1:]}.",
                api=version,
            )
        case Held(reason=reason, advice=advice, status=status):
            code = "" if status is None else f" ({status})"
            return failed(
                "database_write", f"The database does not accept points{code}: {reason}.", advice
            )
        case Refused(reason=reason, advice=advice):
            return failed(
                "database_write",
                f"The database rejects a point: {reason}.",
                advice or "Check the bucket or database in INFLUXDB_BUCKET.",
            )
        case Busy(reason=reason):
            return failed(
                "database_write",
                f"The database accepts no points at the moment: {reason}.",
                "Check its load and its limits, then try again.",
            )
        case _:
            return failed(
                "database_write",
                f"No point could be written: {answer.reason}.",
                "Look at the log of the database, and check INFLUXDB_URL.",
            )


def data_api(problem: str | None, address: str) -> Finding:
    """Return whether devices and entities can be sent; `problem` is why not."""
    if problem is None:
        return ok("data_api", f"The data API at {address} takes rows.")
    return failed(
        "data_api",
        f"The data API at {address} does not take rows: {problem}.",
        "Check DATA_API_URL and DATA_API_KEY, and that the data API runs. Events are captured"
        " anyway.",
    )


def read_back(*, found: bool | None, status: int, removed: bool, measurement: str) -> Finding:
    """Return whether the point was read back, and whether it is still stored.

    `found` is None when the database answered the query with the error `status`.
    """
    left = (
        "It was deleted again."
        if removed
        else f"It remains in the measurement {measurement}: this database cannot delete it."
    )
    readings = {"found": found, "removed": removed}
    if found:
        return ok("database_read_back", f"The point was read back. {left}", **readings)
    if found is None:
        refused = status in _MAY_NOT_READ
        reason = "these credentials may only write" if refused else "that is an error"
        return warning(
            "database_read_back",
            f"The database accepted the point, but answered the query for it with {status}:"
            f" {reason}. {left}",
            "Writing is enough for this service; to query points, use credentials that may read.",
            **readings,
        )
    return warning(
        "database_read_back",
        f"The database accepted the point, but a query does not find it. {left}",
        "Check the retention of the bucket or database in INFLUXDB_BUCKET, and that no proxy"
        " answers in place of the database.",
        **readings,
    )
