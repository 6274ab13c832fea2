"""`python -m app doctor` against fake dependencies that work, are misconfigured, down or hang."""

from __future__ import annotations

import asyncio
import io
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from app.commands.doctor import command
from app.doctor.probe import MEASUREMENT
from app.runtime.sqlite import owned_folder
from app.settings import variables
from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes import influx as fake
from tests.fakes.influx import FakeInflux
from tests.fakes.service import components, serving
from tests.fakes.still_house import StillHouse, now

CERTIFICATES = Path(fake.__file__).with_name("certificates")
TOKEN = "home-assistant-" + "t" * 40
INFLUX_TOKEN = "influxdb-" + "i" * 40

Set = Callable[..., None]


@pytest.fixture
def set_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Set:
    """Return a function that sets variables; the folder and a token are set already."""
    for variable in variables():
        for name in variable.names:
            monkeypatch.delenv(name, raising=False)

    def set_variables(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    set_variables(
        HOME_ASSISTANT_URL="http://127.0.0.1:1",
        HOME_ASSISTANT_TOKEN=TOKEN,
        DATA_DIR=str(tmp_path / "data"),
        WEBSOCKET_INGESTION_PORT="0",
    )
    return set_variables


@pytest.fixture
def house() -> StillHouse:
    """Return a home of today with one recorded entity."""
    house = StillHouse(clock=now)
    house.set_state("sensor.a", "1")
    return house


def record_past_state(house: StillHouse, *, hours: float) -> None:
    """Insert a state this many hours old into the recorder."""
    at = datetime.now(UTC) - timedelta(hours=hours)
    row = house.recorded["sensor.a"][0]
    past = {"state": "0", "last_changed": at.isoformat(), "last_updated": at.isoformat()}
    house.recorded["sensor.a"].insert(0, {**row, **past})


class Report(dict[str, dict[str, Any]]):
    """The doctor's checks by name, with the overall verdict."""

    def __init__(self, verdict: str, text: str) -> None:
        document = json.loads(text)
        assert document["verdict"] == verdict
        super().__init__({check["name"]: check for check in document["checks"]})
        self.verdict = verdict
        self.text = text

    def statuses(self, *names: str) -> list[str]:
        """Return the status of each named check."""
        return [self[name]["status"] for name in names]

    def text_of(self, name: str) -> str:
        """Return the finding of a check, with the advice."""
        check = self[name]
        return f"{check['what']} {check['advice'] or ''}"


async def doctor(*, ahead_s: float = 0.0, within_s: float = 20.0) -> Report:
    """Run every check with a clock `ahead_s` behind those of the dependencies."""
    out = io.StringIO()
    verdict = await command.run(
        None,
        out,
        as_json=True,
        clock=lambda: datetime.now(UTC) - timedelta(seconds=ahead_s),
        within_s=within_s,
    )
    return Report(verdict, out.getvalue())


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
async def test_every_check_passes_when_everything_works(
    set_: Set, house: StillHouse, version: Any
) -> None:
    """Each check reports what it found, and the probe point is deleted if possible."""
    record_past_state(house, hours=239.5)
    users = {"username": "u", "password": "p"} if version == "v1" else {}
    async with (
        FakeHomeAssistant(house, token=TOKEN, version="2025.4.4") as home_assistant,
        FakeInflux(version=version, token=INFLUX_TOKEN, **users).serving() as influx,
    ):
        set_(HOME_ASSISTANT_URL=home_assistant.url, INFLUXDB_URL=influx.url, INFLUXDB_API=version)
        if version == "v1":
            set_(INFLUXDB_USERNAME="u", INFLUXDB_PASSWORD="p")
        else:
            set_(INFLUXDB_TOKEN=INFLUX_TOKEN)

        report = await doctor()

    assert report.verdict == "ok", report.text
    assert set(report.statuses(*report)) == {"ok"}
    assert report["version"]["readings"] == {"ha_version": "2025.4.4", "ha_state": "RUNNING"}
    assert report["recorder"]["readings"] == {"present": True, "hours_back": 240.0}
    assert report["rights"]["readings"] == {"is_admin": True}
    assert report["database_write"]["readings"] == {"api": version}
    left = [point for point in influx.points() if point.measurement == MEASUREMENT]
    assert len(left) == (1 if version == "v3" else 0)
    assert report["database_read_back"]["readings"] == {"found": True, "removed": version != "v3"}


async def test_without_a_database_the_embedded_store_is_named(set_: Set, house: StillHouse) -> None:
    """Home Assistant is the only required dependency."""
    async with FakeHomeAssistant(house, token=TOKEN) as home_assistant:
        set_(HOME_ASSISTANT_URL=home_assistant.url)
        report = await doctor()

    assert report.verdict == "ok", report.text
    assert "embedded store" in report.text_of("database")
    assert "database_write" not in report


async def test_dependencies_that_are_down_are_named_with_their_settings(set_: Set) -> None:
    """Checks that depend on them are reported as not tried."""
    set_(INFLUXDB_URL="http://127.0.0.1:1", DATA_API_URL="http://127.0.0.1:1")

    report = await doctor()

    assert report.verdict == "failed"
    assert (
        "nothing listens there. Check that it runs, and the host and the port in"
        in report.text_of("home_assistant")
    )
    assert "HOME_ASSISTANT_URL" in report.text_of("home_assistant")
    assert "INFLUXDB_URL" in report.text_of("database")
    assert "DATA_API_URL" in report.text_of("data_api")
    for name in ("token", "version", "ha_clock", "recorder", "rights"):
        assert report.text_of(name) == "Not tried, because the check of home assistant failed. "
    assert report.statuses("database_write", "database_read_back") == ["not tried", "not tried"]
    assert report.statuses("data_dir", "disk_space", "fsync", "port") == ["ok"] * 4


async def test_a_wrong_home_assistant_token_is_named(set_: Set, house: StillHouse) -> None:
    """The address passes, and the checks that need the token are not tried."""
    async with FakeHomeAssistant(house, token="another-" + "0" * 40) as home_assistant:
        set_(HOME_ASSISTANT_URL=home_assistant.url)
        report = await doctor()

    assert report.statuses("home_assistant", "token", "version") == ["ok", "failed", "not tried"]
    assert "HOME_ASSISTANT_TOKEN" in report.text_of("token")
    assert TOKEN not in report.text


async def test_a_read_only_token_passes_every_check(set_: Set, house: StillHouse) -> None:
    """The doctor never recommends more rights than reading."""
    async with FakeHomeAssistant(house, token=TOKEN, read_only=True) as home_assistant:
        set_(HOME_ASSISTANT_URL=home_assistant.url)
        report = await doctor()

    assert report["rights"]["status"] == "ok"
    assert report["rights"]["readings"] == {"is_admin": False}


async def test_a_token_that_cannot_subscribe_to_state_changes_fails(
    set_: Set, house: StillHouse
) -> None:
    """Without `state_changed` there is nothing to capture."""
    denied = ("state_changed",)
    async with FakeHomeAssistant(house, token=TOKEN, denied_events=denied) as home_assistant:
        set_(HOME_ASSISTANT_URL=home_assistant.url)
        report = await doctor()

    assert report["rights"]["status"] == "failed"
    assert "may not read state changes" in report.text_of("rights")


@pytest.mark.parametrize(
    ("unknown", "component"),
    [("recorder/info", "recorder"), ("history/history_during_period", "history")],
)
async def test_a_missing_recorder_is_a_warning(
    set_: Set, house: StillHouse, unknown: str, component: str
) -> None:
    """Gaps cannot be backfilled, but live events are captured."""
    commands = (unknown,)
    async with FakeHomeAssistant(house, token=TOKEN, unknown_commands=commands) as home_assistant:
        set_(HOME_ASSISTANT_URL=home_assistant.url)
        report = await doctor()

    assert report.verdict == "warning"
    assert report.statuses("recorder", "rights") == ["warning", "ok"]
    assert f"`{component}:`" in report.text_of("recorder")


async def test_the_age_of_the_oldest_recorded_state_is_found(set_: Set, house: StillHouse) -> None:
    """A change 29.5 hours ago falls into the hour that is requested for 30 hours ago."""
    record_past_state(house, hours=29.5)
    async with FakeHomeAssistant(house, token=TOKEN) as home_assistant:
        set_(HOME_ASSISTANT_URL=home_assistant.url)
        report = await doctor()

    assert report["recorder"]["readings"] == {"present": True, "hours_back": 30.0}


async def test_a_starting_home_assistant_is_a_warning(set_: Set, house: StillHouse) -> None:
    """It answers, but reports a state other than RUNNING."""
    house.ha_state = "NOT_RUNNING"
    async with FakeHomeAssistant(house, token=TOKEN) as home_assistant:
        set_(HOME_ASSISTANT_URL=home_assistant.url)
        report = await doctor()

    assert report["version"]["status"] == "warning"


async def test_clocks_that_differ_by_ten_minutes_are_reported(set_: Set, house: StillHouse) -> None:
    """The Date headers of both dependencies are compared with our clock."""
    async with (
        FakeHomeAssistant(house, token=TOKEN) as home_assistant,
        FakeInflux(token=INFLUX_TOKEN).serving() as influx,
    ):
        set_(
            HOME_ASSISTANT_URL=home_assistant.url,
            INFLUXDB_URL=influx.url,
            INFLUXDB_TOKEN=INFLUX_TOKEN,
        )
        report = await doctor(ahead_s=600.0)

    assert report.verdict == "warning"
    for name in ("ha_clock", "database_clock"):
        assert report[name]["status"] == "warning"
        assert abs(report[name]["readings"]["difference_s"] - 600.0) <= 5.0
        assert "minutes ahead of this machine's" in report.text_of(name)


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / "valid.pem")
    return context


