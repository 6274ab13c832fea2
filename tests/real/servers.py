"""Starts and stops real dependencies: Home Assistant, databases and Prometheus.

Each runs on a free loopback port in its own folder and stops at the end of its `with` block.
`python -m tests.real.servers` starts and stops each once, so that what Home Assistant downloads
at its first start is there before a test waits for it.
"""

from __future__ import annotations

import base64
import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, TypeAlias, get_args

import httpx
import msgspec
from websockets.sync.client import connect

PROJECT = Path(__file__).parents[2]
_LOAD_GENERATOR = Path(__file__).parent / "load_generator"
_CLIENT_ID = "http://127.0.0.1/"


class ServerMissing(AssertionError):
    """A real server is not installed; the message names the command that installs it."""


class ServerFailed(AssertionError):
    """A process exited or was not ready in time; the message has the end of its log."""


_IN_OUR_FOLDER = {
    "hass": "home-assistant/bin/hass",
    "apparmor_parser": "apparmor/sbin/apparmor_parser",
}


def program(name: str) -> Path:
    """Return the path of a program that `make real-servers` installs.

    Raises:
        ServerMissing: it is not installed.
    """
    own = _IN_OUR_FOLDER.get(name)
    path = _installed(own) if own else shutil.which(name)
    if path is None or not Path(path).exists():
        raise ServerMissing(f"{name} is not installed; run: make real-servers")
    return Path(path)


def _installed(path: str) -> Path:
    """Return a path in the folder that `make real-servers` fills."""
    return Path(os.environ.get("REAL_SERVERS_DIR") or PROJECT / ".real") / path


VictoriaRelease: TypeAlias = Literal["debian", "current"]
VICTORIA_RELEASES: tuple[VictoriaRelease, ...] = get_args(VictoriaRelease)


def free_port() -> int:
    """Return a loopback port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(met: Callable[[], bool], what: str, *, timeout_s: float) -> None:
    """Return once the condition is met; it is checked every 50 ms.

    Raises:
        AssertionError: it was not met in time; the message names `what` was awaited.
    """
    deadline = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.05)


class Server:
    """One process with a log file, started and stopped by `with` or explicitly within it."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        folder: Path,
        url: str,
        ready: str,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        """Configure the process; it is ready once `url` + `ready` is answered.

        `timeout_s` bounds the start; `environment` defaults to that of the tests.
        """
        self.url = url
        self.log = folder / "log.txt"
        self._command = [str(part) for part in command]
        self._folder = folder
        self._ready = url + ready
        self._environment = environment
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start the process."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the process; after a failed block, add the end of its log to the error."""
        self.stop(timeout_s=3.0)  # unwritten data is not needed any more
        if error is not None:
            error.add_note(self._story())

    def start(self) -> None:
        """Start the process and wait until it is ready.

        Raises:
            ServerFailed: it exited, or was not ready in time.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env=self._environment,
            )
        deadline = time.monotonic() + self._timeout_s
        while not _answered(self._ready):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise ServerFailed(f"not ready at {self._ready}\n{self._story()}")
            time.sleep(0.1)

    def stop(self, *, timeout_s: float = 60.0) -> int | None:
        """Terminate the process, kill it after `timeout_s`, and return its exit status."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.terminate()
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def kill(self) -> None:
        """Kill the process, like a power cut."""
        process, self._process = self._process, None
        assert process is not None, "it does not run"
        process.kill()
        process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, for example to suspend it."""
        assert self._process is not None, "it does not run"
        self._process.send_signal(number)

    def _story(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-40:]
        return "\n".join([f"{' '.join(self._command)} printed:", *lines])


def victoria_metrics(folder: Path, release: VictoriaRelease) -> Server:
    """Return a VictoriaMetrics with unlimited retention, not yet started.

    It deduplicates points that are sent twice, which is not its default.

    Raises:
        ServerMissing: it is not installed.
    """
    port = free_port()
    built = _installed("victoria-metrics/victoria-metrics")
    if release == "current" and not built.exists():
        raise ServerMissing("a current VictoriaMetrics is not installed; run: make real-servers")
    return Server(
        [
            built if release == "current" else program("victoria-metrics"),
            f"-httpListenAddr=127.0.0.1:{port}",
            f"-storageDataPath={folder / 'data'}",
            "-retentionPeriod=100y",
            "-dedup.minScrapeInterval=1ms",
        ],
        folder=folder,
        url=f"http://127.0.0.1:{port}",
        ready="/health",
    )


def influxdb(folder: Path) -> Server:
    """Return an InfluxDB 1, not yet started."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "influxdb.conf"
    config.write_text(
        f"""
        reporting-disabled = true
        bind-address = "127.0.0.1:{free_port()}"
        [meta]
          dir = "{folder}/meta"
        [data]
          dir = "{folder}/data"
          wal-dir = "{folder}/wal"
        [http]
          bind-address = "127.0.0.1:{port}"
        """
    )
    return Server(
        [program("influxd"), "-config", config],
        folder=folder,
        url=f"http://127.0.0.1:{port}",
        ready="/ping",
    )


