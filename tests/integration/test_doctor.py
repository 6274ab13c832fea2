"""`python -m app doctor` between fake neighbors that are well, wrong, away, or hang."""

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
from app.commands.doctor.probe import MEASUREMENT
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
    """Return what sets variables; at first there is a folder, a token and nothing else."""
    for variable in variables():
        for name in variable.names:
            monkeypatch.delenv(name, raising=False)

    def given(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    given(
        HOME_ASSISTANT_URL="http://127.0.0.1:1",
        HOME_ASSISTANT_TOKEN=TOKEN,
        DATA_DIR=str(tmp_path / "data"),
        WEBSOCKET_INGESTION_PORT="0",
    )
    return given


@pytest.fixture
def house() -> StillHouse:
    """Return a home of today, with something to remember."""
    house = StillHouse(clock=now)
    house.set_state("sensor.a", "1")
    return house


def lived(house: StillHouse, *, hours: float) -> None:
    """Let its recorder know of a change so long ago."""
    at = datetime.now(UTC) - timedelta(hours=hours)
    row = house.recorded["sensor.a"][0]
    past = {"state": "0", "last_changed": at.isoformat(), "last_updated": at.isoformat()}
    house.recorded["sensor.a"].insert(0, {**row, **past})


class Told(dict[str, dict[str, Any]]):
    """The checks by name, and how it went on the whole."""

    def __init__(self, verdict: str, text: str) -> None:
        document = json.loads(text)
        assert document["verdict"] == verdict
        super().__init__({check["name"]: check for check in document["checks"]})
        self.verdict = verdict
        self.text = text

    def statuses(self, *names: str) -> list[str]:
        """Return how some checks went."""
        return [self[name]["status"] for name in names]

    def says(self, name: str) -> str:
        """Return what is said of a check, with the advice."""
        check = self[name]
        return f"{check['what']} {check['advice'] or ''}"


async def doctor(*, ahead_s: float = 0.0, within_s: float = 20.0) -> Told:
    """Look at everything, by a clock that is behind those of the neighbors."""
    out = io.StringIO()
    verdict = await command.run(
        None,
        out,
        as_json=True,
        clock=lambda: datetime.now(UTC) - timedelta(seconds=ahead_s),
        within_s=within_s,
    )
    return Told(verdict, out.getvalue())


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
async def test_all_is_well(set_: Set, house: StillHouse, version: Any) -> None:
    """Each check says what it saw; the point is gone again where points can be removed."""
    lived(house, hours=239.5)
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

        told = await doctor()

    assert told.verdict == "ok", told.text
    assert set(told.statuses(*told)) == {"ok"}
    assert told["version"]["readings"] == {"ha_version": "2025.4.4", "ha_state": "RUNNING"}
    assert told["recorder"]["readings"] == {"present": True, "hours_back": 240.0}
    assert told["rights"]["readings"] == {"is_admin": True}
    assert told["database_write"]["readings"] == {"api": version}
    left = [point for point in influx.points() if point.measurement == MEASUREMENT]
    assert len(left) == (1 if version == "v3" else 0)
    assert told["database_read_back"]["readings"] == {"found": True, "removed": version != "v3"}


async def test_without_a_database_the_embedded_store_is_named(set_: Set, house: StillHouse) -> None:
    """Nothing but Home Assistant is needed."""
    async with FakeHomeAssistant(house, token=TOKEN) as home_assistant:
        set_(HOME_ASSISTANT_URL=home_assistant.url)
        told = await doctor()

    assert told.verdict == "ok", told.text
    assert "embedded store" in told.says("database")
    assert "database_write" not in told


async def test_neighbors_that_are_away_are_named_with_their_settings(set_: Set) -> None:
    """What hangs together with them is not tried, and says so."""
    set_(INFLUXDB_URL="http://127.0.0.1:1", DATA_API_URL="http://127.0.0.1:1")

    told = await doctor()

    assert told.verdict == "failed"
    assert "nothing listens there. Check that it runs, and the host and the port in" in told.says(
        "home_assistant"
    )
    assert "HOME_ASSISTANT_URL" in told.says("home_assistant")
    assert "INFLUXDB_URL" in told.says("database")
    assert "DATA_API_URL" in told.says("data_api")
    for name in ("token", "version", "ha_clock", "recorder", "rights"):
        assert told.says(name) == "Not tried, because the check of home assistant failed. "
    assert told.statuses("database_write", "database_read_back") == ["not tried", "not tried"]
    assert told.statuses("data_dir", "disk_space", "fsync", "port") == ["ok"] * 4


async def test_a_wrong_token_of_home_assistant_is_said_in_words(
    set_: Set, house: StillHouse
) -> None:
    """The address is right, and what comes after the token is not tried."""
    async with FakeHomeAssistant(house, token="another-" + "0" * 40) as home_assistant:
        set_(HOME_ASSISTANT_URL=home_assistant.url)
        told = await doctor()

    assert told.statuses("home_assistant", "token", "version") == ["ok", "failed", "not tried"]
    assert "HOME_ASSISTANT_TOKEN" in told.says("token")
    assert TOKEN not in told.text


async def test_a_read_only_token_is_enough(set_: Set, house: StillHouse) -> None:
    """Nobody is told to hand out more than reading."""
    async with FakeHomeAssistant(house, token=TOKEN, read_only=True) as home_assistant:
        set_(HOME_ASSISTANT_URL=home_assistant.url)
        told = await doctor()

    assert told["rights"]["status"] == "ok"
    assert told["rights"]["readings"] == {"is_admin": False}


async def test_a_token_that_may_not_read_changes_is_refused(set_: Set, house: StillHouse) -> None:
    """Without `state_changed` there is nothing to do."""
    denied = ("state_changed",)
    async with FakeHomeAssistant(house, token=TOKEN, denied_events=denied) as home_assistant:
        set_(HOME_ASSISTANT_URL=home_assistant.url)
        told = await doctor()

    assert told["rights"]["status"] == "failed"
    assert "may not read state changes" in told.says("rights")


@pytest.mark.parametrize(
    ("unknown", "component"),
    [("recorder/info", "recorder"), ("history/history_during_period", "history")],
)
async def test_without_a_recorder_gaps_stay_open(
    set_: Set, house: StillHouse, unknown: str, component: str
) -> None:
    """A warning: live events are captured all the same."""
    commands = (unknown,)
    async with FakeHomeAssistant(house, token=TOKEN, unknown_commands=commands) as home_assistant:
        set_(HOME_ASSISTANT_URL=home_assistant.url)
        told = await doctor()

    assert told.verdict == "warning"
    assert told.statuses("recorder", "rights") == ["warning", "ok"]
    assert f"`{component}:`" in told.says("recorder")


async def test_how_far_the_recorder_goes_back_is_found_out(set_: Set, house: StillHouse) -> None:
    """A change of 29 and a half hours ago is in the hour looked at from 30 hours ago."""
    lived(house, hours=29.5)
    async with FakeHomeAssistant(house, token=TOKEN) as home_assistant:
        set_(HOME_ASSISTANT_URL=home_assistant.url)
        told = await doctor()

    assert told["recorder"]["readings"] == {"present": True, "hours_back": 30.0}


async def test_a_starting_home_assistant_is_waited_for(set_: Set, house: StillHouse) -> None:
    """It answers, and says that it is not RUNNING."""
    house.ha_state = "NOT_RUNNING"
    async with FakeHomeAssistant(house, token=TOKEN) as home_assistant:
        set_(HOME_ASSISTANT_URL=home_assistant.url)
        told = await doctor()

    assert told["version"]["status"] == "warning"


async def test_clocks_that_differ_by_ten_minutes_are_told(set_: Set, house: StillHouse) -> None:
    """By the Date headers, of Home Assistant's handshake and of the database."""
    async with (
        FakeHomeAssistant(house, token=TOKEN) as home_assistant,
        FakeInflux(token=INFLUX_TOKEN).serving() as influx,
    ):
        set_(
            HOME_ASSISTANT_URL=home_assistant.url,
            INFLUXDB_URL=influx.url,
            INFLUXDB_TOKEN=INFLUX_TOKEN,
        )
        told = await doctor(ahead_s=600.0)

    assert told.verdict == "warning"
    for name in ("ha_clock", "database_clock"):
        assert told[name]["status"] == "warning"
        assert abs(told[name]["readings"]["difference_s"] - 600.0) <= 5.0
        assert "minutes ahead of this machine's" in told.says(name)


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / "valid.pem")
    return context


