"""The state of the connection to Home Assistant, as `/health` and the log show it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime

import msgspec

from app.health import ConnectionState, ConnectionStatus
from app.runtime.connection_errors import limited_mode
from app.runtime.errors import SourceAuthRejected, SourceError, SourceUnavailable
from app.runtime.retry import Breaker
from app.runtime.time import utc_now

_RUNNING = "RUNNING"
_DEFAULT_ADVICE = "Check that it runs and that HOME_ASSISTANT_URL is right."


class Config(msgspec.Struct, frozen=True):
    """The part of Home Assistant's `get_config` that is read."""

    state: str
    recovery_mode: object = False
    safe_mode: object = False
    components: Sequence[str] = ()

    @property
    def missing_component(self) -> str | None:
        """The integration that history needs and that is not set up; None if none is missing."""
        if not self.components or self.state != _RUNNING:
            return None
        return next((name for name in ("recorder", "history") if name not in self.components), None)

    @property
    def limited(self) -> str | None:
        """Why entities are missing although Home Assistant runs; None if none are."""
        return limited_mode(recovery=self.recovery_mode is True, safe=self.safe_mode is True)


class SourceStatus:
    """Counts attempts and records errors of the connection that streams events."""

    def __init__(self) -> None:
        self.state: ConnectionState = "disconnected"
        self.attempts = 0
        self.successes = 0
        self.ha_version: str | None = None
        self.missing_component: str | None = None
        """The integration that history needs and Home Assistant runs without."""
        self._config: Config | None = None
        """What Home Assistant reported over this connection."""
        self._failures = 0
        self._last_successful: datetime | None = None
        self._next_attempt_at: float | None = None
        self._error: SourceError | None = None
        """Why events do not stream; None while they do, and before the first attempt has ended."""
        self._failing_since = 0.0

    @property
    def is_running(self) -> bool:
        """Whether Home Assistant has reported RUNNING over this connection."""
        return self._config is not None and self._config.state == _RUNNING

    def connecting(self) -> None:
        """Count an attempt."""
        self.attempts += 1
        self.state = "connecting"

    def connected(self) -> None:
        """Count a connection that streams events."""
        self.state = "connected"
        self.successes += 1
        self._last_successful = utc_now()
        self._error = None

    def configured(self, config: Config) -> None:
        """Store what Home Assistant reports about itself."""
        self._config = config
        self.missing_component = config.missing_component

    def disconnected(self) -> None:
        """Forget what held for the connection that has ended."""
        self.state = "disconnected"
        self._config = None

    def failed(self, error: SourceError, *, was_subscribed: bool) -> None:
        """Store why an attempt or a connection has ended."""
        self._failures += not was_subscribed
        if self._error is None:
            self._failing_since = time.monotonic()
        self._error = error

    def waiting(self, delay_s: float) -> None:
        """Store when the next attempt is due."""
        self.state = "waiting"
        self._next_attempt_at = time.monotonic() + delay_s

    def waited(self) -> None:
        """Forget when the next attempt was due."""
        self._next_attempt_at = None

    def snapshot(self, breaker: Breaker) -> ConnectionStatus:
        """Return the status as of now."""
        next_attempt_s = None
        if self._next_attempt_at is not None:
            next_attempt_s = max(0.0, round(self._next_attempt_at - time.monotonic(), 3))
        return ConnectionStatus(
            current_state=self.state,
            connection_attempts=self.attempts,
            successful_connections=self.successes,
            failed_connections=self._failures,
            last_successful=self._last_successful,
            next_attempt_in_seconds=next_attempt_s,
            ha_version=self.ha_version,
            ha_state=self._config.state if self._config else None,
            is_subscribed=self.state == "connected",
            reason=self.reason(),
            token_refused=isinstance(self._error, SourceAuthRejected),
            breaker=breaker.status(),
        )

    def reason(self) -> str | None:
        """Return what is wrong and what to do, in a sentence; None if nothing is."""
        match self._error:
            case SourceAuthRejected() as error:
                return (
                    f"Home Assistant refused the token: {error}. In Home Assistant open your"
                    " profile, Security, create a long-lived access token, set"
                    " HOME_ASSISTANT_TOKEN to it and restart this service."
                )
            case SourceError() as error:
                failing_s = time.monotonic() - self._failing_since
                return (
                    f"Home Assistant cannot be reached for {failing_s:.0f} s: {error}."
                    f" {advice_of(error) or _DEFAULT_ADVICE}"
                )
        if self._config is None:
            return None
        if not self.is_running:
            return (
                f"Home Assistant says it is {self._config.state}: it is starting or stopping,"
                " and entities may be missing until it is RUNNING."
            )
        return self._config.limited


def advice_of(error: SourceError) -> str | None:
    """Return what a person can do about an error, if it is known."""
    return error.advice if isinstance(error, SourceUnavailable) else None
