"""Nothing of the product escapes the simulation unless it is listed with a reason."""

from __future__ import annotations

from pathlib import Path

from tests.simulation.escapes import ESCAPES, NOT_RUN, unlisted, uses

APP = Path(__file__).parents[2] / "app"


def test_every_direct_use_of_time_chance_threads_and_files_is_simulated_or_listed() -> None:
    """A new one is replaced in the simulation, or listed with its reason."""
    assert unlisted(APP) == []


def test_what_is_listed_exists() -> None:
    """An entry that nothing needs would hide the next use."""
    found = set(uses(APP))

    assert set(ESCAPES) <= found
    assert all(any(name.startswith(part) for name, _ in found) for part in NOT_RUN)


def test_a_new_use_is_found(tmp_path: Path) -> None:
    """However it is imported."""
    (tmp_path / "new.py").write_text(
        "import os\nimport time as t\nfrom datetime import datetime\nfrom random import choice\n"
        "t.sleep(1)\nos.urandom(8)\ndatetime.now()\nchoice([1])\nopen('x')\npath.read_text()\n"
        "os.path.join('a')\nfrom threading import Thread as T\nT()\n"
    )

    assert {used for _, used in unlisted(tmp_path)} == {
        *("time.sleep", "os.urandom", "datetime.now", "random.choice", "open", "Path.read_text"),
        "threading.Thread",
    }