async def test_tls_on_a_plain_port_is_told_from_other_troubles(
    set_: Set, house: StillHouse
) -> None:
    """The setting that begins with https:// is named."""
    async with (
        FakeHomeAssistant(house, token=TOKEN) as home_assistant,
        FakeInflux(token=INFLUX_TOKEN).serving() as influx,
    ):
        set_(
            HOME_ASSISTANT_URL=home_assistant.url.replace("ws:", "https:"),
            INFLUXDB_URL=influx.url.replace("http:", "https:"),
            INFLUXDB_TOKEN=INFLUX_TOKEN,
        )
        told = await doctor()

    assert told.statuses("home_assistant", "database") == ["failed", "failed"]
    assert "does not speak TLS. Write http:// instead of https://" in told.says("database")
    # This one hangs up without a word, where the other answers in plain HTTP.
    assert "begins with http:// or https:// as that port wants it" in told.says("home_assistant")


async def test_a_plain_address_of_a_tls_port_is_told(set_: Set, house: StillHouse) -> None:
    """What answers there is something else, and https:// is the first thing to try."""
    async with (
        FakeHomeAssistant(house, token=TOKEN, tls=_server_context()) as home_assistant,
        FakeInflux(token=INFLUX_TOKEN).serving(tls=_server_context()) as influx,
    ):
        set_(
            HOME_ASSISTANT_URL=home_assistant.url.replace("wss:", "ws:"),
            INFLUXDB_URL=influx.url.replace("https:", "http:"),
            INFLUXDB_TOKEN=INFLUX_TOKEN,
        )
        told = await doctor()

    for name in ("home_assistant", "database"):
        assert told[name]["status"] == "failed"
        assert "https://" in told.says(name)