def prometheus(folder: Path, *, config: Path) -> Server:
    """Return a Prometheus with a configuration, not yet started."""
    port = free_port()
    return Server(
        [
            program("prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        folder=folder,
        url=f"http://127.0.0.1:{port}",
        ready="/-/ready",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """A running MQTT broker, and the user that it requires."""

    port: int
    username: str = "ada"
    password: str = "hush-hush"


@contextlib.contextmanager
def mosquitto(folder: Path) -> Iterator[Broker]:
    """Run an MQTT broker that accepts one user.

    Raises:
        ServerMissing: it is not installed.
    """
    broker, passwords, config = (
        Broker(port=free_port()),
        folder / "users",
        folder / "mosquitto.conf",
    )
    passwords.touch(mode=0o600)
    subprocess.run(
        [program("mosquitto_passwd"), "-b", passwords, broker.username, broker.password], check=True
    )
    config.write_text(
        f"""
listener {broker.port} 127.0.0.1
password_file {passwords}
user {getpass.getuser()}
"""
    )
    with (folder / "mosquitto.log").open("wb") as log:
        process = subprocess.Popen(
            [program("mosquitto"), "-c", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: _listens(broker.port), "Mosquitto listens", timeout_s=30)
        yield broker
    finally:
        process.terminate()
        process.wait(30)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass(frozen=True, slots=True, order=True)
class Emitted:
    """A state change as Home Assistant itself recorded it."""

    entity_id: str
    last_updated: datetime
    state: str


class RandomChanges(NamedTuple):
    """Changes that the load generator makes on its own."""

    rate: float
    """Changes per second."""
    seed: int


class HomeAssistant:
    """A real Home Assistant with its demo devices and our load generator, after onboarding."""

    def __init__(
        self,
        folder: Path,
        *,
        timeout_s: float = 100.0,
        changes: RandomChanges | None = None,
        more: str = "",
    ) -> None:
        """Use a folder; set how long it may take to listen, then to be RUNNING.

        `more` is added to its configuration.
        """
        self._more = more
        port = free_port()
        self.token = ""
        """A long-lived token of the owner."""
        self.read_only_token = ""
        """A long-lived token of a read-only user."""
        self._changes = changes
        self._folder = folder
        self._config = folder / "config"
        self.recorder_database = self._config / "home-assistant_v2.db"
        self.server = Server(
            [program("hass"), "--config", self._config],
            folder=folder,
            url=f"http://127.0.0.1:{port}",
            ready="/auth/providers",
            timeout_s=timeout_s,
        )
        self._port = port
        self._timeout_s = timeout_s

    @property
    def url(self) -> str:
        """The address a user would enter."""
        return self.server.url

    def __enter__(self) -> Self:
        """Start it, with an owner, a read-only user, and a token for each."""
        shutil.copytree(_LOAD_GENERATOR, self._config / "custom_components/load_generator")
        self.configure(self._more)
        self.server.start()
        try:
            self._onboard()
            self._wait_until_running()
        except BaseException as exc:
            self.__exit__(type(exc), exc, exc.__traceback__)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it; after a failed block, add the end of its log to the error."""
        self.server.__exit__(kind, error, traceback)

    def restart(self) -> None:
        """Stop it gracefully, and start it again at the same address."""
        self.server.stop()
        self.start()

    def start(self) -> None:
        """Start it again at the same address and wait until it is RUNNING."""
        self.server.start()
        self._wait_until_running()

    def act(self, domain: str, action: str, timeout_s: float = 60.0, **data: object) -> None:
        """Perform an action of Home Assistant and return when it is done."""
        httpx.post(
            f"{self.url}/api/services/{domain}/{action}",
            headers={"Authorization": f"Bearer {self.token}"},
            json=data,
            timeout=timeout_s,
        ).raise_for_status()

    def request(self, method: str, path: str, **body: object) -> Any:
        """Send a request to the REST API, as the owner, and return the document."""
        response = httpx.request(
            method,
            f"{self.url}/api/{path}",
            headers={"Authorization": f"Bearer {self.token}"},
            json=body or None,
            timeout=120,
        )
        return response.raise_for_status().json()

    def emit(self, count: int, *, rate: int, sensors: int) -> list[Emitted]:
        """Emit `count` changes, `rate` a second; return them as Home Assistant recorded them.

        The `sensors` entities, from `sensor.load_0`, take turns; no state occurs twice.
        """
        before = self.emitted()
        self.act(
            "load_generator",
            "emit",
            timeout_s=60 + count / rate,
            count=count,
            rate=rate,
            sensors=sensors,
            first=len(before),
        )
        return self.emitted()[len(before) :]

    def emitted(self) -> list[Emitted]:
        """Return everything emitted so far, in order, from the load generator's log."""
        notes = self._config / "emitted.jsonl"
        if not notes.exists():
            return []
        decoder = msgspec.json.Decoder(Emitted)
        return decoder.decode_lines(notes.read_bytes())

    def call(self, command: str, *, token: str, **parameters: object) -> object:
        """Send one WebSocket command with a token and return its result."""
        with connect(f"ws://127.0.0.1:{self._port}/api/websocket", compression=None) as socket:
            socket.recv(timeout=10)
            socket.send(msgspec.json.encode({"type": "auth", "access_token": token}), text=True)
            socket.recv(timeout=10)
            socket.send(msgspec.json.encode({"id": 1, "type": command, **parameters}), text=True)
            answer = msgspec.json.decode(socket.recv(timeout=30))
        assert answer["success"], answer
        return answer["result"]

    def configure(self, more: str) -> None:
        """Write its configuration, for the next start, and add `more` to it."""
        changes = self._changes
        load = "" if changes is None else f"{{rate: {changes.rate}, seed: {changes.seed}}}"
        (self._config / "configuration.yaml").write_text(
            f"""
http:
  server_host: 127.0.0.1
  server_port: {self._port}
api:
websocket_api:
config:
onboarding:
recorder:
  commit_interval: 1
history:
logbook:
demo:
load_generator: {load}
{more}
"""
        )

    def _onboard(self) -> None:
        # https://developers.home-assistant.io/docs/auth_api
        answer = httpx.post(
            f"{self.url}/api/onboarding/users",
            json={
                "client_id": _CLIENT_ID,
                "name": "Owner",
                "username": "owner",
                "password": "correct horse",
                "language": "en",
            },
            timeout=30,
        ).raise_for_status()
        owner = self._access_token(answer.json()["auth_code"])
        self.token = str(
            self.call("auth/long_lived_access_token", token=owner, client_name="tests", lifespan=1)
        )
        self.read_only_token = self._reader_token()
        self._wait_until_stored(self.token, self.read_only_token)

    def _wait_until_stored(self, *tokens: str) -> None:
        """Wait until the tokens are on disk: a kill of Home Assistant loses the others."""
        ids = [_token_id(token) for token in tokens]
        file = self._config / ".storage/auth"
        wait_until(
            lambda: file.exists() and all(token_id in file.read_text() for token_id in ids),
            "Home Assistant has stored the tokens",
            timeout_s=self._timeout_s,
        )

    def _reader_token(self) -> str:
        answer = self.call(
            "config/auth/create",
            token=self.token,
            name="Reader",
            group_ids=["system-read-only"],
        )
        user_id = msgspec.convert(answer, _CreatedUser).user.id
        self.call(
            "config/auth_provider/homeassistant/create",
            token=self.token,
            user_id=user_id,
            username="reader",
            password="battery staple",
        )
        reader = self._access_token(self._log_in("reader", "battery staple"))
        return str(
            self.call("auth/long_lived_access_token", token=reader, client_name="tests", lifespan=1)
        )

    def _log_in(self, username: str, password: str) -> str:
        flow = httpx.post(
            f"{self.url}/auth/login_flow",
            json={
                "client_id": _CLIENT_ID,
                "handler": ["homeassistant", None],
                "redirect_uri": _CLIENT_ID,
            },
            timeout=30,
        ).raise_for_status()
        answer = httpx.post(
            f"{self.url}/auth/login_flow/{flow.json()['flow_id']}",
            json={"client_id": _CLIENT_ID, "username": username, "password": password},
            timeout=30,
        ).raise_for_status()
        return str(answer.json()["result"])

    def _access_token(self, code: str) -> str:
        answer = httpx.post(
            f"{self.url}/auth/token",
            data={"grant_type": "authorization_code", "code": code, "client_id": _CLIENT_ID},
            timeout=30,
        ).raise_for_status()
        return str(answer.json()["access_token"])

    def _wait_until_running(self) -> None:
        wait_until(
            lambda: _state(self.call("get_config", token=self.token)) == "RUNNING",
            "Home Assistant is RUNNING",
            timeout_s=self._timeout_s,
        )


def _token_id(token: str) -> str:
    """Return the id of the refresh token that a token is checked against (RFC 7519, `iss`)."""
    payload = token.split(".")[1]
    claims = msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return str(claims["iss"])


class _User(msgspec.Struct):
    id: str


class _CreatedUser(msgspec.Struct):
    user: _User


def _state(config: object) -> object:
    return config.get("state") if isinstance(config, dict) else None


def _answered(url: str) -> bool:
    try:
        status = httpx.get(url, timeout=2).status_code
    except httpx.TransportError:
        return False
    # 404: the server listens, but this route does not exist yet; any other answer is the route's.
    return status < httpx.codes.INTERNAL_SERVER_ERROR and status != httpx.codes.NOT_FOUND


def main() -> None:
    """Start and stop each dependency once, and print how long it took."""
    with tempfile.TemporaryDirectory() as folder:
        # The very first start waits for downloads.
        home_assistant = HomeAssistant(Path(folder) / "home-assistant", timeout_s=600.0)
        servers: dict[str, Server | HomeAssistant] = {
            "InfluxDB": influxdb(Path(folder) / "influxdb"),
            **{
                f"VictoriaMetrics ({release})": victoria_metrics(Path(folder) / release, release)
                for release in VICTORIA_RELEASES
            },
            "Home Assistant": home_assistant,
        }
        for name, server in servers.items():
            started = time.monotonic()
            with server:
                took_s = time.monotonic() - started
                if server is home_assistant:
                    devices = server.call("config/device_registry/list", token=server.token)
                    assert devices, "Home Assistant runs without its demo devices"
            sys.stdout.write(f"{name} starts ({took_s:.1f} s)\n")


if __name__ == "__main__":
    main()