async def test_tls_to_a_plain_port_is_named(set_: Set, house: StillHouse) -> None:
    """The advice names the setting that begins with https://."""
    async with (
        FakeHomeAssistant(house, token=TOKEN) as home_assistant,
        FakeInflux(token=INFLUX_TOKEN).serving() as influx,
    ):
        set_(
            HOME_ASSISTANT_URL=home_assistant.url.replace("ws:", "https:"),
            INFLUXDB_URL=influx.url.replace("http:", "https:"),
            INFLUXDB_TOKEN=INFLUX_TOKEN,
        )
        report = await doctor()

    assert report.statuses("home_assistant", "database") == ["failed", "failed"]
    assert "does not speak TLS. Write http:// instead of https://" in report.text_of("database")
    # This one closes without an answer, where the other answers in plain HTTP.
    assert "begins with http:// or https:// as that port wants it" in report.text_of(
        "home_assistant"
    )


async def test_a_plain_address_of_a_tls_port_is_named(set_: Set, house: StillHouse) -> None:
    """Whatever answers there is not the dependency, and the advice is to try https://."""
    async with (
        FakeHomeAssistant(house, token=TOKEN, tls=_server_context()) as home_assistant,
        FakeInflux(token=INFLUX_TOKEN).serving(tls=_server_context()) as influx,
    ):
        set_(
            HOME_ASSISTANT_URL=home_assistant.url.replace("wss:", "ws:"),
            INFLUXDB_URL=influx.url.replace("https:", "http:"),
            INFLUXDB_TOKEN=INFLUX_TOKEN,
        )
        report = await doctor()

    for name in ("home_assistant", "database"):
        assert report[name]["status"] == "failed"
        assert "https://" in report.text_of(name)


