"""How many wrong keys one peer may offer."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

from app.api.throttle import AuthThrottle, Challenges, too_many
from app.runtime.logging import repeats


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """Return the seconds."""
        return self.now_s


def _failed(attempts: AuthThrottle, peer: str | None, times: int) -> None:
    for _ in range(times):
        attempts.failed(peer)


def test_ten_wrong_keys_are_allowed_and_the_next_must_wait() -> None:
    """Ten at once, then one every six seconds; in a minute all is as before."""
    clock = Clock()
    attempts = AuthThrottle(clock=clock)
    waits = []
    for _ in range(10):
        waits.append(attempts.wait_s("192.168.1.7"))
        attempts.failed("192.168.1.7")
    waits.append(attempts.wait_s("192.168.1.7"))
    clock.now_s = 4.0
    waits.append(attempts.wait_s("192.168.1.7"))
    clock.now_s = 6.0
    waits.append(attempts.wait_s("192.168.1.7"))
    clock.now_s = 100.0
    _failed(attempts, "192.168.1.7", 9)

    assert [*[0.0] * 10, 6.0, 2.0, 0.0] == pytest.approx(waits)
    assert attempts.wait_s("192.168.1.7") == 0.0


@pytest.mark.parametrize(
    ("peer", "same"),
    [
        ("192.168.1.7", "::ffff:192.168.1.7"),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9"),
        (None, None),
        ("testclient", "testclient"),
    ],
)
def test_addresses_of_one_ipv6_network_share_a_count_of_wrong_keys(
    peer: str | None, same: str | None
) -> None:
    """An IPv4 address however it is written, a /64 of IPv6, a UNIX socket."""
    attempts = AuthThrottle(most=2)
    _failed(attempts, peer, 2)

    assert attempts.wait_s(same) > 0


@pytest.mark.parametrize("other", ["192.168.1.8", "2001:db8:1:3::1", None])
def test_wrong_keys_of_one_client_do_not_delay_another(other: str | None) -> None:
    """Each peer is counted by itself."""
    attempts = AuthThrottle(most=1)
    attempts.failed("192.168.1.7")
    attempts.failed("2001:db8:1:2::1")

    assert attempts.wait_s(other) == 0.0


def test_wrong_keys_from_many_addresses_do_not_reset_the_count_of_one() -> None:
    """Memory is bounded, and still who guesses from 1,100 addresses gains nothing."""
    attempts = AuthThrottle(clock=lambda: 0.0)
    _failed(attempts, "192.168.1.7", 10)
    for number in range(1_100):
        attempts.failed(f"10.0.{number // 250}.{number % 250}")

    assert attempts.wait_s("192.168.1.7") > 0
    assert attempts.wait_s("10.0.0.0") == 0.0


def test_addresses_beyond_the_bound_share_one_count() -> None:
    """They are not forgotten either, and are counted by themselves again after a while."""
    clock = Clock()
    attempts = AuthThrottle(most=1, max_peers=2, clock=clock)
    for peer in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
        attempts.failed(peer)
    waits = [attempts.wait_s(peer) > 0 for peer in ("10.0.0.1", "10.0.0.3", "10.0.0.4")]
    clock.now_s = 60.0
    later = [attempts.wait_s(peer) for peer in ("10.0.0.1", "10.0.0.3", "10.0.0.4")]

    assert [waits, later] == [[True, True, True], [0.0, 0.0, 0.0]]


async def _displaced(challenges: Challenges, peer: str, started: list[str]) -> bool:
    """Wait for a key that never comes; return whether others needed the place."""
    began_s = asyncio.get_running_loop().time()
    with contextlib.suppress(TimeoutError):
        async with challenges.waiting_for_key(peer, timeout_s=30):
            started.append(peer)
            await asyncio.Event().wait()
    return asyncio.get_running_loop().time() - began_s < 30


@pytest.mark.parametrize(
    ("peers", "displaced"),
    [
        (["10.0.0.1"] * 3, [0]),
        (["10.0.0.1", "10.0.0.2", "10.0.0.3"], []),
        (["10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.1"], [0, 1]),
        (["127.0.0.1"] * 4, []),
        (["127.0.0.1"] * 5, [0]),
        (["2001:db8::1", "2001:db8::2", "2001:db8::3"], [0]),
    ],
)
async def test_the_websocket_client_that_was_silent_longest_is_displaced(
    peers: list[str], displaced: list[int]
) -> None:
    """Two of one address and four in all; an address that many share has no limit of its own."""
    challenges = Challenges(total=4, per_client=2)
    started: list[str] = []
    tasks = []
    async with asyncio.timeout(5):
        for number, peer in enumerate(peers, start=1):
            tasks.append(asyncio.create_task(_displaced(challenges, peer, started)))
            while len(started) < number:
                await asyncio.sleep(0)
        if displaced:
            await asyncio.wait([tasks[number] for number in displaced])
    ended = [number for number, task in enumerate(tasks) if task.done()]
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)

    assert displaced == ended
    assert challenges.waiting == 0


def test_wrong_keys_are_logged_with_their_peer_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator learns who tries, and no guesser can fill the log."""
    clock = Clock()
    monkeypatch.setattr(repeats, "clock", clock)
    attempts = AuthThrottle(clock=clock)
    with caplog.at_level(logging.WARNING):
        _failed(attempts, "192.168.1.7", 5)
        clock.now_s = 61.0
        attempts.failed("192.168.1.9")

    assert [record.getMessage() for record in caplog.records] == [
        "Refused a wrong API key from 192.168.1.7",
        "Refused a wrong API key from 192.168.1.9 (6 times in 61 s)",
    ]


def test_the_refusal_of_a_wrong_key_has_the_seconds_to_wait() -> None:
    """In whole seconds, never too few."""
    problem = too_many(5.2)

    assert (problem.status, problem.headers) == (429, {"Retry-After": "6"})
    assert "6 s" in problem.detail
