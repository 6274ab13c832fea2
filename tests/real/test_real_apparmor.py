"""The app's AppArmor profile is one that AppArmor's own parser compiles."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.real.servers import program

pytestmark = pytest.mark.real

PROFILE = Path(__file__).parents[2] / "docker" / "home-assistant" / "apparmor.txt"


def _compiled(profile: Path) -> subprocess.CompletedProcess[bytes]:
    parser = program("apparmor_parser")
    folder = parser.parents[1]
    rules = folder / "etc" / "apparmor.d"
    options = (
        "--stdout",
        "--skip-cache",
        "--base",
        rules,
        "--features-file",
        rules / "abi" / "3.0",
    )
    return subprocess.run([parser, *options, profile], capture_output=True, check=False)


def test_the_profile_of_the_app_is_compiled() -> None:
    """Neither a kernel with AppArmor nor root is needed for it."""
    compiled = _compiled(PROFILE)

    assert compiled.returncode == 0, compiled.stderr.decode()
    assert b"websocket_ingestion" in compiled.stdout


def test_an_unknown_capability_is_refused(tmp_path: Path) -> None:
    """A profile that the Supervisor could not load would end the installation."""
    wrong = tmp_path / "apparmor.txt"
    wrong.write_text(PROFILE.read_text().replace("capability chown,", "capability chownn,"))

    compiled = _compiled(wrong)

    assert compiled.returncode != 0
    assert b"chownn" in compiled.stderr
