"""The deployment files agree with each other and with the service.

Nothing here needs Docker, a cluster or systemd: the tests read the files and start the service
with exactly the environment that they define.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from app import __version__
from app.commands.command_line import UNUSABLE
from app.settings import load_settings, variables
from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.documents import blocks
from tests.fakes.influx import FakeInflux
from tests.service import image
from tests.service.disk import small_disk
from tests.service.image import DOCKERFILE, Step, stages
from tests.service.network import served_apart, status_from_elsewhere
from tests.service.process import ROOT, TOKEN, Service, service

DOCKER = ROOT / "docker"
DOCUMENTS = ("README.md", "docs/DEPLOY.md")
KEY = "key-" + "k" * 40
UNIT = (DOCKER / "systemd" / "websocket-ingestion.service").read_text()

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^{}]*)|:\?([^{}]*))?\}")


class NotSet(Exception):
    """A mandatory variable is missing; Compose would stop with this message."""


def interpolated(text: str, given: Mapping[str, str]) -> str:
    """Interpolate variables as Compose does: `${A}`, `${A:-default}`, `${A:?message}`."""

    def value(found: re.Match[str]) -> str:
        name, default, message = found.groups()
        if text := given.get(name):
            return text
        if message is not None:
            raise NotSet(f"{name}: {message}")
        return default or ""

    while (filled := _VARIABLE.sub(value, text)) != text:
        text = filled
    return text


def compose(given: Mapping[str, str]) -> Any:
    """Return the services of the compose file, interpolated with the given `.env`."""
    return yaml.safe_load(interpolated((DOCKER / "compose.yaml").read_text(), given))["services"]


def manifest(name: str) -> Any:
    """Return a Kubernetes manifest."""
    return yaml.safe_load((DOCKER / "k8s" / f"{name}.yaml").read_text())


def pod() -> Any:
    """Return the pod spec of the stateful set."""
    return manifest("statefulset")["spec"]["template"]["spec"]


def container() -> Any:
    """Return the only container of a pod."""
    (only,) = pod()["containers"]
    return only


def unit(key: str) -> list[str]:
    """Return every value of a key in the systemd unit."""
    return re.findall(rf"^{key}=(.*)$", UNIT, re.MULTILINE)


def final_stage(word: str) -> Step:
    """Return the only instruction of the final stage with that keyword."""
    (step,) = (step for step in stages(DOCKERFILE.read_text())[-1] if step.word == word)
    return step


def of_the_image() -> dict[str, str]:
    """Return the environment that the image sets."""
    pairs = (pair.partition("=") for pair in final_stage("ENV").text.split())
    return {name: value for name, _, value in pairs if name != "PATH"}


def filled_in(given: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of `.env.example` with the given ones filled in."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    file = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {**file, **given}


def docker_run(document: Path) -> list[str]:
    """Return the words of the only `docker run` of a document."""
    commands = [
        line.strip()
        for block in blocks(document)
        for line in block.text.replace("\\\n", "").splitlines()
    ]
    (command,) = (command for command in commands if command.startswith("docker run "))
    return shlex.split(command)


def options_of(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each option and its value of a `docker run` that ends with the image."""
    for option, value in pairwise([*words[:-1], "--"]):
        if option.startswith("--"):
            yield option, "" if value.startswith("--") else value


