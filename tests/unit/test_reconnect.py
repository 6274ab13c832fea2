"""The delays between attempts to connect to Home Assistant."""

from __future__ import annotations

from app.homeassistant.reconnect import ReconnectPolicy
from app.runtime.errors import SourceAuthRejected, SourceUnavailable
from app.runtime.retry import Backoff, Breaker

ABSENT = SourceUnavailable("nothing listens there")


def policy(*, max_retries: int = -1, threshold: int = 3, reset_s: float = 0.0) -> ReconnectPolicy:
    """Return a policy with delays of exactly 1, 2, 4 and 8 seconds."""
    return ReconnectPolicy(
        backoff=Backoff(max_s=8.0, chance=lambda: 0.5),
        breaker=Breaker("Home Assistant", threshold=threshold, reset_s=reset_s),
        max_retries=max_retries,
    )


def test_delays_between_attempts_double_up_to_their_maximum() -> None:
    """Without a limit they go on indefinitely."""
    reconnect = policy()

    delays = [reconnect.delay_s(ABSENT, has_streamed=False) for _ in range(6)]

    assert delays == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert reconnect.attempt == "6/∞"


def test_there_is_no_delay_after_the_last_attempt_that_the_limit_allows() -> None:
    """The source gives up then."""
    reconnect = policy(max_retries=2)

    assert [reconnect.delay_s(ABSENT, has_streamed=False) for _ in range(3)] == [1.0, 2.0, None]


def test_a_refused_token_counts_neither_as_a_retry_nor_for_the_breaker() -> None:
    """Home Assistant answers, and only a person can change the token."""
    reconnect = policy(max_retries=0, threshold=1)

    assert reconnect.delay_s(SourceAuthRejected(), has_streamed=False) == 300.0
    assert reconnect.breaker.state == "closed"


def test_a_lost_connection_that_streamed_does_not_count_for_the_breaker() -> None:
    """It was good, so the next one may be."""
    reconnect = policy(threshold=1)

    assert reconnect.delay_s(ABSENT, has_streamed=True) == 1.0
    assert reconnect.breaker.failure_count == 0


def test_an_open_breaker_makes_the_delay_longer_than_the_backoff() -> None:
    """The longer of the two counts."""
    reconnect = policy(threshold=1, reset_s=60.0)

    delay_s = reconnect.delay_s(ABSENT, has_streamed=False)

    assert delay_s is not None
    assert 59.0 < delay_s <= 60.0


def test_streaming_starts_the_delays_anew_and_closes_the_breaker() -> None:
    """Only an event shows that a connection is good."""
    reconnect = policy(threshold=2)
    for _ in range(2):
        reconnect.delay_s(ABSENT, has_streamed=False)
    assert reconnect.breaker.failure_count == 2

    reconnect.streaming()

    assert reconnect.breaker.failure_count == 0
    assert reconnect.delay_s(ABSENT, has_streamed=True) == 1.0
