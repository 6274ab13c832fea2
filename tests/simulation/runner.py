"""Runs worlds in processes of their own, shrinks what fails, and prints the figures."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from multiprocessing.pool import Pool
from pathlib import Path

from tests.simulation.effects import EFFECTS
from tests.simulation.faults import FAULTS
from tests.simulation.world import Plan, Result, World

_SHRINKING_S = 90.0
_SHOWN_LINES = 150
_AHEAD = 16
"""How many worlds wait for a process, or for a slower one before them."""
_EFFECT_S = 600.0
"""How long the worlds are in which the effect of a kind of fault is looked for."""
_EFFECT_SEEDS = (1, 2, 3)
_RAM = Path("/dev/shm")
_kept: list[World] = []
"""Worlds that have ended: collecting them would run the `finally` blocks of killed processes."""


def run_world(plan: Plan, only: Sequence[int] | None = None) -> Result:
    """Run one world; this process must not run another."""
    actions = plan.actions()
    chosen = actions if only is None else [actions[number] for number in only]
    with tempfile.TemporaryDirectory(dir=_RAM if _RAM.is_dir() else None) as folder:
        world = World(plan, Path(folder))
        _kept.append(world)
        return world.run(chosen)


def run_many(first: Plan, *, virtual_s: float, hours: float | None, jobs: int | None) -> int:
    """Run this plan and those of the seeds after it until the time is up or one fails.

    Return the exit status.
    """
    plans: Iterator[Plan] = (replace(first, seed=seed) for seed in count(first.seed))
    if hours is None:
        plans = iter([next(plans) for _ in range(max(1, round(virtual_s / first.seconds)))])
    deadline = time.monotonic() + (hours or 1e6) * 3600
    began, total = time.monotonic(), _Totals()
    _say(f"simulate: seeds from {first.seed}, worlds of {first.seconds:g} s")
    with _pool(jobs) as pool:
        for result in _results(pool, _until(deadline, plans)):
            total.add(result)
            if result.error is not None:
                _say(total.text(time.monotonic() - began), _verdict(result), "Shrinking it")
                _explain(pool, replace(first, seed=result.seed), result)
                return 1
    _say(total.text(time.monotonic() - began))
    return 0


def run_each_kind(jobs: int | None) -> int:
    """Print the kinds of faults whose effect does not show; return the exit status."""
    left = sorted(FAULTS.keys() & EFFECTS.keys())
    began, total = time.monotonic(), _Totals()
    with _pool(jobs) as pool:
        for seed in _EFFECT_SEEDS:
            worlds: dict[str, Plan] = {}
            for kind in left:
                worlds[kind] = plan = _effect_plan(kind, seed)
                others = [action for action in plan.actions() if action.kind != kind]
                worlds[_without(kind)] = replace(plan, kinds=(), given=tuple(others))
            found = dict(zip(worlds, pool.map(_effects, worlds.values(), 1), strict=True))
            for result, _ in found.values():
                total.add(result)
                if result.error is not None:
                    _say(*result.log, _verdict(result))
                    return 1
            left = [kind for kind in left if kind not in found[kind][1] - found[_without(kind)][1]]
    left += sorted(FAULTS.keys() ^ EFFECTS.keys())
    _say(total.text(time.monotonic() - began), f"Without an effect: {', '.join(left) or 'none'}")
    return bool(left)


def _effect_plan(kind: str, seed: int) -> Plan:
    beside = EFFECTS[kind].beside
    return Plan(
        seed=seed,
        seconds=_EFFECT_S,
        fault_every_s=_EFFECT_S / 12 / (1 + len(beside)),
        kinds=(kind, *beside),
        database="v2",
    )


def _without(kind: str) -> str:
    """Name the world without a kind of fault: the same for all that need no others."""
    return f"without {kind}" if EFFECTS[kind].beside else "without faults"


def _effects(plan: Plan) -> tuple[Result, set[str]]:
    """Run one world, and return the kinds of faults whose effects show in it."""
    result = run_world(plan)
    return result, {kind for kind, effect in EFFECTS.items() if effect.shows(_kept[-1])}


def replay(plan: Plan, *, only: Sequence[int] | None, show_log: bool) -> int:
    """Run one world and print what happened; return the exit status."""
    began = time.monotonic()
    with _pool(1) as pool:
        result = pool.apply(run_world, (plan, only))
    if show_log or result.error is not None:
        _say(*result.log)
    total = _Totals()
    total.add(result)
    _say(total.text(time.monotonic() - began), f"trace {result.trace}")
    if result.error is not None:
        _say(_verdict(result))
    return result.error is not None


class _Totals:
    """The figures of all worlds so far."""

    def __init__(self) -> None:
        self._sums: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()

    def add(self, result: Result) -> None:
        """Add a world."""
        self._kinds.update(result.kinds)
        for name in ("virtual_s", "events", "restarts", "writes", "gaps", "backfilled"):
            self._sums[name] += round(getattr(result, name))
        self._sums["worlds"] += 1

    def text(self, real_s: float) -> str:
        """Return them as a paragraph."""
        sums = self._sums
        kinds = ", ".join(f"{kind} {number}" for kind, number in sorted(self._kinds.items()))
        return (
            f"simulate: {sums['worlds']} worlds, {sums['virtual_s']:,} virtual seconds,"
            f" {self._kinds.total():,} faults, {sums['events']:,} events,"
            f" {sums['restarts']:,} restarts of the service, {sums['writes']:,} writes,"
            f" {sums['gaps']:,} gaps, {sums['backfilled']:,} changes read back;"
            f" {real_s:.0f} s, x{sums['virtual_s'] / max(real_s, 0.001):,.0f}\nfaults: {kinds}"
        )


def _pool(jobs: int | None) -> Pool:
    """Return processes that each run one world, with everything imported."""
    gc.collect()
    gc.freeze()
    return multiprocessing.get_context("fork").Pool(jobs or os.cpu_count(), maxtasksperchild=1)


def _results(pool: Pool, plans: Iterator[Plan]) -> Iterator[Result]:
    """Yield results in the order of the plans; only a few worlds wait for a process."""
    running = deque(pool.apply_async(run_world, (plan,)) for plan in islice(plans, _AHEAD))
    while running:
        yield running.popleft().get()
        running += [pool.apply_async(run_world, (plan,)) for plan in islice(plans, 1)]


def _until(deadline: float, plans: Iterator[Plan]) -> Iterator[Plan]:
    for plan in plans:
        if time.monotonic() > deadline:
            return
        yield plan


def _explain(pool: Pool, plan: Plan, result: Result) -> None:
    """Shrink a failure, and print its actions, its log and how to replay it."""
    actions = plan.actions()
    numbers, result = shrunk(pool, plan, result)
    only = ",".join(map(str, numbers))
    kinds = f" --kinds {','.join(plan.kinds)}" if plan.kinds else ""
    path = Path(tempfile.gettempdir()) / f"simulation-{plan.seed}.log"
    path.write_text("\n".join(result.log))
    kept = path.with_suffix(".json")
    kept.write_text(plan.written(numbers))
    _say(
        f"\nThe actions that are needed ({len(numbers)} of {len(actions)}):",
        *(f"{number:4} {actions[number]}" for number in numbers),
        f"\nThe end of its log, in virtual time (all of it: {path}):",
        *result.log[-_SHOWN_LINES:],
        _verdict(result),
        f"Replay: .venv/bin/python -m tests.simulation --plan {kept}",
        f"or, until a fault is added: --seed {plan.seed} --seconds {plan.seconds:g} --only {only}"
        f"{kinds}",
    )


def shrunk(pool: Pool, plan: Plan, result: Result) -> tuple[list[int], Result]:
    """Return the fewest actions found that still fail in the same way, and that failure."""
    numbers, kind = list(range(len(plan.actions()))), _kind(result)
    deadline = time.monotonic() + _SHRINKING_S
    parts = 1  # first without any
    while len(numbers) >= 1 and time.monotonic() < deadline:
        size = -(-len(numbers) // parts)
        kept = [numbers[:start] + numbers[start + size :] for start in range(0, len(numbers), size)]
        running = [(some, pool.apply_async(run_world, (plan, some))) for some in kept]
        found = ((some, each.get()) for some, each in running if time.monotonic() < deadline)
        failing = next(((some, each) for some, each in found if _kind(each) == kind), None)
        if failing is not None:
            numbers, result = failing
            parts = max(2, parts - 1)
        elif size == 1:
            break
        else:
            parts = min(len(numbers), parts * 2)
    return numbers, result


def _verdict(result: Result) -> str:
    return f"\nFAILED seed {result.seed}: {result.error}"


def _kind(result: Result) -> str | None:
    """Return what must stay the same while a failure is shrunk."""
    return None if result.error is None else ":".join(result.error.split(":")[:2])


def _say(*lines: str) -> None:
    sys.stdout.write("\n".join([*lines, ""]))
    sys.stdout.flush()