async def test_a_certificate_that_nobody_knows_is_refused(set_: Set, house: StillHouse) -> None:
    """The reason is OpenSSL's own; Home Assistant's may be taken unseen, and that is warned of."""
    async with (
        FakeHomeAssistant(house, token=TOKEN, tls=_server_context()) as home_assistant,
        FakeInflux(token=INFLUX_TOKEN).serving(tls=_server_context()) as influx,
    ):
        set_(
            HOME_ASSISTANT_URL=home_assistant.url,
            INFLUXDB_URL=influx.url,
            INFLUXDB_TOKEN=INFLUX_TOKEN,
        )
        told = await doctor()
        set_(HA_SSL_VERIFY="false")
        again = await doctor()

    for name in ("home_assistant", "database"):
        assert told[name]["status"] == "failed"
        assert "its certificate is refused" in told.says(name)
    assert "HA_SSL_VERIFY=false" in told.says("home_assistant")
    assert again.statuses("home_assistant", "token") == ["warning", "ok"]


async def test_something_else_at_the_address_is_no_neighbor(set_: Set) -> None:
    """A web server that answers 404 to everything."""
    runner = web.AppRunner(web.Application())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        set_(HOME_ASSISTANT_URL=url, INFLUXDB_URL=url, INFLUXDB_TOKEN=INFLUX_TOKEN)
        told = await doctor()
    finally:
        await runner.cleanup()

    assert "404" in told.says("home_assistant")
    assert told.statuses("home_assistant", "token") == ["failed", "not tried"]
    assert told.statuses("database", "database_write") == ["warning", "failed"]
    assert "INFLUXDB_URL" in told.says("database_write")


