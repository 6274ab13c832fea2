"""`python -m benchmarks [--smoke] [names…]`: measures, prints tables, writes results and README."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace

from benchmarks import outage
from benchmarks.baseline import entities_by_id, write_plainly
from benchmarks.corpus import make_corpus, make_frames
from benchmarks.end_to_end import Load, Outcome, run
from benchmarks.growth import measure_entities, measure_journal, print_growth
from benchmarks.page import Baseline, print_ratios, refresh
from benchmarks.peers import Where, peer
from benchmarks.stages import EVENTS_PER_FRAME, Cost, make_material, measure_stages, print_stages
from benchmarks.start import measure_start, print_start
from benchmarks.tables import machine, save

_NAMES = ("stages", "baseline", "start", "growth", "end-to-end", "outage")
_LEAST_RATIO = 3.0
_SMOKE_EVENTS = 4_000
_BASELINE_ROUNDS = 3
_FULL_SPEED = Load(rate=0, seconds=60, watchers=0)
_CROWD = Load(rate=1_000, seconds=10, watchers=0)
_LOADS = (
    Load(watchers=0, check=True),
    Load(watchers=0, coalesced=False, check=True),
    Load(watchers=1, seconds=30, check=True),
    Load(watchers=1, seconds=30, coalesced=False, check=True),
    _FULL_SPEED,
    replace(_FULL_SPEED, seconds=30, coalesced=False),
    replace(_FULL_SPEED, seconds=30, answer_delay_s=0.05),
    Load(rate=15_000, seconds=30, watchers=0, embedded=True),
    *(replace(_CROWD, crowd=clients) for clients in (0, 1, 10, 100)),
    Load(rate=0.4, seconds=60, watchers=0),
    Load(rate=10, seconds=20, watchers=0),
)
_SMOKE_LOADS = (
    Load(seconds=5, watchers=0, patient=True, max_pending_points=100_000),
    # Four times: the cheapest one counts, for what else a machine does only adds to it.
    *(replace(_FULL_SPEED, seconds=3) for _ in range(4)),
)
_SMOKE_OUTAGE = outage.Outage(seconds=3, backlog_events=50_000)


async def measure_baseline(*, events: int, rounds: int) -> Baseline:
    """Measure the plain way with 50 events per frame; the cheapest round counts."""
    corpus = make_corpus(events)
    frames = make_frames(corpus, per_frame=EVENTS_PER_FRAME)
    entities = entities_by_id(corpus.registries["entity"])
    cheapest_s, written = float("inf"), 0
    async with peer("benchmarks.sink") as database:
        url = (await database.ask(Where, "where")).url
        for _ in range(rounds):
            written, cpu_s = write_plainly(frames, entities=entities, url=url)
            cheapest_s = min(cheapest_s, cpu_s)
    return Baseline(events=written, cpu_us_per_event=cheapest_s / written * 1e6)


def misses(
    baseline: Baseline, outcomes: Sequence[Outcome], costs: Sequence[Cost] = ()
) -> list[str]:
    """Return what is worse than it may be on any machine."""
    found = []
    # At full speed, as the plain way was measured: one that waits finds its caches cold. And in
    # one process, as the plain way is: three at once on two cores slow each other down.
    cheapest = [outcome.cpu_us_per_event for outcome in outcomes]
    cheapest += [cost.cpu_us for cost in costs if cost.stage.startswith("the whole way")]
    ratio = baseline.cpu_us_per_event / min(cheapest)
    if ratio < _LEAST_RATIO:
        found.append(f"{ratio:.1f} times cheaper than the plain way, not {_LEAST_RATIO:.0f}")
    for outcome in outcomes:
        if outcome.missing or outcome.repeated:
            found.append(f"{outcome.name}: {outcome.missing} missing, {outcome.repeated} repeated")
        if outcome.disconnects:
            found.append(f"{outcome.name}: {outcome.disconnects} disconnects")
    return found


async def _measure_at_leisure(names: Sequence[str]) -> None:
    """Measure what takes long and is no ratio."""
    if "start" in names:
        start = await measure_start()
        print_start(start)
        save("start", start, published=True)
    if "growth" in names:
        growth = {"entities": measure_entities(), "journal": await measure_journal()}
        for size, points in growth.items():
            print_growth(points)
            save(f"growth-{size}", points, published=True)


async def _measure_outage(*, smoke: bool) -> list[str]:
    figures = await outage.run(_SMOKE_OUTAGE if smoke else outage.Outage())
    save("outage", figures, published=not smoke)
    return outage.misses(figures) if smoke else []


async def main(names: Sequence[str], *, smoke: bool, at_most_s: float) -> int:
    """Measure what is named and return the exit status."""
    print(machine())
    baseline: Baseline | None = None
    outcomes: list[Outcome] = []
    costs: list[Cost] = []
    if "stages" in names:
        material = make_material(_SMOKE_EVENTS) if smoke else make_material()
        costs = await measure_stages(material, rounds=2 if smoke else 5)
        print_stages(costs)
        save("stages", costs, published=not smoke)
    if "baseline" in names:
        events = _SMOKE_EVENTS if smoke else len(make_corpus().templates)
        baseline = await measure_baseline(events=events, rounds=_BASELINE_ROUNDS)
        save("baseline", baseline, published=not smoke)
    if not smoke:
        await _measure_at_leisure(names)
    if "end-to-end" in names:
        loads = _SMOKE_LOADS if smoke else _LOADS
        outcomes = await run(
            *(replace(load, seconds=min(load.seconds, at_most_s)) for load in loads)
        )
        save("end-to-end", outcomes, published=not smoke)
    if baseline is not None:
        print_ratios(baseline, outcomes)
    found = misses(baseline, outcomes, costs) if smoke and baseline and outcomes else []
    if "outage" in names:
        found += await _measure_outage(smoke=smoke)
    if not smoke:
        refresh()
    for miss in found:
        print(f"MISSED: {miss}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="brief; exit 1 for a missed ratio")
    parser.add_argument(
        "--at-most", type=float, default=60.0, help="seconds a load lasts (%(default)s)"
    )
    parser.add_argument("names", nargs="*", help=f"of {', '.join(_NAMES)}; none means all")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(_NAMES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    sys.exit(
        asyncio.run(main(chosen.names or _NAMES, smoke=chosen.smoke, at_most_s=chosen.at_most))
    )
