"""`python -m tests.simulation.mutants`: whether the simulation finds faults of the service.

`mutants.toml` has faults that are put into the service on purpose. For each, the tree is copied
and worlds are run in the copy until one fails: then the mutant is killed. The unchanged tree must
pass every world that killed one. Results are kept in a file, so that a run that was stopped goes
on where it was. See docs/PROOF.md.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.world import Plan

ROOT = Path(__file__).parents[2]
KEPT = Path(__file__).parent / "kept"
LISTED: Mapping[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
AIMS: Mapping[str, Mapping[str, Any]] = {"general": {}, **LISTED["aim"]}
"""How the worlds of each aim differ from others: fields of a plan."""
_COPIED = ("app", "simulator", "tests")
_LASTING = frozenset({"tests", "tests.simulation", "tests.simulation.clocks"})
_WORLDS = 4
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
    aim: str = "general"
    """Which worlds should find it: a key of `AIMS`."""
    killed_by: str | None = None
    """A world that found it once, which is tried first: an aim and a seed, or a kept plan."""
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

    def worlds(self, seeds: int) -> list[str]:
        """Return the names of the worlds to run, in this order."""
        first = [self.killed_by] if self.killed_by else []
        kept = sorted(path.stem for path in KEPT.glob("*.json")) if self.aim == "general" else []
        seeds_of_aim = [f"{self.aim} {seed}" for seed in range(1, seeds + 1)]
        return list(dict.fromkeys([*first, *kept, *seeds_of_aim]))

    @property
    def digest(self) -> str:
        """What changes when the mutant does."""
        return _digest(self.file, self.old, self.new)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a mutant, or of the unchanged tree in one world."""

    name: str
    """The mutant; the world when the tree is unchanged."""
    digest: str
    world: str | None
    """The first world that failed; None when all passed."""
    error: str
    cpu_s: float
    passed: int
    """How many worlds passed before."""
    at: str = ""

    def __str__(self) -> str:
        why = f"{self.world}: {self.error}" if self.world else f"passes {self.passed} worlds"
        return f"{self.name[:76]:76}  {self.cpu_s:6.1f} s  {why}"


@dataclass(frozen=True, slots=True)
class Run:
    """A mutant, or the unchanged tree, and its worlds."""

    name: str
    digest: str
    mutant: Mutant | None
    worlds: Sequence[str]


class Results:
    """Verdicts in a file, one per line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        found = [Verdict(**json.loads(line)) for line in lines]
        self._found = {(each.name, each.digest): each for each in found}

    def get(self, name: str, digest: str) -> Verdict | None:
        """Return the verdict of an earlier run."""
        return self._found.get((name, digest))

    def add(self, verdict: Verdict) -> None:
        """Append a verdict, and print it."""
        self._found[verdict.name, verdict.digest] = verdict
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(verdict)) + "\n")
        _say(str(verdict))


def mutants() -> list[Mutant]:
    """Return all mutants."""
    return [Mutant(**each) for each in LISTED["mutant"]]


def main() -> int:
    """Run the mutants; return 1 if too many survive or the unchanged tree fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="mutants whose name or file contains this text")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants at a time")
    parser.add_argument("--worlds", type=int, default=_WORLDS, help="seeds of each aim, at most")
    parser.add_argument("--results", type=Path, help="file of the results; default: one per tree")
    parser.add_argument("--again", action="store_true", help="run those again that survived")
    chosen = parser.parse_args()
    _preload()
    tree = _digest(*(path.read_text() for path in _sources()))
    default = Path(tempfile.gettempdir()) / f"mutants-simulation-{tree}.jsonl"
    results = Results(chosen.results or default)
    found = [each for each in mutants() if chosen.only in f"{each.name} {each.file}"]
    verdicts = {each.name: results.get(each.name, each.digest) for each in found}
    missing = [
        each
        for each in found
        if (known := verdicts[each.name]) is None or (chosen.again and known.world is None)
    ]
    _say(f"{len(found) - len(missing)} of {len(found)} verdicts are in {results.path}")
    runs = (Run(each.name, each.digest, each, each.worlds(chosen.worlds)) for each in missing)
    for verdict in _verdicts(runs, jobs=chosen.jobs):
        results.add(verdict)
        verdicts[verdict.name] = verdict
    done = [each for each in verdicts.values() if each is not None]
    killers = sorted({each.world for each in done if each.world not in {None, "import"}})
    controls = {world: results.get(world, tree) for world in killers}
    runs = (Run(world, tree, None, [world]) for world in killers if controls[world] is None)
    for verdict in _verdicts(runs, jobs=chosen.jobs):
        results.add(verdict)
        controls[verdict.name] = verdict
    return _summary(found, done, [each for each in controls.values() if each is not None])