async def test_a_wrong_token_of_the_database_is_said_in_words(set_: Set) -> None:
    """The address is right, and no point was written."""
    async with FakeInflux(token="another").serving() as influx:
        set_(INFLUXDB_URL=influx.url, INFLUXDB_TOKEN=INFLUX_TOKEN)
        told = await doctor()

    assert told.statuses("database", "database_write", "database_read_back") == [
        *("ok", "failed", "not tried")
    ]
    assert "INFLUXDB_TOKEN" in told.says("database_write")
    assert INFLUX_TOKEN not in told.text


async def test_a_missing_bucket_is_created_or_named(set_: Set) -> None:
    """As the service does: it is made where the token may, else a person has to."""
    async with FakeInflux(token=INFLUX_TOKEN, bucket="other").serving() as influx:
        set_(INFLUXDB_URL=influx.url, INFLUXDB_TOKEN=INFLUX_TOKEN)
        influx.may_create_buckets = False
        told = await doctor()
        influx.may_create_buckets = True
        again = await doctor()

    assert told["database_write"]["status"] == "failed"
    assert "INFLUXDB_BUCKET" in told.says("database_write")
    assert again.statuses("database_write", "database_read_back") == ["ok", "ok"]


async def test_a_token_that_may_only_read_is_not_enough(set_: Set) -> None:
    """And one that may only write is: that it cannot be read back is a warning."""
    async with FakeInflux(token=INFLUX_TOKEN).serving() as influx:
        set_(INFLUXDB_URL=influx.url, INFLUXDB_TOKEN=INFLUX_TOKEN)
        influx.may_write = False
        told = await doctor()
        influx.may_write, influx.may_read = True, False
        again = await doctor()

    assert told["database_write"]["status"] == "failed"
    assert "may write" in told.says("database_write")
    assert again.statuses("database_write", "database_read_back") == ["ok", "warning"]
    assert "may only write" in again.says("database_read_back")


async def test_a_point_that_is_taken_and_not_kept_is_told(set_: Set) -> None:
    """204 from something in between that keeps nothing."""
    async with FakeInflux(token=INFLUX_TOKEN).serving() as influx:
        set_(INFLUXDB_URL=influx.url, INFLUXDB_TOKEN=INFLUX_TOKEN)
        influx.forgets = True
        told = await doctor()

    assert told["database_read_back"]["status"] == "warning"
    assert "a query does not find it" in told.says("database_read_back")


