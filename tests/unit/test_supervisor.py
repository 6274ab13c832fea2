"""Loops must not die quietly, and must end in time."""

import asyncio
import logging

import pytest

from app.runtime.supervisor import Supervisor


class Alarm:
    """Notes that the service was asked to stop."""

    def __init__(self) -> None:
        self.rung = asyncio.Event()

    def __call__(self) -> None:
        """Ring."""
        self.rung.set()


async def for_ever() -> None:
    """Run until cancelled."""
    await asyncio.Event().wait()


async def test_a_loop_runs_for_as_long_as_its_block() -> None:
    """Leaving the block cancels a loop that was given no way to finish."""
    alarm = Alarm()
    supervisor = Supervisor(grace_s=1, on_failure=alarm)
    ended: list[str] = []

    async def loop() -> None:
        try:
            await for_ever()
        finally:
            ended.append("cancelled")

    async with supervisor.running({"loop": loop}):
        await asyncio.sleep(0)
        assert ended == []

    assert ended == ["cancelled"]
    assert supervisor.failures == {}
    assert not alarm.rung.is_set()


@pytest.mark.parametrize("how", ["raises", "returns", "is cancelled"])
async def test_a_loop_that_ends_early_stops_the_service(how: str) -> None:
    """However it ends, the log and /health show the reason."""
    alarm = Alarm()
    supervisor = Supervisor(grace_s=1, on_failure=alarm)

    async def loop() -> None:
        if how == "raises":
            raise ValueError("no more")
        if how == "is cancelled":
            raise asyncio.CancelledError

    async with asyncio.timeout(5), supervisor.running({"loop": loop}):
        await alarm.rung.wait()

    expected = {
        "raises": "ValueError: no more",
        "returns": "it returned",
        "is cancelled": "it was cancelled",
    }
    assert supervisor.failures == {"loop": expected[how]}


async def test_a_loop_may_finish_its_work() -> None:
    """`finish` says that no more work comes; the loop then ends by itself."""
    supervisor = Supervisor(grace_s=5, on_failure=Alarm())
    finish = asyncio.Event()
    done: list[str] = []

    async def loop() -> None:
        await finish.wait()
        await asyncio.sleep(0)
        done.append("flushed")

    async with asyncio.timeout(5), supervisor.running({"loop": loop}, finish=finish.set):
        await asyncio.sleep(0)

    assert done == ["flushed"]
    assert supervisor.failures == {}


async def test_all_loops_share_one_grace_period() -> None:
    """A loop that does not finish is cancelled when the time of all is up."""
    supervisor = Supervisor(grace_s=0.05, on_failure=Alarm())

    async with (
        asyncio.timeout(5),
        supervisor.running({"a": for_ever}, finish=lambda: None),
        supervisor.running({"b": for_ever}, finish=lambda: None),
    ):
        await asyncio.sleep(0)

    assert supervisor.failures == {}


async def test_one_loop_can_be_ended_ahead_of_its_block() -> None:
    """Reading stops at the signal, long before everything is closed; that is no failure."""
    alarm = Alarm()
    supervisor = Supervisor(grace_s=1, on_failure=alarm)
    ended = asyncio.Event()

    async def reading() -> None:
        try:
            await for_ever()
        finally:
            ended.set()

    async with asyncio.timeout(5), supervisor.running({"source": reading}):
        await asyncio.sleep(0)
        supervisor.begin_stop()
        supervisor.cancel("source")
        supervisor.cancel("unknown")
        await ended.wait()

    assert supervisor.failures == {}
    assert not alarm.rung.is_set()


async def test_a_loop_that_fails_while_stopping_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is too late to stop the service for it, but not to say so."""
    supervisor = Supervisor(grace_s=1, on_failure=Alarm())

    async def loop() -> None:
        try:
            await for_ever()
        finally:
            raise ValueError("could not close")

    with caplog.at_level(logging.ERROR):
        async with supervisor.running({"loop": loop}):
            await asyncio.sleep(0)

    assert "loop failed while stopping" in caplog.text
