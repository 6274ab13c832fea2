"""Settings that name files and folders that the service may not read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.documents import ROOT

_NOBODY = 65_534
_WITHOUT_OVERRIDE = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")


@pytest.fixture
def forbidden(tmp_path: Path) -> Iterator[Path]:
    """Return a path in a folder that the service may not enter."""
    folder = tmp_path / "forbidden"
    (folder / "x").mkdir(parents=True)
    (folder / "x" / "y").write_text("hush")
    if os.geteuid() == 0:
        os.chown(folder, _NOBODY, _NOBODY)
    folder.chmod(0o700 if os.geteuid() == 0 else 0o000)
    yield folder / "x" / "y"
    folder.chmod(0o700)


def app(folder: Path, command: str, **settings: str) -> tuple[int, str]:
    """Run a command without root's read privilege; return its status and output."""
    may_drop = os.geteuid() == 0
    if may_drop and shutil.which("setpriv") is None:
        pytest.skip("setpriv is needed to drop root's read privilege")
    process = subprocess.run(
        [*(_WITHOUT_OVERRIDE if may_drop else ()), sys.executable, "-m", "app", command],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HOME_ASSISTANT_URL": "http://127.0.0.1:1",
            "HOME_ASSISTANT_TOKEN": "t" * 40,
            "WEBSOCKET_INGESTION_PORT": "0",
            "DATA_DIR": "data",
            **settings,
        },
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return process.returncode, process.stdout + process.stderr


@pytest.mark.parametrize(
    "name",
    [
        "DATA_DIR",
        "HOMEIQ_SHARED_PATH",
        "API_KEY_FILE",
        "HOME_ASSISTANT_CLIENT_CERT",
        "ENTITY_FILTER_CONFIG_FILE",
        "LOG_FILE",
    ],
)
def test_an_unreadable_path_gives_one_line_and_status_2(
    tmp_path: Path, forbidden: Path, name: str
) -> None:
    """For the service; the doctor reports it among its other checks."""
    status, output = app(tmp_path, "run", LOG_OUTPUT="file", **{name: str(forbidden)})
    doctor_status, doctor_output = app(tmp_path, "doctor", **{name: str(forbidden)})

    assert (status, output.count("\n")) == (2, 1)
    assert name in output
    assert doctor_status in {1, 2}
    assert "Traceback" not in doctor_output
    assert "hush" not in output + doctor_output


def test_an_unreadable_env_file_gives_one_line_and_status_2(tmp_path: Path) -> None:
    """The line names the file and the reason."""
    file = tmp_path / ".env"
    file.write_text("BATCH_SIZE=hush")
    if os.geteuid() == 0:
        os.chown(file, _NOBODY, _NOBODY)
    file.chmod(0o600 if os.geteuid() == 0 else 0o000)

    status, output = app(tmp_path, "run")

    assert (status, output.count("\n")) == (2, 1)
    assert ".env: cannot be read (Permission denied)" in output