@asynccontextmanager
async def hung() -> AsyncIterator[int]:
    """Yield a port that accepts connections and never says a word."""

    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(nothing, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_nothing_that_hangs_is_waited_for_without_end(set_: Set) -> None:
    """Each neighbor has its time; what was found before it was over is told."""
    async with hung() as port, FakeInflux(token=INFLUX_TOKEN).serving() as influx:
        influx.silent_on = frozenset({"/api/v2/write"})
        set_(
            HOME_ASSISTANT_URL=f"http://127.0.0.1:{port}",
            INFLUXDB_URL=influx.url,
            INFLUXDB_TOKEN=INFLUX_TOKEN,
            DATA_API_URL=f"http://127.0.0.1:{port}",
        )
        async with asyncio.timeout(10):
            told = await doctor(within_s=1.0)

    assert told.says("home_assistant").startswith("It took longer than 1 s.")
    assert told.statuses("database", "database_clock", "database_write") == ["ok", "ok", "failed"]
    assert told.says("database_read_back").startswith("Not tried")
    assert told["data_api"]["status"] == "failed"


async def test_the_waits_of_a_silent_neighbor_add_up_to_less_than_its_time(set_: Set) -> None:
    """One that accepts connections and is silent is called that, and not merely late."""
    async with hung() as port:
        url = f"http://127.0.0.1:{port}"
        set_(HOME_ASSISTANT_URL=url, DATA_API_URL=url)
        told = await doctor()

    assert "no answer in time" in told.says("home_assistant")
    assert "does not take rows: no answer in time." in told.says("data_api")


async def test_a_home_assistant_that_falls_silent_is_told(set_: Set, house: StillHouse) -> None:
    """It accepts connections and does not greet."""
    async with FakeHomeAssistant(house, token=TOKEN) as home_assistant:
        home_assistant.fall_silent()
        set_(HOME_ASSISTANT_URL=home_assistant.url)
        told = await doctor()

    assert "No end of authentication" in told.says("home_assistant")


async def test_a_service_that_runs_is_recognized_and_not_disturbed(
    set_: Set, tmp_path: Path
) -> None:
    """Its folder is locked and its port is taken; both are as they should be."""
    folder = tmp_path / "data"
    with owned_folder(folder):
        before = sorted(folder.iterdir())
        async with serving(components()) as running:
            set_(WEBSOCKET_INGESTION_PORT=str(running.port))
            told = await doctor()
        after = sorted(folder.iterdir())

    assert told.statuses("data_dir", "disk_space", "fsync", "port") == ["ok"] * 4
    assert "already runs" in told.says("port")
    assert "healthy" in told.says("port")
    assert before == after


async def test_a_port_that_another_program_has_is_named(set_: Set) -> None:
    """It is not our service that answers there."""
    async with hung() as port:
        set_(WEBSOCKET_INGESTION_PORT=str(port))
        told = await doctor()

    assert told["port"]["status"] == "failed"
    assert "WEBSOCKET_INGESTION_PORT" in told.says("port")


async def test_an_address_of_another_machine_cannot_be_listened_at(set_: Set) -> None:
    """The variable that says so is named."""
    set_(WEBSOCKET_INGESTION_HOST="192.0.2.1", WEBSOCKET_INGESTION_PORT="8001")

    assert "WEBSOCKET_INGESTION_HOST" in (await doctor()).says("port")


async def test_a_folder_that_cannot_be_written_is_named(set_: Set, tmp_path: Path) -> None:
    """Here a file stands where the folder should be."""
    (tmp_path / "file").write_text("x")
    set_(DATA_DIR=str(tmp_path / "file"))

    told = await doctor()

    assert told.statuses("data_dir", "disk_space", "fsync") == ["failed", "not tried", "not tried"]
    assert "DATA_DIR" in told.says("data_dir")


async def test_a_journal_in_memory_needs_no_disk(set_: Set) -> None:
    """Room and speed are not asked for."""
    set_(JOURNAL="memory")

    assert (await doctor()).statuses("disk_space", "fsync") == ["not tried", "not tried"]


async def test_a_filter_or_a_transform_that_cannot_be_used_is_named(
    set_: Set, tmp_path: Path
) -> None:
    """The service would not start; what is wrong is the same sentence."""
    (tmp_path / "mine_for_the_doctor.py").write_text("print('hello')\n\ndef good(event): ...\n")
    set_(
        HOMEIQ_SHARED_PATH=str(tmp_path),
        ENTITY_FILTER_CONFIG='{"mode": "never"}',
        INGEST_TRANSFORMS="mine_for_the_doctor:missing",
    )
    told = await doctor()
    set_(
        ENTITY_FILTER_CONFIG='{"patterns": [{"domain": "sun"}]}',
        INGEST_TRANSFORMS="mine_for_the_doctor:good",
    )
    again = await doctor()

    assert told.statuses("entity_filter", "transforms") == ["failed", "failed"]
    assert "$.mode" in told.says("entity_filter")
    assert "INGEST_TRANSFORMS" in told.says("transforms")
    assert again.statuses("entity_filter", "transforms") == ["ok", "ok"]


async def test_a_data_api_that_takes_rows_and_one_that_refuses_the_key(set_: Set) -> None:
    """A list without a row changes nothing there."""
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
        told = await doctor()
        set_(DATA_API_KEY="right")
        again = await doctor()
    finally:
        await runner.cleanup()

    assert "401 Invalid API key" in told.says("data_api")
    assert again["data_api"]["status"] == "ok"
    assert bodies == [b"[]", b"[]"]


async def test_settings_that_cannot_be_used_are_told_one_by_one(set_: Set) -> None:
    """A line for each, then the next step; what was not checked is not listed."""
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


async def test_without_any_settings_ten_lines_say_what_to_put_into_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A newcomer sees the two settings that are needed, not twenty checks that did not run."""
    for variable in variables():
        for name in variable.names:
            monkeypatch.delenv(name, raising=False)
    out = io.StringIO()

    verdict = await command.run(None, out)

    lines = out.getvalue().splitlines()
    assert verdict == "unusable"
    assert len(lines) <= 10
    assert "  HOME_ASSISTANT_URL=http://homeassistant.local:8123" in lines
    assert any(line.startswith("  HOME_ASSISTANT_TOKEN=") for line in lines)


async def test_misspelt_settings_and_a_door_without_a_key_are_warned_of(set_: Set) -> None:
    """The service starts, and does not do what its owner thinks."""
    set_(INFLUXDB_BUKET="x", WEBSOCKET_INGESTION_HOST="0.0.0.0")

    told = await doctor()

    assert "did you mean INFLUXDB_BUCKET?" in told.says("settings")
    assert "API_KEY" in told.says("access")
    assert told.statuses("settings", "access") == ["warning", "warning"]


async def test_no_secret_is_ever_told(set_: Set) -> None:
    """Not in an address, not in what a neighbor repeats of what it was sent."""
    hidden = ("pass-word-in-url", "another-in-url", INFLUX_TOKEN, TOKEN, "key-of-the-api")
    reply = fake.error(401, f"unauthorized: {INFLUX_TOKEN}", code="unauthorized")
    async with FakeInflux(reply, token=INFLUX_TOKEN).serving() as influx:
        set_(
            HOME_ASSISTANT_URL="http://me:pass-word-in-url@127.0.0.1:1",
            INFLUXDB_URL=influx.url,
            INFLUXDB_TOKEN=INFLUX_TOKEN,
            API_KEY="key-of-the-api",
        )
        told = await doctor()
        in_url = influx.url.replace("http://", "http://me:another-in-url@")
        set_(INFLUXDB_URL=in_url, INFLUXDB_TOKEN="")
        again = await doctor()

    assert "***" in told.says("database_write")
    assert again["database_write"]["status"] == "failed"
    assert [secret for secret in hidden if secret in told.text + again.text] == []


async def test_an_answer_that_makes_no_sense_ends_the_questions(
    set_: Set, house: StillHouse
) -> None:
    """Connected and accepted, and then something that no Home Assistant says."""
    house.ha_state = 5  # type: ignore[assignment]  # the nonsense
    async with FakeHomeAssistant(house, token=TOKEN) as home_assistant:
        set_(HOME_ASSISTANT_URL=home_assistant.url)
        told = await doctor()

    assert told.statuses("token", "version", "rights") == ["ok", "failed", "not tried"]
    assert "does not answer as expected" in told.says("version")


async def test_a_database_that_takes_points_and_no_questions_is_a_warning(set_: Set) -> None:
    """The point was accepted, which is all that the service asks of it."""
    async with FakeInflux(token=INFLUX_TOKEN).serving() as influx:
        influx.silent_on = frozenset({"/api/v2/query"})
        set_(INFLUXDB_URL=influx.url, INFLUXDB_TOKEN=INFLUX_TOKEN, INFLUXDB_TIMEOUT="0.5")
        told = await doctor()

    assert told.statuses("database_write", "database_read_back") == ["ok", "warning"]
    assert "then did not answer: no answer in time" in told.says("database_read_back")


async def test_a_database_that_names_no_version_is_asked_otherwise(set_: Set) -> None:
    """Its /ping fails, as behind some proxies, and its /health says which it is."""
    async with FakeInflux(token=INFLUX_TOKEN).serving() as influx:
        influx.alive = False
        set_(INFLUXDB_URL=influx.url, INFLUXDB_TOKEN=INFLUX_TOKEN)
        told = await doctor()

    assert told.statuses("database", "database_write", "database_read_back") == ["ok"] * 3
    assert "the API of InfluxDB 2 is used" in told.says("database")