def of_docker_run(given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the command in DEPLOY.md, with the operator's values."""
    options = options_of(docker_run(ROOT / "docs" / "DEPLOY.md"))
    own = dict(value.split("=", 1) for option, value in options if option == "--env")
    return {**of_the_image(), **own, **given}


def of_compose(given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment under Compose, which interpolates `.env` and also passes it on."""
    own = compose(given)["websocket-ingestion"]["environment"]
    return of_the_image() | filled_in(given) | {name: str(value) for name, value in own.items()}


def of_kubernetes(given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in a pod, with the given secrets in place of the example's."""
    secret = manifest("secret.example")["stringData"]
    secret |= {name: given[name] for name in secret}
    places = {name: given[name] for name in ("HOME_ASSISTANT_URL", "INFLUXDB_URL")}
    own = {each["name"]: each["value"] for each in container()["env"]}
    return {**of_the_image(), **manifest("configmap")["data"], **places, **secret, **own}


def of_systemd(given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the unit, with a filled-in `.env.example` as its file."""
    own = dict(pair.split("=", 1) for line in unit("Environment") for pair in line.split())
    return own | filled_in(given)


DEPLOYMENTS = {
    "docker run": of_docker_run,
    "compose": of_compose,
    "kubernetes": of_kubernetes,
    "systemd": of_systemd,
}


@pytest.fixture
def given(home_assistant: FakeHomeAssistant) -> dict[str, str]:
    """Return the settings of an operator; the test adds the address of the database."""
    return {
        "HOME_ASSISTANT_URL": home_assistant.url,
        "HOME_ASSISTANT_TOKEN": TOKEN,
        "API_KEY": KEY,
    }


async def health_check(running: Service) -> int | None:
    """Run the HEALTHCHECK of the Dockerfile beside a service and return its exit status."""
    port = str(httpx.URL(running.url).port)
    python, *arguments = final_stage("HEALTHCHECK").command
    assert python == "python"
    # The health check must ignore a proxy that is set for downloads.
    environment = {"WEBSOCKET_INGESTION_PORT": port, "http_proxy": "http://127.0.0.1:9"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env=environment, stderr=asyncio.subprocess.DEVNULL
    )
    async with asyncio.timeout(20):
        return await process.wait()


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
async def test_the_service_works_with_exactly_the_deployed_environment(
    given: dict[str, str], tmp_path: Path, deployment: str
) -> None:
    """It streams to the database, is healthy, and answers under any host name with the key.

    Only the folder and the address to listen on are the test's own. No peer is trusted, as in
    a container, where even the host is another machine. The service ignores a proxy that is
    set for downloads.
    """
    influx = FakeInflux()
    async with influx.serving():
        given |= {"INFLUXDB_URL": influx.url, "INFLUXDB_TOKEN": influx.token}
        ours = {
            "DATA_DIR": str(tmp_path / "data"),
            "WEBSOCKET_INGESTION_PORT": "0",
            "WEBSOCKET_INGESTION_HOST": "127.0.0.1",
            "TRUSTED_PEERS": "192.0.2.0/24",
            "http_proxy": "http://127.0.0.1:9",
        }
        async with service(tmp_path, DEPLOYMENTS[deployment](given) | ours) as running:
            health = await running.until("/health", lambda health: health["status"] == "healthy")
            as_docker = await health_check(running)
            async with httpx.AsyncClient(base_url=running.url) as client:
                name = {"Host": "websocket-ingestion:8001"}
                page = await client.get("/", headers=name)
                without = await client.get("/api/v1/gaps", headers=name)
                with_key = await client.get("/api/v1/gaps", headers=name | {"X-API-Key": KEY})
                ready = await client.get("/health/ready", headers={"Host": "10.1.2.3:8001"})
            status = await running.stop()
            stopped = await health_check(running)

    assert [sink["name"] for sink in health["sinks"]] == ["influxdb"]
    assert [answer.status_code for answer in (page, without, with_key, ready)] == [
        200,
        401,
        200,
        200,
    ]
    assert (as_docker, status, stopped) == (0, 0, 1)


@pytest.mark.parametrize("deployment", ["docker run", "compose", "kubernetes"])
async def test_a_container_answers_other_machines_only_with_the_key(
    tmp_path: Path, deployment: str
) -> None:
    """It listens on all addresses, as configured; Home Assistant and the database are down."""
    ours = {"DATA_DIR": str(tmp_path / "data"), "WEBSOCKET_INGESTION_PORT": "0"}
    async with served_apart(tmp_path, DEPLOYMENTS[deployment](_SOME) | ours) as running:
        answers = [
            await status_from_elsewhere(running, "/health/live"),
            await status_from_elsewhere(running, "/metrics"),
            await status_from_elsewhere(running, "/api/v1/gaps"),
            await status_from_elsewhere(running, "/api/v1/gaps", {"X-API-Key": KEY}),
        ]
        status = await running.stop()

    assert answers == [200, 200, 401, 200]
    assert status == 0


async def test_a_container_without_a_key_refuses_other_machines(tmp_path: Path) -> None:
    """Only the liveness route answers; without Compose the key is easy to forget."""
    ours = {"DATA_DIR": str(tmp_path / "data"), "WEBSOCKET_INGESTION_PORT": "0", "API_KEY": ""}
    async with served_apart(tmp_path, of_the_image() | _SOME | ours) as running:
        answers = [
            await status_from_elsewhere(running, "/health/live"),
            await status_from_elsewhere(running, "/"),
            await status_from_elsewhere(running, "/api/v1/gaps"),
        ]
        await running.stop()

    assert answers == [200, 403, 403]


def test_compose_requires_the_mandatory_settings(given: dict[str, str]) -> None:
    """For example the key, without which no request from outside would be answered."""
    given |= {"INFLUXDB_TOKEN": "token"}

    for name in given:
        with pytest.raises(NotSet, match=f"^{name}: "):
            compose(given | {name: ""})


def test_compose_keeps_the_names_and_limits_of_the_predecessor(given: dict[str, str]) -> None:
    """Container name, limits, reservations, port and profiles."""
    found = compose(given | {"INFLUXDB_TOKEN": "token"})
    ours = found["websocket-ingestion"]

    assert ours["container_name"] == "homeiq-websocket"
    assert ours["deploy"]["resources"] == {
        "limits": {"memory": "500M", "cpus": "1"},
        "reservations": {"memory": "100M", "cpus": "0.25"},
    }
    assert ours["ports"] == ["127.0.0.1:8001:8001"]
    profiles = {name: tuple(each.get("profiles", ())) for name, each in found.items()}
    assert profiles == {
        "websocket-ingestion": (),
        "influxdb": (),
        "victoriametrics": ("victoriametrics",),
        "influxdb3": ("influxdb3",),
        "prometheus": ("monitoring",),
        "grafana": ("monitoring",),
    }


def test_compose_sets_up_the_database_that_the_service_uses(given: dict[str, str]) -> None:
    """Token, organization and bucket, also when the operator chooses them."""
    chosen = {"INFLUXDB_TOKEN": "token", "INFLUXDB_ORG": "home", "INFLUXDB_BUCKET": "events"}
    found = compose(given | chosen)
    ours = found["websocket-ingestion"]["environment"]
    theirs = found["influxdb"]["environment"]

    for name, theirs_name in {
        "INFLUXDB_TOKEN": "DOCKER_INFLUXDB_INIT_ADMIN_TOKEN",
        "INFLUXDB_ORG": "DOCKER_INFLUXDB_INIT_ORG",
        "INFLUXDB_BUCKET": "DOCKER_INFLUXDB_INIT_BUCKET",
    }.items():
        assert chosen[name] == ours[name] == theirs[theirs_name]


def test_compose_starts_the_victoriametrics_that_the_tests_run_with(given: dict[str, str]) -> None:
    """What is deployed is the release that `make real-servers` builds."""
    (tested,) = re.findall(
        r"^VICTORIA_METRICS=(\S+)$", (ROOT / "tests/real/install.sh").read_text(), re.MULTILINE
    )

    image = compose(given | {"INFLUXDB_TOKEN": "token"})["victoriametrics"]["image"]

    assert image == f"victoriametrics/victoria-metrics:{tested}"


def test_every_mounted_folder_exists(given: dict[str, str]) -> None:
    """Docker would silently create an empty folder for a missing one."""
    found = compose(given | {"INFLUXDB_TOKEN": "token"})
    mounted = [
        volume.partition(":")[0]
        for each in found.values()
        for volume in each.get("volumes", ())
        if volume.startswith(".")
    ]

    assert mounted == ["./prometheus", "./grafana/provisioning", "./grafana/dashboards"]
    assert [path for path in mounted if not (DOCKER / path).is_dir()] == []


def test_deployments_set_only_known_settings(given: dict[str, str]) -> None:
    """An unknown name would be silently ignored."""
    known = {name for variable in variables() for name in variable.names}
    known |= {"PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}
    given |= {"INFLUXDB_URL": "http://influxdb:8086", "INFLUXDB_TOKEN": "token"}

    for deployment in DEPLOYMENTS.values():
        assert deployment(given).keys() - known == set()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_docker_run_fits_the_image(name: str) -> None:
    """Only the data folder can be written, it is kept, and the host's port is loopback's."""
    words = docker_run(ROOT / name)
    options = dict(options_of(words))

    assert words[-1] == f"websocket-ingestion:{__version__}"
    assert {"--read-only", "--detach"} <= set(options)
    assert options["--cap-drop"] == "ALL"
    assert options["--volume"].partition(":")[2] == of_the_image()["DATA_DIR"]
    assert options["--publish"] == f"127.0.0.1:8001:{final_stage('EXPOSE').text}"


def test_every_deployment_allows_enough_time_to_stop() -> None:
    """The grace period exceeds SHUTDOWN_TIMEOUT by at least 5 s."""
    (default,) = (each.default for each in variables() if "SHUTDOWN_TIMEOUT" in each.names)
    compose_text = (DOCKER / "compose.yaml").read_text()
    grace_s = [
        *re.findall(r"stop_grace_period: (\d+)s", compose_text),
        pod()["terminationGracePeriodSeconds"],
        *unit("TimeoutStopSec"),
        *(dict(options_of(docker_run(ROOT / name)))["--stop-timeout"] for name in DOCUMENTS),
    ]

    assert len(grace_s) == 5
    assert [seconds for seconds in grace_s if int(seconds) < float(default or 0) + 5] == []


def test_the_memory_alarm_comes_before_the_memory_limit(given: dict[str, str]) -> None:
    """At the limit the kernel kills the process without a log line."""
    given |= {"INFLUXDB_URL": "http://influxdb:8086", "INFLUXDB_TOKEN": "token"}
    limits = [
        compose(given)["websocket-ingestion"]["deploy"]["resources"]["limits"]["memory"],
        container()["resources"]["limits"]["memory"],
        *unit("MemoryMax"),
    ]

    assert limits == ["500M"] * 3
    limited = (of_compose, of_kubernetes, of_systemd)
    assert {deployment(given)["MAX_MEMORY_MB"] for deployment in limited} == {"400"}


def test_systemd_does_not_restart_the_service_after_bad_settings() -> None:
    """Status 2 tells systemd that only an operator can fix the problem."""
    assert unit("Restart") == ["on-failure"]
    assert unit("RestartPreventExitStatus") == [str(UNUSABLE)]


def test_every_deployment_runs_the_same_command() -> None:
    """`python -m app run`, without a shell that would swallow signals and the exit status."""
    command = final_stage("CMD").command

    assert command == ["python", "-m", "app", "run"]
    assert [line.split("/")[-1].split() for line in unit("ExecStart")] == [command]
    assert "command" not in container()
    assert "args" not in container()
    assert final_stage("STOPSIGNAL").text == signal.SIGTERM.name


def test_compose_and_the_image_use_the_same_health_check(given: dict[str, str]) -> None:
    """Compose repeats it for images built in another way."""
    test = compose(given | {"INFLUXDB_TOKEN": "token"})["websocket-ingestion"]["healthcheck"][
        "test"
    ]

    assert test == ["CMD", *final_stage("HEALTHCHECK").command]


def test_the_probes_use_routes_that_need_no_key() -> None:
    """Liveness checks only the process; readiness means that events can be journaled."""
    probes = {name: container()[f"{name}Probe"]["httpGet"] for name in ("liveness", "readiness")}

    assert probes == {
        "liveness": {"path": "/health/live", "port": "http"},
        "readiness": {"path": "/health/ready", "port": "http"},
    }
    assert container()["startupProbe"]["httpGet"] == probes["liveness"]


def test_kubernetes_service_links_cannot_set_the_port() -> None:
    """For a Service of this name Kubernetes sets WEBSOCKET_INGESTION_PORT=tcp://…."""
    assert manifest("service")["metadata"]["name"] == "websocket-ingestion"
    assert pod()["enableServiceLinks"] is False
    assert of_kubernetes(_SOME)["WEBSOCKET_INGESTION_PORT"] == "8001"


def test_an_unprivileged_user_owns_the_data_folder() -> None:
    """The user id is the same in the image and in the pod, and is not root."""
    user = final_stage("USER").text
    security = pod()["securityContext"]

    assert user == "10001:10001"
    assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (10001,) * 3
    assert f"--uid {user.partition(':')[0]} " in final_stage("RUN").text
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_data_folder_is_on_the_volume(given: dict[str, str]) -> None:
    """Durable data must outlive the container."""
    ours = compose(given | {"INFLUXDB_TOKEN": "token"})["websocket-ingestion"]
    mounts = {each["name"]: each["mountPath"] for each in container()["volumeMounts"]}

    assert of_the_image()["DATA_DIR"] == "/data"
    assert final_stage("VOLUME").command == ["/data"]
    assert ours["volumes"] == ["ingestion-data:/data"]
    assert mounts["data"] == "/data"
    assert [f"/var/lib/{name}" for name in unit("StateDirectory")] == [of_systemd({})["DATA_DIR"]]


def test_the_build_context_holds_only_what_the_image_copies() -> None:
    """Neither `.env` nor data nor the Git history gets into the image."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    first, *_ = stages(DOCKERFILE.read_text())
    copied = {
        source.removeprefix("./")
        for step in first
        if step.word == "COPY"
        for source in step.text.split()[:-1]
    }

    assert ignored[1] == "*"
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    assert "**/__pycache__" in ignored


def test_the_image_names_the_version() -> None:
    """Both stages use the same Python, and the version is that of the package."""
    first, last = stages(DOCKERFILE.read_text())

    assert final_stage("ARG").text == f"VERSION={__version__}"
    assert first[0].text.removesuffix(" AS build") == last[0].text


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_the_dockerfile_install_steps_build_a_working_service(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Without development packages, and with bytecode for a read-only file system."""
    built = await asyncio.to_thread(image.build, tmp_path, python=image.interpreter_of_the_image())

    settings = environment | {"PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
    python = str(built.python)
    async with service(tmp_path, settings, python=python, cwd=built.folder) as running:
        await running.until(
            "/health",
            lambda health: (
                (health["status"], health["connection"]["current_state"])
                == ("healthy", "connected")
            ),
        )
        status = await running.stop()

    assert status == 0
    assert list((built.folder / "app" / "__pycache__").glob("main.*.pyc"))
    assert list(built.python.parents[1].glob("lib/*/site-packages/uvicorn/__pycache__/*.pyc"))
    assert not list(built.python.parents[1].glob("lib/*/site-packages/pytest"))
    assert built.packages_bytes + built.app_bytes < 150_000_000


async def test_only_the_data_folder_is_written(environment: dict[str, str], tmp_path: Path) -> None:
    """With everything else read-only the service starts, stores and stops."""
    environment |= {"COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""}
    async with small_disk(tmp_path, megabytes=64) as disk:
        await disk.protect_all_else()
        environment |= {"JOURNAL_MIN_FREE_MB": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        async with disk.service(tmp_path, environment) as running:
            health = await running.until("/health", lambda health: health["status"] == "healthy")
            status = await running.stop()
        stored = sorted(path.name for path in disk.path.iterdir())

    assert health["journal"]["durable"]
    assert status == 0
    assert {"journal.db", "events.db", "metadata.db"} - set(stored) == set()


def test_the_systemd_unit_is_hardened() -> None:
    """System, homes and devices are out of reach; only its own state is writable."""
    expected = {
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateDevices": "yes",
        "CapabilityBoundingSet": "",
        "UMask": "0077",
    }

    assert {key: value for key in expected for value in unit(key)} == expected


def test_systemd_can_load_the_example_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The environment file of the unit is `.env.example` with the empty lines filled in."""
    for name, value in of_systemd(_SOME).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    assert load_settings().journal.data_dir == Path("/var/lib/websocket-ingestion")


_SOME = {
    "HOME_ASSISTANT_URL": "http://127.0.0.1:8123",
    "HOME_ASSISTANT_TOKEN": TOKEN,
    "API_KEY": KEY,
    "INFLUXDB_URL": "http://127.0.0.1:8086",
    "INFLUXDB_TOKEN": "token",
}