def _summary(
    found: Sequence[Mutant], verdicts: Sequence[Verdict], controls: Sequence[Verdict]
) -> int:
    by_name, failed = {each.name: each for each in verdicts}, {c.name for c in controls if c.world}
    killed = 0
    _say("\n| mutant | killed by | what the world shows | CPU s |\n|---|---|---|---|")
    for mutant in found:
        verdict = by_name[mutant.name]
        is_killed = verdict.world is not None and verdict.world not in failed
        killed += is_killed
        why = verdict.error if is_killed else mutant.survives or "NOT EXPLAINED"
        by = verdict.world if is_killed else "**survives**"
        _say(f"| {mutant.name} | {by} | {why.replace('|', '/')[:90]} | {verdict.cpu_s:.0f} |")
    cpu_s = sum(each.cpu_s for each in (*verdicts, *controls))
    _say(f"\n{killed} of {len(found)} mutants killed, {cpu_s:,.0f} s of CPU time")
    _say(f"The unchanged tree passes {len(controls) - len(failed)} of {len(controls)} worlds")
    for each in controls:
        if each.world is not None:
            _say(f"The unchanged tree fails: {each}")
    return killed < _SHARE * len(found) or bool(failed)


def _verdicts(runs: Iterator[Run], *, jobs: int) -> Iterator[Verdict]:
    """Yield what becomes of each, as they end; `jobs` of them run at a time."""
    running: dict[Connection, tuple[Run, BaseProcess]] = {}
    while True:
        for run in islice(runs, jobs - len(running)):
            process, receiver = _started(_run_worlds, run)
            running[receiver] = run, process
        if not running:
            return
        for ended in wait([*running]):
            receiver = next(each for each in running if each is ended)
            run, process = running.pop(receiver)
            shown: Mapping[str, Any] = {"world": "import", "error": "", "cpu_s": 0.0, "passed": 0}
            with suppress(EOFError):
                shown = receiver.recv()
            process.join()
            at = datetime.now(UTC).isoformat(timespec="seconds")
            yield Verdict(name=run.name, digest=run.digest, at=at, **shown)


def _started(work: Callable[..., None], given: object) -> tuple[BaseProcess, Connection]:
    """Run something in a process of its own, and return from where to receive what it sends."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(given, sender))
    process.start()
    sender.close()
    return process, receiver


def _preload() -> None:
    """Import everything with replaced clocks, and forget the service and what imports it.

    Each mutant imports these again; the libraries take most of the time.
    """
    from tests.simulation import clocks  # noqa: PLC0415 - not for those who only list mutants

    clocks.install()
    from tests.simulation import runner  # noqa: F401, PLC0415 - before the service is imported

    for name in [*sys.modules]:
        if name.split(".")[0] in _COPIED and name not in _LASTING:
            del sys.modules[name]
    for kept in ("tests", "tests.simulation"):
        for name, value in [*vars(sys.modules[kept]).items()]:
            if isinstance(value, ModuleType) and value.__name__ not in {*_LASTING, "__main__"}:
                delattr(sys.modules[kept], name)
    gc.collect()
    gc.freeze()


@contextmanager
def _tree(mutant: Mutant | None) -> Iterator[Path]:
    """Return a folder with a copy of the service, with a mutant in it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "app", copy / "app")
        if mutant is not None:
            changed = copy / mutant.file
            changed.write_text(mutant.applied_to(changed.read_text()))
        yield copy


def _sources() -> list[Path]:
    return sorted(path for name in _COPIED for path in (ROOT / name).rglob("*.py"))


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


def _plan(world: str) -> Plan:
    """Return the plan of a world by its name."""
    from tests.simulation.world import Action, Plan  # noqa: PLC0415 - of the copied tree

    if (kept := KEPT / f"{world}.json").exists():
        return Plan.read(kept)
    aim, seed = world.rsplit(" ", 1)
    chosen = {"seconds": _SECONDS, "fault_every_s": _FAULT_EVERY_S, **AIMS[aim]}
    chosen["kinds"] = tuple(chosen.get("kinds", ()))
    if actions := chosen.pop("actions", None):
        chosen["given"] = tuple(Action(*action) for action in actions)
    return Plan(seed=int(seed), **chosen)


def _run_worlds(run: Run, sender: Connection) -> None:
    """Send what the first world that fails shows."""
    failed, error, passed = None, None, 0
    with _tree(run.mutant) as copy:
        sys.path.insert(0, str(copy))
        for world in run.worlds:
            if (error := _error_of(world)) is not None:
                failed = world
                break
            passed += 1
    own, children = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu_s = round(own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime, 1)
    sender.send({"world": failed, "error": error or "", "cpu_s": cpu_s, "passed": passed})


def _error_of(world: str) -> str | None:
    """Run a world in a process of its own; return the beginning of its error."""
    error: str | None = f"the world does not end within {_MAX_CPU_S} s"
    process, receiver = _started(_run, _plan(world))
    with suppress(EOFError):
        error = receiver.recv()
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
