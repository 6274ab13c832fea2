"""`python -m tests.simulation.mutants`: whether the simulation finds faults of the service.

`mutants.toml` has faults that are put into the service on purpose. For each, the tree is copied
and worlds are run in the copy until one fails: then the mutant is killed. The unchanged tree must
pass the same worlds. See docs/PROOF.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.world import Plan

ROOT = Path(__file__).parents[2]
KEPT = Path(__file__).parent / "kept"
_COPIED = ("app", "simulator", "tests")
_WORLDS = 12
_SECONDS = 1_800.0
_FAULT_EVERY_S = 45.0
_MAX_CPU_S = 60
"""A world that takes longer does not end."""
_SHARE = 0.95
"""How many of the mutants must be killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One change of the service that breaks a promise."""

    name: str
    file: str
    old: str
    new: str
    survives: str | None = None
    """Why no world finds it, if none does."""

    def applied_to(self, text: str) -> str:
        """Return the source with the change.

        Raises:
            ValueError: the old text is not there exactly once.
        """
        if (found := text.count(self.old)) != 1:
            raise ValueError(f"{self.name!r}: its old text occurs {found} times in {self.file}")
        return text.replace(self.old, self.new)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a mutant; of the unchanged tree when there is none."""

    mutant: Mutant | None
    world: str | None
    """The first world that failed; None when all passed."""
    error: str
    cpu_s: float

    def __str__(self) -> str:
        name, file = (self.mutant.name, self.mutant.file) if self.mutant else ("(none)", "")
        why = f"{self.world}: {self.error}" if self.world else "SURVIVES" if file else "passes"
        return f"{name[:72]:72}  {file:38}  {self.cpu_s:6.1f} s  {why}"


def mutants() -> list[Mutant]:
    """Return all mutants."""
    listed = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())["mutant"]
    return [Mutant(**each) for each in listed]


def main() -> int:
    """Run the mutants; return 1 if too many survive or the unchanged tree fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="mutants whose name or file contains this text")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants at a time")
    parser.add_argument("--worlds", type=int, default=_WORLDS, help="seeds until one survives")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.run:
        _run_worlds(chosen.worlds)
        return 0
    found = [each for each in mutants() if chosen.only in f"{each.name} {each.file}"]
    with ThreadPoolExecutor(chosen.jobs) as pool:
        running = [pool.submit(_verdict, mutant, worlds=chosen.worlds) for mutant in (None, *found)]
        for ended in as_completed(running):
            _say(str(ended.result()))
    return _summary([ended.result() for ended in running])


def _summary(verdicts: Sequence[Verdict]) -> int:
    survivors = [each for each in verdicts[1:] if each.world is None]
    killed, total = len(verdicts) - 1 - len(survivors), len(verdicts) - 1
    cpu_s = sum(each.cpu_s for each in verdicts)
    _say(f"\n{killed} of {total} mutants killed, {cpu_s:,.0f} s of CPU time")
    for each in survivors:
        assert each.mutant is not None
        _say(f"survives: {each.mutant.name}: {each.mutant.survives or 'NOT EXPLAINED'}")
    if (control := verdicts[0]).world is not None:
        _say(f"The unchanged tree fails: {control}")
    return killed < _SHARE * total or control.world is not None


def _verdict(mutant: Mutant | None, *, worlds: int) -> Verdict:
    """Run worlds in a copy of the tree until one fails."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in _COPIED:
            shutil.copytree(ROOT / name, copy / name)
        if mutant is not None:
            changed = copy / mutant.file
            changed.write_text(mutant.applied_to(changed.read_text()))
        run = subprocess.run(
            [sys.executable, "-m", "tests.simulation.mutants", "--run", f"--worlds={worlds}"],
            cwd=copy,
            capture_output=True,
            text=True,
            check=False,
        )
    if not run.stdout:
        return Verdict(mutant=mutant, world="import", error=run.stderr[-200:], cpu_s=0.0)
    return Verdict(mutant=mutant, **json.loads(run.stdout.splitlines()[-1]))


def _run_worlds(count: int) -> None:
    """Print what the first world that fails shows."""
    from tests.simulation import clocks  # noqa: PLC0415 - before the service is imported

    clocks.install()
    from tests.simulation.world import Plan  # noqa: PLC0415

    plans = {path.stem: Plan.read(path) for path in sorted(KEPT.glob("*.json"))}
    for seed in range(1, count + 1):
        plan = Plan(seed=seed, seconds=_SECONDS, fault_every_s=_FAULT_EVERY_S)
        plans[f"seed {seed}"] = plan
    world, error = None, None
    for name in sorted(plans, key=lambda name: len(plans[name].actions())):
        if (error := _error_of(plans[name])) is not None:
            world = name
            break
    own, children = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu_s = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    _say(json.dumps({"world": world, "error": error or "", "cpu_s": round(cpu_s, 1)}))


def _error_of(plan: Plan) -> str | None:
    """Run a world in a process of its own; return the beginning of its error."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(plan, sender))
    process.start()
    sender.close()
    try:
        error: str | None = receiver.recv()
    except EOFError:
        error = f"the world does not end within {_MAX_CPU_S} s"
    process.join()
    return None if error is None else error.removeprefix("Violation: ").splitlines()[0][:110]


def _run(plan: Plan, sender: Connection) -> None:
    from tests.simulation.runner import run_world  # noqa: PLC0415

    used_s = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used_s + _MAX_CPU_S, used_s + _MAX_CPU_S))
    sender.send(run_world(plan).error)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
