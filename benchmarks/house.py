"""A helper process: the fake Home Assistant in which the corpus happens, at a pace.

It cuts off a client that is too slow, as the real one does.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from benchmarks.corpus import Corpus, Stream, make_corpus
from benchmarks.peers import HELPER_TOKEN, Where, Written, answer_commands
from simulator.fake_home_assistant import FakeHomeAssistant, JsonObject, RegistryKind

EVENTS_PER_TURN = 50
"""How many happen at once; with coalescing they are one frame."""
_TURNS_PER_S = 20

_PATIENT_PENDING = 4 * EVENTS_PER_TURN
_PATIENT_WAIT_S = 0.000_5


class Played(msgspec.Struct, frozen=True, kw_only=True):
    """What happened."""

    events: int
    seconds: float
    cut_off: int
    """How many clients were too slow, since the helper began."""
    subscriptions: int
    """How many connections ever asked for events; those after the first are reconnects."""
    cpu_s: float


class CorpusHouse:
    """The home of the corpus, for the questions a client may ask."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    def states(self) -> Sequence[JsonObject]:
        """Return the states before anything happened."""
        return self._corpus.states

    def registry(self, kind: RegistryKind) -> Sequence[JsonObject]:
        """Return the rows that belong to the entities."""
        return self._corpus.registries[kind]

    def config(self) -> JsonObject:
        """Return the name of the home."""
        return {"location_name": "Benchmark"}

    def config_entries(self) -> Sequence[JsonObject]:
        """Return none."""
        return []

    def recorder(self) -> JsonObject:
        """Return nothing beyond an idle recorder."""
        return {}

    def history(
        self,
        start: datetime,  # noqa: ARG002 - the protocol of a house
        end: datetime,  # noqa: ARG002 - the protocol of a house
        entity_ids: Sequence[str],  # noqa: ARG002 - the protocol of a house
    ) -> Mapping[str, Sequence[JsonObject]]:
        """Return nothing: no event is ever missed."""
        return {}


class Player:
    """Replays the corpus on request."""

    def __init__(self, home_assistant: FakeHomeAssistant, corpus: Corpus) -> None:
        self._home_assistant = home_assistant
        self._stream = Stream(corpus)

    async def where(self) -> Where:
        """Say where to connect."""
        return Where(self._home_assistant.url)

    async def play(self, *, rate: float, seconds: float, patient: bool) -> Played:
        """Fire `rate` events per second; with 0, as many as the slowest client takes.

        With `patient` a client that lags is waited for, and never cut off.
        """
        start, start_cpu = time.perf_counter(), time.process_time()
        before = len(self._stream.identities)
        if rate:
            max_pending = _PATIENT_PENDING if patient else math.inf
            await self._paced(rate, int(rate * seconds), max_pending=max_pending)
        else:
            await self._at_full_speed(until=start + seconds)
        return Played(
            events=len(self._stream.identities) - before,
            seconds=time.perf_counter() - start,
            cut_off=self._home_assistant.cut_off,
            subscriptions=sum(
                "subscribe_events" in conversation
                for conversation in self._home_assistant.conversations
            ),
            cpu_s=time.process_time() - start_cpu,
        )

    async def write_identities(self, *, path: str) -> Written:
        """Write `entity_id time_ns` of every event that happened, a line each."""
        lines = [f"{entity_id} {time_ns}" for entity_id, time_ns in self._stream.identities]
        Path(path).write_text("\n".join(lines))  # noqa: ASYNC240 - nothing else happens now
        return Written(len(lines))

    async def _paced(self, rate: float, total: int, *, max_pending: float) -> None:
        start = time.perf_counter()
        sent = 0
        # A quiet home has its events one by one.
        whole_turn = max(1, min(EVENTS_PER_TURN, int(rate / _TURNS_PER_S)))
        while sent < total:
            due = min(total, int((time.perf_counter() - start) * rate))
            # Whole turns only, except for the last one.
            while due - sent >= whole_turn or sent < due == total:
                turn = min(whole_turn, due - sent)
                await self._fire(turn, max_pending=max_pending)
                sent += turn
            await asyncio.sleep(whole_turn / rate)

    async def _at_full_speed(self, *, until: float) -> None:
        while time.perf_counter() < until:
            await self._fire(EVENTS_PER_TURN, max_pending=_PATIENT_PENDING)

    async def _fire(self, count: int, *, max_pending: float) -> None:
        while self._home_assistant.pending > max_pending:  # noqa: ASYNC110 - a counter has no event
            await asyncio.sleep(_PATIENT_WAIT_S)
        self._home_assistant.fire_many(self._stream.take(count, now_ns=time.time_ns()))
        await asyncio.sleep(0)  # a turn for the writers, so that what is fired is a frame


async def main(*, coalesce: bool) -> None:
    """Serve until standard input ends."""
    corpus = make_corpus()
    home_assistant = FakeHomeAssistant(
        CorpusHouse(corpus),
        token=HELPER_TOKEN,
        unknown_commands=() if coalesce else ("supported_features",),
    )
    async with home_assistant:
        player = Player(home_assistant, corpus)
        await answer_commands(
            {
                "where": player.where,
                "play": player.play,
                "write_identities": player.write_identities,
            }
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uncoalesced", action="store_true", help="one event per frame")
    asyncio.run(main(coalesce=not parser.parse_args().uncoalesced))
