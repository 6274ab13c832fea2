"""The Dockerfile without Docker: `python -m tests.service.image [python3.13]` builds and starts it.

The steps are read from the Dockerfile itself. Those of the first stage build the virtual
environment and run anywhere; those of the second stage need Debian and are not run here.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.still_house import StillHouse
from tests.service.disk import small_disk
from tests.service.process import ROOT, TOKEN

DOCKERFILE = ROOT / "docker" / "Dockerfile"

_MEGABYTE = 1_000_000
_OURS = ("PYTHON", "VIRTUAL_ENV", "COVERAGE_", "UV_")
_STANDARD_LIBRARY = """
import pathlib, sys, sysconfig
library = pathlib.Path(sysconfig.get_path("stdlib"))
left_out = {"site-packages", "test", "idlelib", "__pycache__"}  # as in the image `python:slim`
files = [p for p in library.rglob("*") if p.is_file() and not left_out & set(p.parts)]
files = [p for p in files if p.suffix != ".a"]
shared = pathlib.Path(sys.base_prefix, "lib").glob("libpython3*.so*")
program = pathlib.Path(sys.executable).resolve()
print(sum(p.lstat().st_size for p in (*files, *shared, program)))
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction of a Dockerfile."""

    word: str
    text: str

    @property
    def command(self) -> list[str]:
        """The words of the exec form, wherever in the instruction it begins."""
        words = json.loads(self.text[self.text.index("[") :])
        assert isinstance(words, list)
        return [str(word) for word in words]


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """The folder and sizes that the build steps produced."""

    folder: Path
    """The folder that holds `app`."""
    python: Path
    interpreter_bytes: int
    packages_bytes: int
    app_bytes: int


def stages(text: str) -> list[list[Step]]:
    """Return the instructions of each stage of a Dockerfile; each begins with FROM."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    found: list[list[Step]] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            found.append([])
        if word and found:  # an ARG may precede the first stage
            found[-1].append(Step(word, rest.strip()))
    return found


def build(root: Path, *, python: str) -> Image:
    """Run the first stage below `root`, with the given interpreter instead of the image's.

    Raises:
        CalledProcessError: a step failed.
    """
    interpreter = root / "interpreter"
    _run([python, "-m", "venv", str(interpreter)], cwd=root, env=dict(os.environ))
    outside = {name: text for name, text in os.environ.items() if not name.startswith(_OURS)}
    environment = outside | {"PATH": f"{interpreter / 'bin'}:{os.environ['PATH']}"}
    folder = root
    for step in stages(DOCKERFILE.read_text())[0]:
        match step.word:
            case "ENV":
                pairs = (word.partition("=") for word in shlex.split(step.text))
                environment |= {name: value for name, _, value in pairs}
            case "WORKDIR":
                folder = root / step.text.lstrip("/")
                folder.mkdir()
            case "COPY":
                *sources, target = step.text.split()
                _copy(sources, folder / target)
            case "RUN":
                _run(["sh", "-c", step.text], cwd=folder, env=environment)
            case other:
                assert other == "FROM", f"{other} is not supported here"
    return _measured(folder)


def interpreter_of_the_image() -> str:
    """Return the Python version of the image if it is installed here, else the running one."""
    version = stages(DOCKERFILE.read_text())[0][0].text.partition(":")[2].partition("-")[0]
    found = shutil.which(f"python{version}")
    # pyenv puts shims on PATH for versions that are not in use, and those fail.
    works = found and subprocess.run([found, "--version"], capture_output=True, check=False)
    return found if found and works and works.returncode == 0 else sys.executable


def _copy(sources: Sequence[str], target: Path) -> None:
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, target)


def _run(command: Sequence[str], *, cwd: Path, env: dict[str, str]) -> None:
    subprocess.run(command, cwd=cwd, env=env, check=True, stdout=subprocess.DEVNULL, timeout=300)


def _measured(folder: Path) -> Image:
    python = folder / ".venv" / "bin" / "python"
    answer = subprocess.run(
        [python, "-c", _STANDARD_LIBRARY], capture_output=True, check=True, text=True
    )
    return Image(
        folder=folder,
        python=python,
        interpreter_bytes=int(answer.stdout),
        packages_bytes=_size(folder / ".venv"),
        app_bytes=_size(folder / "app"),
    )


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


async def _start(image: Image, folder: Path) -> float:
    """Start the service on a read-only root, and return the seconds until it is healthy.

    As with `docker run --read-only`, only the data folder can be written.
    """
    async with (
        FakeHomeAssistant(StillHouse(), token=TOKEN) as home_assistant,
        small_disk(folder, megabytes=64) as disk,
    ):
        await disk.protect_all_else()
        environment = {
            "HOME_ASSISTANT_URL": home_assistant.url,
            "HOME_ASSISTANT_TOKEN": TOKEN,
            "PYTHONPATH": "",
        }
        begun = time.monotonic()
        async with disk.service(
            folder, environment, python=str(image.python), cwd=image.folder
        ) as running:
            await running.until("/health", lambda health: health["status"] == "healthy")
            took_s = time.monotonic() - begun
            assert await running.stop() == 0
    return took_s


def main() -> None:
    """Print what the build produced and how long the service takes to become healthy."""
    python = sys.argv[1] if len(sys.argv) > 1 else interpreter_of_the_image()
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        image = build(Path(folder), python=python)
        built_s = time.monotonic() - begun
        healthy_s = asyncio.run(_start(image, Path(folder)))
    sizes = {
        "interpreter, without its tests and bytecode": image.interpreter_bytes,
        "site-packages, with bytecode": image.packages_bytes,
        "app, with bytecode": image.app_bytes,
    }
    sizes["total, without Debian"] = sum(sizes.values())
    lines = [f"{size / _MEGABYTE:6.1f} MB  {name}\n" for name, size in sizes.items()]
    sys.stdout.write(
        f"Built with {python} in {built_s:.0f} s, "
        f"healthy {healthy_s:.1f} s later with a read-only root\n"
    )
    sys.stdout.writelines(lines)


if __name__ == "__main__":
    main()