async def test_an_untrusted_certificate_is_refused(set_: Set, house: StillHouse) -> None:
    """The reason is OpenSSL's; HA_SSL_VERIFY=false accepts it with a warning."""
    async with (
        FakeHomeAssistant(house, token=TOKEN, tls=_server_context()) as home_assistant,
        FakeInflux(token=INFLUX_TOKEN).serving(tls=_server_context()) as influx,
    ):
        set_(
            HOME_ASSISTANT_URL=home_assistant.url,
            INFLUXDB_URL=influx.url,
            INFLUXDB_TOKEN=INFLUX_TOKEN,
        )
        report = await doctor()
        set_(HA_SSL_VERIFY="false")
        again = await doctor()

    for name in ("home_assistant", "database"):
        assert report[name]["status"] == "failed"
        assert "its certificate is refused" in report.text_of(name)
    assert "HA_SSL_VERIFY=false" in report.text_of("home_assistant")
    assert again.statuses("home_assistant", "token") == ["warning", "ok"]


async def test_a_web_server_of_another_kind_is_recognized(set_: Set) -> None:
    """It answers 404 to everything."""
    runner = web.AppRunner(web.Application())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        set_(HOME_ASSISTANT_URL=url, INFLUXDB_URL=url, INFLUXDB_TOKEN=INFLUX_TOKEN)
        report = await doctor()
    finally:
        await runner.cleanup()

    assert "404" in report.text_of("home_assistant")
    assert report.statuses("home_assistant", "token") == ["failed", "not tried"]
    assert report.statuses("database", "database_write") == ["warning", "failed"]
    assert "INFLUXDB_URL" in report.text_of("database_write")


