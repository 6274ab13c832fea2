"""Check what deploys the service: `make lint-deploy`, in an environment with the group `deploy`.

Exit status 1 when something is wrong. Checks that this machine cannot run are reported.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import yaml
from compose_spec import PyCompose

HERE = Path(__file__).parent
WORKFLOWS = HERE.parent / ".github" / "workflows"
KUBERNETES = ("1.30", "1.37")
"""The oldest and the newest version whose schema the manifests must fit."""

_VARIABLE = re.compile(r"\$\{(\w+)(?::?-([^{}]*)|:?\?[^{}]*)?\}")


def main() -> int:
    """Run all checks, say what each found, and return the exit status."""
    checks = {
        "Dockerfiles (hadolint)": _run("hadolint", *map(str, HERE.rglob("Dockerfile"))),
        "YAML (yamllint)": _run("yamllint", "--strict", "-c", str(HERE / ".yamllint"), str(HERE)),
        "compose.yaml (Compose Specification)": list(_compose(HERE / "compose.yaml")),
        "k8s (schemas of Kubernetes)": list(_kubernetes(HERE / "k8s")),
        "workflows (zizmor)": _failures("zizmor", "--offline", str(WORKFLOWS)),
        "AppArmor profile (apparmor_parser)": _profile(HERE / "home-assistant" / "apparmor.txt"),
        "systemd unit (systemd-analyze)": _unit(HERE / "systemd" / "websocket-ingestion.service"),
    }
    for name, problems in checks.items():
        result = "not checked, it is not installed" if problems is None else "ok"
        sys.stdout.write(f"{name}: {result if not problems else ''}\n")
        sys.stdout.writelines(f"  {problem}\n" for problem in problems or ())
    return 1 if any(checks.values()) else 0


def interpolated(text: str) -> str:
    """Fill in what Compose fills in: a variable's default, or else its name."""
    # What Docker replaces by the address of its host is no address to the checker.
    text = text.replace("host-gateway", "172.17.0.1")
    while (filled := _VARIABLE.sub(lambda found: found[2] or found[1], text)) != text:
        text = filled
    return text


def _run(*command: str) -> list[str]:
    """Return the output of a checker; there is none for a valid file."""
    ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    output = (ended.stdout + ended.stderr).splitlines()
    # systemd-analyze only warns of a misspelt key.
    return output or [f"{command[0]} ended with status {ended.returncode}"] * bool(ended.returncode)


def _failures(*command: str) -> list[str]:
    """Return the output of a checker that also prints something about a valid file."""
    ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    return (ended.stdout + ended.stderr).splitlines() if ended.returncode else []


def _compose(file: Path) -> Iterator[str]:
    try:
        PyCompose.from_yaml(interpolated(file.read_text())).validate()
    except ValueError as exc:
        yield str(exc)


def _kubernetes(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("*.yaml")):
        if file.name == "kustomization.yaml":
            continue  # no resource of a cluster; what it lists is looked at here
        for version in KUBERNETES:
            try:
                kubernetes_validate.validate(yaml.safe_load(file.read_text()), version, strict=True)
            except kubernetes_validate.ValidationError as exc:
                yield f"{file.name}, Kubernetes {version}: {exc.message}"


def _profile(file: Path) -> list[str] | None:
    """Compile the profile without loading it; None without AppArmor."""
    if shutil.which("apparmor_parser") is None:
        return None
    return _failures("apparmor_parser", "--skip-kernel-load", "--skip-cache", str(file))


def _unit(file: Path) -> list[str] | None:
    """Verify the unit with an interpreter that is here; None without systemd."""
    if shutil.which("systemd-analyze") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / file.name
        copy.write_text(
            re.sub(r"(?m)^(ExecStart=)\S+", rf"\g<1>{sys.executable}", file.read_text())
        )
        return _run("systemd-analyze", "verify", "--man=no", str(copy))


if __name__ == "__main__":
    sys.exit(main())
