"""`python -m tests.simulation`: run worlds in virtual time, and explain the first failure.

With `--seed` one world is run again. See docs/PROOF.md.
"""

# The clocks are replaced before anything imports the product.
# ruff: noqa: E402
from __future__ import annotations

from tests.simulation import clocks

clocks.install()

import argparse
import sys
import time
from pathlib import Path

from tests.simulation.runner import replay, run_each_kind, run_many
from tests.simulation.world import Plan


def main() -> int:
    """Run what the command line says; return 1 if a world failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run only the world of this seed")
    parser.add_argument("--first", type=int, help="first seed; default: drawn from the time")
    parser.add_argument("--virtual", type=float, default=330_000.0, help="virtual seconds in all")
    parser.add_argument("--hours", type=float, help="run for so many real hours instead")
    parser.add_argument("--seconds", type=float, default=3_600.0, help="length of each world")
    parser.add_argument("--jobs", type=int, help="worlds at a time; default: one per core")
    parser.add_argument("--only", help="numbers of the actions to keep, such as 3,7")
    parser.add_argument("--kinds", help="draw only these faults, such as crash,disk_fails")
    parser.add_argument("--each-kind", action="store_true", help="check that faults have effects")
    parser.add_argument("--plan", type=Path, nargs="+", help="run the plans in these files")
    parser.add_argument("--log", action="store_true", help="print the log of a seed that passes")
    chosen = parser.parse_args()
    if chosen.each_kind:
        return run_each_kind(chosen.jobs)
    if chosen.plan is not None:
        plans = map(Plan.read, chosen.plan)
        return max([replay(plan, only=None, show_log=chosen.log) for plan in plans])
    kinds = tuple(chosen.kinds.split(",")) if chosen.kinds else ()
    if chosen.seed is not None:
        plan = Plan(seed=chosen.seed, seconds=chosen.seconds, kinds=kinds)
        only = None if chosen.only is None else [int(n) for n in chosen.only.split(",") if n]
        return replay(plan, only=only, show_log=chosen.log)
    first = int(time.time()) if chosen.first is None else chosen.first
    return run_many(
        Plan(seed=first, seconds=chosen.seconds, kinds=kinds),
        virtual_s=chosen.virtual,
        hours=chosen.hours,
        jobs=chosen.jobs,
    )


if __name__ == "__main__":
    sys.exit(main())