async def test_a_wrong_database_token_is_named(set_: Set) -> None:
    """The address passes, and no point was written."""
    async with FakeInflux(token="another").serving() as influx:
        set_(INFLUXDB_URL=influx.url, INFLUXDB_TOKEN=INFLUX_TOKEN)
        report = await doctor()

    assert report.statuses("database", "database_write", "database_read_back") == [
        *("ok", "failed", "not tried")
    ]
    assert "INFLUXDB_TOKEN" in report.text_of("database_write")
    assert INFLUX_TOKEN not in report.text


async def test_a_missing_bucket_is_created_or_named(set_: Set) -> None:
    """The doctor creates it if the token may, like the service; otherwise it names the bucket."""
    async with FakeInflux(token=INFLUX_TOKEN, bucket="other").serving() as influx:
        set_(INFLUXDB_URL=influx.url, INFLUXDB_TOKEN=INFLUX_TOKEN)
        influx.may_create_buckets = False
        report = await doctor()
        influx.may_create_buckets = True
        again = await doctor()

    assert report["database_write"]["status"] == "failed"
    assert "INFLUXDB_BUCKET" in report.text_of("database_write")
    assert again.statuses("database_write", "database_read_back") == ["ok", "ok"]


async def test_a_database_token_must_be_able_to_write(set_: Set) -> None:
    """A token that can only write is enough: that the point cannot be read back is a warning."""
    async with FakeInflux(token=INFLUX_TOKEN).serving() as influx:
        set_(INFLUXDB_URL=influx.url, INFLUXDB_TOKEN=INFLUX_TOKEN)
        influx.may_write = False
        report = await doctor()
        influx.may_write, influx.may_read = True, False
        again = await doctor()

    assert report["database_write"]["status"] == "failed"
    assert "may write" in report.text_of("database_write")
    assert again.statuses("database_write", "database_read_back") == ["ok", "warning"]
    assert "may only write" in again.text_of("database_read_back")


async def test_a_point_that_is_accepted_but_not_stored_is_reported(set_: Set) -> None:
    """Something in between answers 204 and stores nothing."""
    async with FakeInflux(token=INFLUX_TOKEN).serving() as influx:
        set_(INFLUXDB_URL=influx.url, INFLUXDB_TOKEN=INFLUX_TOKEN)
        influx.forgets = True
        report = await doctor()

    assert report["database_read_back"]["status"] == "warning"
    assert "a query does not find it" in report.text_of("database_read_back")


