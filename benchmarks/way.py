"""The whole pipeline in one process: from the socket to the database's answer.

What the service does beside it (serving, metrics, catalog) is left out, so that rounds are short
and a quiet moment is found even on a busy machine. Read it against the sum of the stages.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from prometheus_client import CollectorRegistry

from app.backfill.coverage import Coverage
from app.backfill.last_states import LastStates
from app.discovery.catalog import Catalog
from app.fanout.hub import Hub
from app.homeassistant.connection import HomeAssistantSource
from app.homeassistant.endpoint import Endpoint
from app.homeassistant.reconnect import ReconnectPolicy
from app.journal.batcher import Batcher
from app.journal.journal import SqliteJournal
from app.normalize.changes import Normalizer
from app.pipeline import Encoder, Pipeline
from app.runtime.metrics import Telemetry
from app.runtime.retry import Backoff, Breaker
from app.runtime.supervisor import Supervisor
from app.sinks.dead_letters import DeadLetters
from app.sinks.delivery import Delivery
from app.sinks.influxdb.sink import InfluxSink
from benchmarks.peers import HELPER_TOKEN, Where, peer
from tests.fakes.discovery import Answers, discovery_of

_JOURNAL_BYTES = 1_000_000_000
_MAX_PENDING_POINTS = 200_000
_PATIENCE_S = 120.0
_POLL_S = 0.005


async def measure_way(
    catalog: Catalog, encoder: Encoder, *, events: int, per_frame: int, rounds: int
) -> tuple[float, float]:
    """Return CPU and wall seconds of the cheapest round."""
    arguments = ("--events", str(events), "--per-frame", str(per_frame))
    async with peer("benchmarks.flood", *arguments) as flood, peer("benchmarks.sink") as database:
        home_assistant = (await flood.ask(Where, "where")).url
        influxdb = (await database.ask(Where, "where")).url
        async with _way(catalog, encoder, home_assistant, influxdb) as telemetry:
            gc.freeze()
            times = []
            for _ in range(rounds):
                counts = telemetry.sink("influxdb")
                wanted = counts.written + counts.left_out + events
                cpu_s, wall_s = time.process_time(), time.perf_counter()
                await flood.ask(type(None), "pour")
                async with asyncio.timeout(_PATIENCE_S):
                    while counts.written + counts.left_out < wanted:  # noqa: ASYNC110 - a counter has no event
                        await asyncio.sleep(_POLL_S)
                times.append((time.process_time() - cpu_s, time.perf_counter() - wall_s))
            gc.unfreeze()
    return min(times)


@contextlib.asynccontextmanager
async def _way(
    catalog: Catalog, encoder: Encoder, home_assistant: str, influxdb: str
) -> AsyncIterator[Telemetry]:
    telemetry = Telemetry(CollectorRegistry())
    coverage = Coverage()
    sink = InfluxSink(influxdb, token=HELPER_TOKEN, org="homeiq", bucket="measured", timeout_s=30)
    # /tmp may be in memory; the journal must meet a disk.
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir="/var/tmp") as folder:
        journal = SqliteJournal(
            Path(folder) / "journal.db",
            sinks=(sink.name,),
            max_bytes=_JOURNAL_BYTES,
            telemetry=telemetry,
        )
        async with sink, journal, DeadLetters(Path(folder) / "dead_letters.db") as dead_letters:
            batcher = Batcher(
                journal,
                telemetry=telemetry,
                coverage=coverage,
                max_pending_points=_MAX_PENDING_POINTS,
            )
            pipeline = Pipeline(
                discovery=discovery_of(Answers({}), catalog=catalog),
                normalizer=Normalizer(catalog.placements),
                encoder=encoder,
                batcher=batcher,
                coverage=coverage,
                last_states=LastStates(),
                hub=Hub(),
                telemetry=telemetry,
            )
            pipeline.placed()
            source = HomeAssistantSource(
                Endpoint(home_assistant, token=HELPER_TOKEN, ssl_verify=True),
                reconnect=ReconnectPolicy(
                    backoff=Backoff(max_s=1),
                    breaker=Breaker("Home Assistant", threshold=5, reset_s=1),
                ),
                telemetry=telemetry,
            )
            delivery = Delivery(
                sink=sink,
                journal=journal,
                dead_letters=dead_letters,
                breaker=Breaker(sink.name, threshold=5, reset_s=1),
                backoff=Backoff(max_s=1),
                telemetry=telemetry,
            )
            loops = {
                "source": lambda: source.run(pipeline),
                "batcher": batcher.run,
                "delivery": delivery.run,
            }
            async with Supervisor(grace_s=1.0).running(loops):
                async with asyncio.timeout(_PATIENCE_S):
                    while not source.is_running:  # noqa: ASYNC110 - a counter has no event
                        await asyncio.sleep(_POLL_S)
                yield telemetry
