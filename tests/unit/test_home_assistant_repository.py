"""The files that Home Assistant's Supervisor and app store read.

The rules are those of `supervisor/apps/validate.py`, `supervisor/apps/utils.py` and
`supervisor/store/data.py` of August 2026, and of the linter at
https://github.com/frenck/action-addon-linter.
"""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import __version__
from app.commands.home_assistant_app import LIVE, environment
from app.settings import load_settings
from tests.service.image import stages

ROOT = Path(__file__).parents[2]
APP = ROOT / "docker" / "home-assistant"

_REQUIRED = {"name", "version", "slug", "description", "arch"}
_OPTIONAL = {
    *("url", "startup", "boot", "timeout", "homeassistant_api", "hassio_api"),
    "services",
    *("ingress", "ingress_port"),
    *("panel_icon", "panel_title", "apparmor", "backup", "backup_pre", "backup_post"),
    *("backup_exclude", "options", "schema", "image", "init", "stage", "homeassistant"),
}
"""Without what is obsolete, and without what lowers the rating or opens the host."""
_ELEMENT = re.compile(
    r"(bool|email|url|port|str(\((\d+)?,(\d+)?\))?|password(\((\d+)?,(\d+)?\))?"
    r"|int(\((-?\d+)?,(-?\d+)?\))?|float(\((-?\d*\.?\d+)?,(-?\d*\.?\d+)?\))?"
    r"|match\(.*\)|list\(.+\))\??"
)


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """Return config.yaml."""
    loaded: dict[str, Any] = yaml.safe_load((APP / "config.yaml").read_text())
    return loaded


def test_the_store_finds_the_repository_and_one_app() -> None:
    """It reads every config.yaml, config.yml and config.json below the root."""
    repository = yaml.safe_load((ROOT / "repository.yaml").read_text())
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()

    assert set(repository) == {"name", "url", "maintainer"}
    found = [file for file in listed if re.fullmatch(r"(.*/)?config\.(ya?ml|json)", file)]
    assert found == ["docker/home-assistant/config.yaml"]


def test_the_supervisor_accepts_the_configuration(config: dict[str, Any]) -> None:
    """Every key is known and none obsolete; the values have the Supervisor's forms."""
    assert set(config) >= _REQUIRED
    assert set(config) <= _REQUIRED | _OPTIONAL
    assert config["version"] == __version__
    assert re.fullmatch(r"[-_.A-Za-z0-9]+", config["slug"])
    assert config["arch"] == ["aarch64", "amd64"]
    assert config["backup"] == "hot"
    assert 10 <= config["timeout"] <= 300


def test_the_security_rating_is_8(config: dict[str, Any]) -> None:
    """5, 2 for ingress, and 1 for an AppArmor profile; nothing that costs points."""
    lowering = {
        *("privileged", "kernel_modules", "hassio_role", "host_network", "host_pid", "host_uts"),
        *("docker_api", "full_access"),
    }
    assert not lowering & set(config)
    assert config["ingress"]
    assert config["apparmor"]
    assert (APP / "apparmor.txt").read_text().count(f"profile {config['slug']} ") == 1


def test_stopping_may_take_longer_than_the_service_takes(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the Supervisor would kill it."""
    for name, value in environment({}, token="f" * 112, data=Path("/data")).items():
        monkeypatch.setenv(name, value)

    assert config["timeout"] > load_settings().resilience.shutdown_timeout_s


def test_every_option_is_a_setting(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the default options, and with one of each kind, the settings can be used."""
    documented = (ROOT / "docs" / "SETTINGS.md").read_text()
    schema = dict(config["schema"])
    assert schema.pop("environment") == [{"name": "match(^[A-Za-z_]+$)", "value": "str"}]
    for name, element in schema.items():
        assert f"`{name.upper()}`" in documented
        assert _ELEMENT.fullmatch(element), name
        assert element.endswith("?"), f"{name} has a default of its own"
    options = config["options"] | {"influxdb_url": "http://db:8086"}
    options |= {
        name: element[5:-2].split("|")[-1]
        for name, element in schema.items()
        if element.startswith("list(")
    }
    for name, value in environment(options, token="f" * 112, data=Path("/data")).items():
        monkeypatch.setenv(name, value)

    chosen = load_settings()

    assert str(chosen.serving.port) == str(config["ingress_port"])
    assert chosen.home_assistant.url == "ws://supervisor/core/websocket"
    assert chosen.journal.data_dir == Path("/data") / LIVE


@pytest.mark.parametrize("language", ["en", "de"])
def test_every_option_is_translated(config: dict[str, Any], language: str) -> None:
    """The linter requires that the keys are those of the schema."""
    file = APP / "translations" / f"{language}.yaml"
    texts = yaml.safe_load(file.read_text())["configuration"]

    assert list(texts) == list(config["schema"])
    for text in (*texts.values(), *texts["environment"]["fields"].values()):
        assert set(text) <= {"name", "description", "fields"}
        assert text["name"]
    assert set(texts["environment"]["fields"]) == {"name", "value"}


def test_backups_leave_out_what_is_being_written(config: dict[str, Any]) -> None:
    """And nothing else."""

    def is_left_out(file: str) -> bool:
        path = Path("/mnt/data/supervisor/apps/data/x_websocket_ingestion") / file
        return any(path.match(pattern) for pattern in config["backup_exclude"])

    assert is_left_out("live/journal.db")
    assert is_left_out("live/journal.db-wal")
    assert is_left_out("stored.new/journal.db")
    assert not is_left_out("stored/journal.db")
    assert not is_left_out("options.json")


def test_the_image_is_that_of_the_service_with_another_command() -> None:
    """It has the labels that the Supervisor reads, and starts as root to prepare /data."""
    *of_architectures, (first, *steps) = stages((APP / "Dockerfile").read_text())
    for (base, label), (docker, home_assistant) in zip(
        of_architectures, {"amd64": "amd64", "arm64": "aarch64"}.items(), strict=True
    ):
        assert base.text == f"${{IMAGE}} AS app-{docker}"
        assert label.text == f'io.hass.arch="{home_assistant}"'
    assert first.text == "app-${TARGETARCH}"
    labels = next(step.text for step in steps if step.word == "LABEL")
    for text in ("io.hass.version", 'io.hass.type="app"'):
        assert text in labels
    assert [step.text for step in steps if step.word == "USER"] == ["0:0"]
    assert steps[-1].command == ["python", "-m", "app", "home-assistant-app"]


@pytest.mark.parametrize(("name", "size"), [("icon.png", (128, 128)), ("logo.png", (250, 100))])
def test_the_pictures_have_the_size_that_the_store_shows(name: str, size: tuple[int, int]) -> None:
    """The header of a PNG states it."""
    head = (APP / name).read_bytes()[:24]

    assert head.startswith(b"\x89PNG")
    assert struct.unpack("!II", head[16:24]) == size