@asynccontextmanager
async def silent_port() -> AsyncIterator[int]:
    """Yield a port that accepts connections and never answers."""

    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(nothing, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_a_dependency_that_hangs_is_given_up_after_its_time(set_: Set) -> None:
    """What was found before the time ran out is reported."""
    async with silent_port() as port, FakeInflux(token=INFLUX_TOKEN).serving() as influx:
        influx.silent_on = frozenset({"/api/v2/write"})
        set_(
            HOME_ASSISTANT_URL=f"http://127.0.0.1:{port}",
            INFLUXDB_URL=influx.url,
            INFLUXDB_TOKEN=INFLUX_TOKEN,
            DATA_API_URL=f"http://127.0.0.1:{port}",
        )
        async with asyncio.timeout(10):
            report = await doctor(within_s=1.0)

    assert report.text_of("home_assistant").startswith("It took longer than 1 s.")
    assert report.statuses("database", "database_clock", "database_write") == ["ok", "ok", "failed"]
    assert report.text_of("database_read_back").startswith("Not tried")
    assert report["data_api"]["status"] == "failed"


async def test_a_silent_dependency_is_named_before_its_time_runs_out(set_: Set) -> None:
    """The timeouts of the steps add up to less, so the report is more specific than "too slow"."""
    async with silent_port() as port:
        url = f"http://127.0.0.1:{port}"
        set_(HOME_ASSISTANT_URL=url, DATA_API_URL=url)
        report = await doctor()

    assert "no answer in time" in report.text_of("home_assistant")
    assert "does not take rows: no answer in time." in report.text_of("data_api")


async def test_a_silent_home_assistant_is_named(set_: Set, house: StillHouse) -> None:
    """It accepts connections and sends no greeting."""
    async with FakeHomeAssistant(house, token=TOKEN) as home_assistant:
        home_assistant.fall_silent()
        set_(HOME_ASSISTANT_URL=home_assistant.url)
        report = await doctor()

    assert "No end of authentication" in report.text_of("home_assistant")


async def test_a_running_service_is_recognized_and_not_disturbed(set_: Set, tmp_path: Path) -> None:
    """Its data folder is locked and its port is in use; neither is a failure."""
    folder = tmp_path / "data"
    with owned_folder(folder):
        before = sorted(folder.iterdir())
        async with serving(components()) as running:
            set_(WEBSOCKET_INGESTION_PORT=str(running.port))
            report = await doctor()
        after = sorted(folder.iterdir())

    assert report.statuses("data_dir", "disk_space", "fsync", "port") == ["ok"] * 4
    assert "already runs" in report.text_of("port")
    assert "healthy" in report.text_of("port")
    assert before == after


async def test_a_port_in_use_by_another_program_is_named(set_: Set) -> None:
    """What answers there is not our service."""
    async with silent_port() as port:
        set_(WEBSOCKET_INGESTION_PORT=str(port))
        report = await doctor()

    assert report["port"]["status"] == "failed"
    assert "WEBSOCKET_INGESTION_PORT" in report.text_of("port")


async def test_a_listen_address_of_another_machine_is_named(set_: Set) -> None:
    """The advice names the variable."""
    set_(WEBSOCKET_INGESTION_HOST="192.0.2.1", WEBSOCKET_INGESTION_PORT="8001")

    assert "WEBSOCKET_INGESTION_HOST" in (await doctor()).text_of("port")


async def test_a_folder_that_cannot_be_written_is_named(set_: Set, tmp_path: Path) -> None:
    """A file exists where the folder should be."""
    (tmp_path / "file").write_text("x")
    set_(DATA_DIR=str(tmp_path / "file"))

    report = await doctor()

    assert report.statuses("data_dir", "disk_space", "fsync") == [
        "failed",
        "not tried",
        "not tried",
    ]
    assert "DATA_DIR" in report.text_of("data_dir")


async def test_a_journal_in_memory_needs_no_disk(set_: Set) -> None:
    """Disk space and fsync are not checked."""
    set_(JOURNAL="memory")

    assert (await doctor()).statuses("disk_space", "fsync") == ["not tried", "not tried"]


async def test_an_invalid_filter_or_transform_is_named(set_: Set, tmp_path: Path) -> None:
    """The service would refuse to start with the same sentence."""
    (tmp_path / "mine_for_the_doctor.py").write_text("print('hello')\n\ndef good(event): ...\n")
    set_(
        HOMEIQ_SHARED_PATH=str(tmp_path),
        ENTITY_FILTER_CONFIG='{"mode": "never"}',
        INGEST_TRANSFORMS="mine_for_the_doctor:missing",
    )
    report = await doctor()
    set_(
        ENTITY_FILTER_CONFIG='{"patterns": [{"domain": "sun"}]}',
        INGEST_TRANSFORMS="mine_for_the_doctor:good",
    )
    again = await doctor()

    assert report.statuses("entity_filter", "transforms") == ["failed", "failed"]
    assert "$.mode" in report.text_of("entity_filter")
    assert "INGEST_TRANSFORMS" in report.text_of("transforms")
    assert again.statuses("entity_filter", "transforms") == ["ok", "ok"]


async def test_a_data_api_that_accepts_rows_passes_and_one_that_refuses_the_key_fails(
    set_: Set,
) -> None:
    """The probe sends an empty list, which changes nothing there."""
    bodies = []

    async def upsert(request: web.Request) -> web.Response:
        bodies.append(await request.read())
        if request.headers.get("Authorization") != "Bearer right":
            return web.json_response({"detail": "Invalid API key"}, status=401)
        return web.json_response({"success": True, "upserted": 0})

    app = web.Application()
    app.router.add_post("/internal/devices/bulk_upsert", upsert)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        set_(DATA_API_URL=url, DATA_API_KEY="wrong")
        report = await doctor()
        set_(DATA_API_KEY="right")
        again = await doctor()
    finally:
        await runner.cleanup()

    assert "401 Invalid API key" in report.text_of("data_api")
    assert again["data_api"]["status"] == "ok"
    assert bodies == [b"[]", b"[]"]


async def test_each_invalid_setting_has_a_line(set_: Set) -> None:
    """The next step follows; checks that did not run are not listed."""
    set_(BATCH_SIZE="0", LOG_LEVEL="LOUD")
    out = io.StringIO()

    verdict = await command.run(None, out)

    lines = out.getvalue().splitlines()
    assert verdict == "unusable"
    assert [line[:9].strip() for line in lines] == [
        *("failed", "failed", "", "The setti", "Correct t")
    ]
    assert "BATCH_SIZE" in lines[0]
    assert "LOG_LEVEL" in lines[1]


async def test_without_settings_ten_lines_say_what_to_put_into_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A new user sees the two required settings, not twenty checks that did not run."""
    for variable in variables():
        for name in variable.names:
            monkeypatch.delenv(name, raising=False)
    out = io.StringIO()

    verdict = await command.run(None, out)

    lines = out.getvalue().splitlines()
    assert verdict == "unusable"
    assert len(lines) <= 10
    assert lines[0].startswith("failed     settings              HOME_ASSISTANT_URL or ")
    assert "  HOME_ASSISTANT_URL=http://homeassistant.local:8123" in lines
    assert lines[-1].startswith("Or run `python -m app run`")
    assert any(line.startswith("  HOME_ASSISTANT_TOKEN=") for line in lines)


async def test_misspelt_settings_and_an_api_without_a_key_are_warnings(set_: Set) -> None:
    """The service starts, but not with what its owner intended."""
    set_(INFLUXDB_BUKET="x", WEBSOCKET_INGESTION_HOST="0.0.0.0")

    report = await doctor()

    assert "did you mean INFLUXDB_BUCKET?" in report.text_of("settings")
    assert "API_KEY" in report.text_of("access")
    assert report.statuses("settings", "access") == ["warning", "warning"]


async def test_the_report_contains_no_secret(set_: Set) -> None:
    """Not in an address, and not where a server echoes what it was sent."""
    hidden = ("pass-word-in-url", "another-in-url", INFLUX_TOKEN, TOKEN, "key-of-the-api")
    reply = fake.error(401, f"unauthorized: {INFLUX_TOKEN}", code="unauthorized")
    async with FakeInflux(reply, token=INFLUX_TOKEN).serving() as influx:
        set_(
            HOME_ASSISTANT_URL="http://me:pass-word-in-url@127.0.0.1:1",
            INFLUXDB_URL=influx.url,
            INFLUXDB_TOKEN=INFLUX_TOKEN,
            API_KEY="key-of-the-api",
        )
        report = await doctor()
        in_url = influx.url.replace("http://", "http://me:another-in-url@")
        set_(INFLUXDB_URL=in_url, INFLUXDB_TOKEN="")
        again = await doctor()

    assert "***" in report.text_of("database_write")
    assert again["database_write"]["status"] == "failed"
    assert [secret for secret in hidden if secret in report.text + again.text] == []


async def test_a_malformed_answer_skips_the_checks_that_need_it(
    set_: Set, house: StillHouse
) -> None:
    """The connection is accepted, then follows an answer Home Assistant never sends."""
    house.ha_state = 5  # type: ignore[assignment]  # malformed
    async with FakeHomeAssistant(house, token=TOKEN) as home_assistant:
        set_(HOME_ASSISTANT_URL=home_assistant.url)
        report = await doctor()

    assert report.statuses("token", "version", "rights") == ["ok", "failed", "not tried"]
    assert "does not answer as expected" in report.text_of("version")


async def test_a_database_that_accepts_points_but_no_queries_is_a_warning(set_: Set) -> None:
    """Accepting points is all the service needs of it."""
    async with FakeInflux(token=INFLUX_TOKEN).serving() as influx:
        influx.silent_on = frozenset({"/api/v2/query"})
        set_(INFLUXDB_URL=influx.url, INFLUXDB_TOKEN=INFLUX_TOKEN, INFLUXDB_TIMEOUT="0.5")
        report = await doctor()

    assert report.statuses("database_write", "database_read_back") == ["ok", "warning"]
    assert "then did not answer: no answer in time" in report.text_of("database_read_back")


async def test_a_database_whose_ping_fails_is_identified_by_its_health(set_: Set) -> None:
    """Some proxies break /ping; /health names the database too."""
    async with FakeInflux(token=INFLUX_TOKEN).serving() as influx:
        influx.alive = False
        set_(INFLUXDB_URL=influx.url, INFLUXDB_TOKEN=INFLUX_TOKEN)
        report = await doctor()

    assert report.statuses("database", "database_write", "database_read_back") == ["ok"] * 3
    assert "the API of InfluxDB 2 is used" in report.text_of("database")
