"""What is stripped from a setting, what is refused, and where it may come from."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from app.__main__ import main
from app.runtime.addresses import data_api_url, database_url, websocket_url
from app.runtime.errors import SettingsError
from app.settings import Settings, load_settings, variables, warnings

TOKEN = "t" * 40

SECRETS = {
    "HOME_ASSISTANT_TOKEN": TOKEN,
    "HA_TOKEN": TOKEN,
    "API_KEY": "the key",
    "INFLUXDB_TOKEN": "the token",
    "INFLUXDB_PASSWORD": "the password",
    "DATA_API_KEY": "the other key",
    "HOME_ASSISTANT_HEADERS": "X-Secret: hush",
    "INFLUXDB_HEADERS": '{"X-Secret": "hush"}',
    "MQTT_PASSWORD": "the password of the broker",
    "COPY_FROM_TOKEN": "the token of the source",
    "COPY_FROM_PASSWORD": "the password of the source",
    "COPY_FROM_HEADERS": "X-Secret: whisper",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start from an environment that has none of our names but the two required."""
    for variable in variables():
        for name in variable.names:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME_ASSISTANT_URL", "http://ha:8123")
    monkeypatch.setenv("HOME_ASSISTANT_TOKEN", TOKEN)


def secret(settings: Settings, name: str) -> str:
    """Return the value of a secret."""
    values = {
        "HOME_ASSISTANT_TOKEN": settings.home_assistant.token,
        "HA_TOKEN": settings.home_assistant.token,
        "API_KEY": settings.serving.api_key,
        "INFLUXDB_TOKEN": settings.influx.token,
        "INFLUXDB_PASSWORD": settings.influx.password,
        "DATA_API_KEY": settings.discovery.data_api_key,
        "HOME_ASSISTANT_HEADERS": settings.home_assistant.headers,
        "INFLUXDB_HEADERS": settings.influx.headers,
        "MQTT_PASSWORD": settings.health_report.password,
        "COPY_FROM_TOKEN": settings.copy_from.token,
        "COPY_FROM_PASSWORD": settings.copy_from.password,
        "COPY_FROM_HEADERS": settings.copy_from.headers,
    }
    value = values[name]
    assert value is not None
    return value.get_secret_value()


def problem(name: str) -> str:
    """Return the line about settings that cannot be used; it must name the variable."""
    with pytest.raises(SettingsError) as caught:
        load_settings()
    line = str(caught.value)
    assert "\n" not in line
    assert name in line.partition(": ")[0]
    return line


PLAIN = {
    "HOME_ASSISTANT_URL": "http://ha:8123",
    "HOME_ASSISTANT_TOKEN": TOKEN,
    "HA_SSL_VERIFY": "false",
    "HOME_ASSISTANT_HEADERS": "X-Secret: hush",
    "INSTANCE_NAME": "home",
    "WEBSOCKET_INGESTION_HOST": "0.0.0.0",
    "WEBSOCKET_INGESTION_PORT": "9000",
    "API_KEY": "the key",
    "TRUSTED_PEERS": "10.0.0.0/8,::1",
    "CORS_ORIGINS": "https://a.example",
    "INFLUXDB_URL": "http://influxdb:8086",
    "INFLUXDB_TOKEN": "the-token",
    "INFLUXDB_ORG": "org",
    "INFLUXDB_BUCKET": "bucket",
    "INFLUXDB_API": "v2",
    "INFLUXDB_USERNAME": "ada",
    "INFLUXDB_PASSWORD": "the password",
    "INFLUXDB_TIMEOUT": "7.5",
    "INFLUXDB_MAX_PENDING_POINTS": "7",
    "INFLUXDB_ATTRIBUTE_FIELDS": "a,b_*",
    "INFLUXDB_MEASUREMENT": "m",
    "INFLUXDB_HEADERS": '{"X-Secret": "hush"}',
    "EMBEDDED_STORE": "on",
    "DATA_DIR": "/var/lib/x",
    "DATA_API_URL": "http://data-api:8006",
    "DATA_API_KEY": "the key",
    "MQTT_URL": "mqtt://broker:1884",
    "MQTT_USERNAME": "ada",
    "ENTITY_FILTER_CONFIG": '{"mode":"exclude","patterns":[]}',
    "ENTITY_FILTER_CONFIG_FILE": "/etc/filter.json",
    "INGEST_TRANSFORMS": "a:b",
    "LOG_LEVEL": "DEBUG",
    "LOG_FILE": "/var/log/x",
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(
    "written",
    [
        "{}\n",
        "{}\r\n",
        " {}\t",
        '"{}"',
        "'{}'",
        ' "{}" \n',
        '" {} "',
        "\ufeff{}",
        "“{}”",
        "{}\u200b",
        "\u202a{}\u200e",
    ],
)
def test_white_space_and_quotes_around_every_setting_are_stripped(
    monkeypatch: pytest.MonkeyPatch, name: str, written: str
) -> None:
    """Secret files end with a newline, and `docker run --env-file` keeps quotation marks."""
    monkeypatch.setenv(name, PLAIN[name])
    plain = load_settings()

    monkeypatch.setenv(name, written.format(PLAIN[name]))

    assert load_settings() == plain


def test_only_one_pair_of_quotes_is_stripped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password may begin and end with quotation marks of its own."""
    monkeypatch.setenv("INFLUXDB_PASSWORD", "\"'really'\"")

    assert load_settings().influx.password.get_secret_value() == "'really'"


@pytest.mark.parametrize("written", ['"a","b"', "'a', 'b'", '"a", b', "a\n'b'\n"])
def test_quotes_around_each_part_of_a_list_are_stripped(
    monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    """They would become part of the names."""
    monkeypatch.setenv("INFLUXDB_ATTRIBUTE_FIELDS", written)

    assert load_settings().influx.attribute_fields == ("a", "b")


@pytest.mark.parametrize("name", ["INFLUXDB_ATTRIBUTE_FIELDS", "INGEST_TRANSFORMS", "CORS_ORIGINS"])
def test_a_json_array_is_refused_where_a_list_of_names_is_expected(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Its brackets and quotation marks would become part of the names."""
    monkeypatch.setenv(name, '["a:b","c:d"]')

    assert "has a quotation mark in it" in problem(name)


@pytest.mark.parametrize("blank", ["", " ", "\n", '""', "' '", "\ufeff"])
def test_a_blank_setting_counts_as_unset(monkeypatch: pytest.MonkeyPatch, blank: str) -> None:
    """The second name of a pair is used, and a default."""
    monkeypatch.setenv("HOME_ASSISTANT_TOKEN", blank)
    monkeypatch.setenv("HA_TOKEN", "u" * 40)
    monkeypatch.setenv("INFLUXDB_BUCKET", blank)
    monkeypatch.setenv("API_KEY", blank)

    settings = load_settings()

    assert settings.home_assistant.token.get_secret_value() == "u" * 40
    assert settings.influx.bucket == "home_assistant_events"
    assert settings.serving.api_key is None


@pytest.mark.parametrize(
    "name",
    [
        "HOME_ASSISTANT_URL",
        "HOME_ASSISTANT_TOKEN",
        "INSTANCE_NAME",
        "WEBSOCKET_INGESTION_HOST",
        "API_KEY",
        "INFLUXDB_URL",
        "INFLUXDB_TOKEN",
        "INFLUXDB_ORG",
        "INFLUXDB_BUCKET",
        "INFLUXDB_USERNAME",
        "INFLUXDB_PASSWORD",
        "INFLUXDB_MEASUREMENT",
        "DATA_DIR",
        "DATA_API_KEY",
        "LOG_FILE",
    ],
)
@pytest.mark.parametrize("inside", ["\n", "\r", "\t", "\x1b", "\x7f", "\u2028"])
def test_a_line_break_inside_a_value_is_refused_and_the_variable_named(
    monkeypatch: pytest.MonkeyPatch, name: str, inside: str
) -> None:
    """Two lines in a secret are two secrets, or a file of something else."""
    monkeypatch.setenv(name, f"hush{inside}hush")

    line = problem(name)

    assert "has a line break, another control character" in line
    assert "hush" not in line


@pytest.mark.parametrize("name", ["INFLUXDB_BUCKET", "INFLUXDB_ORG", "INSTANCE_NAME", "DATA_DIR"])
@pytest.mark.parametrize("written", ['"home', "home'"])
def test_a_quotation_mark_without_its_pair_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, written: str
) -> None:
    """Half of what was meant to surround a name is no part of it."""
    monkeypatch.setenv(name, written)

    assert "a quotation mark at one end only" in problem(name)


def test_a_name_of_more_than_256_characters_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each point repeats it."""
    monkeypatch.setenv("INSTANCE_NAME", "x" * 257)

    assert "at most 256 characters" in problem("INSTANCE_NAME")


@pytest.mark.parametrize(
    "name", ["DATA_DIR", "LOG_FILE", "ENTITY_FILTER_CONFIG_FILE", "HOMEIQ_SHARED_PATH"]
)
def test_a_tilde_in_a_path_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No shell expands `.env`, and a folder called `~` is never intended."""
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv(name, "~/x")

    settings = load_settings()

    paths = {
        "DATA_DIR": settings.journal.data_dir,
        "LOG_FILE": settings.log_file,
        "ENTITY_FILTER_CONFIG_FILE": settings.filter.config_file,
        "HOMEIQ_SHARED_PATH": settings.extensions.shared_path,
    }
    assert paths[name] == Path("/home/ada/x")


def test_the_home_folder_of_an_unknown_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would become a folder of that name."""
    monkeypatch.setenv("DATA_DIR", "~nobody-of-this-name/x")

    assert "home folder of an unknown user" in problem("DATA_DIR")


@pytest.mark.parametrize("written", ["$HOME/x", "${HOME}/x", "/srv/$STAGE/x"])
@pytest.mark.parametrize("name", ["DATA_DIR", "LOG_FILE", "INFLUXDB_CLIENT_CERT"])
def test_a_shell_variable_in_a_path_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, written: str
) -> None:
    """Without a shell it would become a folder of that name."""
    monkeypatch.setenv(name, written)

    line = problem(name)

    assert "in it, which only a shell would replace; write the path itself" in line


@pytest.mark.parametrize("written", ["x" * 256, "x/" * 4_000])
@pytest.mark.parametrize("name", ["DATA_DIR", "LOG_FILE", "HOMEIQ_SHARED_PATH"])
def test_a_path_that_is_too_long_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, written: str
) -> None:
    """Otherwise each use of it would fail differently."""
    monkeypatch.setenv(name, written)

    assert "is too long for a path" in problem(name)


NUMBERS = [
    "WEBSOCKET_INGESTION_PORT",
    "INFLUXDB_TIMEOUT",
    "INFLUXDB_MAX_PENDING_POINTS",
    "INFLUXDB_MAX_BATCH_POINTS",
    "EMBEDDED_RETENTION_DAYS",
    "JOURNAL_COMMIT_INTERVAL",
    "JOURNAL_MAX_MB",
    "JOURNAL_MIN_FREE_MB",
    "BATCH_SIZE",
    "BATCH_TIMEOUT",
    "WEBSOCKET_MAX_RETRIES",
    "WEBSOCKET_MAX_RETRY_DELAY",
    "CIRCUIT_BREAKER_THRESHOLD",
    "CIRCUIT_BREAKER_RESET_SECONDS",
    "SHUTDOWN_TIMEOUT",
    "DISCOVERY_REFRESH_INTERVAL",
    "BACKFILL_MAX_HOURS",
    "BACKFILL_RATE",
    "BACKFILL_COMMIT_INTERVAL",
    "INFLUXDB_FLUSH_INTERVAL",
    "LOG_MAX_MB",
    "LOG_BACKUPS",
    "MAX_MEMORY_MB",
]


def test_every_number_is_tried_with_absurd_values() -> None:
    """A number that is added is added to this test, too."""
    numeric = {
        name
        for variable in variables()
        for name in variable.names
        if re.fullmatch(r"-?\d+(\.\d+)?", variable.default or "")
    }

    assert numeric <= set(NUMBERS)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "absurd",
    [
        "nan",
        "inf",
        "-inf",
        "Infinity",
        "1e308",
        "1e999",
        "-2",
        "9" * 30,
        "9" * 5000,
        "999999999999",
    ],
)
def test_an_absurd_number_is_refused_and_the_variable_named(
    monkeypatch: pytest.MonkeyPatch, name: str, absurd: str
) -> None:
    """No arithmetic with it may overflow later."""
    monkeypatch.setenv(name, absurd)

    assert len(problem(name)) < 500


def test_a_retention_beyond_any_calendar_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """999,999 days ended the service with an OverflowError."""
    monkeypatch.setenv("EMBEDDED_RETENTION_DAYS", "999999")

    assert "less than or equal to 36500" in problem("EMBEDDED_RETENTION_DAYS")


@pytest.mark.parametrize("name", SECRETS)
def test_every_secret_may_be_in_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """As Docker and Kubernetes mount them, with a newline at the end or a byte order mark."""
    monkeypatch.delenv("HOME_ASSISTANT_TOKEN")
    if "TOKEN" not in name or "INFLUX" in name or "COPY" in name:
        monkeypatch.setenv("HOME_ASSISTANT_TOKEN", TOKEN)
    file = tmp_path / "secret"
    file.write_text(f"\ufeff{SECRETS[name]}\r\n")
    monkeypatch.setenv(f"{name}_FILE", f" {file}\n")

    assert secret(load_settings(), name) == SECRETS[name]


def test_every_secret_of_the_settings_is_tried() -> None:
    """A secret that is added has its file, and is added to this test."""
    files = {name for each in variables() for name in each.names if name.endswith("_FILE")}

    assert files - {"LOG_FILE", "ENTITY_FILTER_CONFIG_FILE"} == {f"{name}_FILE" for name in SECRETS}


@pytest.mark.parametrize("name", SECRETS)
def test_setting_a_secret_and_its_file_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """It would be unclear which one applies."""
    file = tmp_path / "secret"
    file.write_text("u" * 40)
    monkeypatch.delenv(name.replace("HA_", "HOME_ASSISTANT_"), raising=False)
    monkeypatch.setenv(name, SECRETS[name])
    monkeypatch.setenv(f"{name}_FILE", str(file))

    line = problem(name)

    assert f"{name} is set, and {name}_FILE is set, too; remove one of them" in line
    assert SECRETS[name] not in line
    assert "u" * 40 not in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "names a file that does not exist"),
        (b"", "names a file that is empty"),
        (b" \r\n", "names a file that is empty"),
        (b"hush-\xff-hush", "is not text in UTF-8"),
        ("hush hush".encode("utf-16"), "is UTF-16 or binary"),
        ("hush hush".encode("utf-16-le"), "is UTF-16 or binary"),
        (b"hush\nhush", "has a line break"),
        (b"hush" * 100_000, "is larger than 64 KiB"),
    ],
)
def test_a_secret_file_that_cannot_be_used_is_one_line_without_its_content(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, words: str
) -> None:
    """Nor its path, which may be the secret itself, written into the wrong variable."""
    file = tmp_path / "hush"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("API_KEY_FILE", str(file))

    line = problem("API_KEY")

    assert words in line
    assert "hush" not in line


def test_a_secret_file_that_is_a_folder_or_a_device_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Docker makes a folder where a mounted file is missing; a device may never end."""
    monkeypatch.setenv("API_KEY_FILE", str(tmp_path))
    assert "API_KEY_FILE names a file that cannot be used: it is a folder" in problem("API_KEY")

    monkeypatch.setenv("API_KEY_FILE", "/dev/zero")
    assert "it is not a regular file" in problem("API_KEY")

    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    monkeypatch.setenv("API_KEY_FILE", str(loop))
    assert "it cannot be read (" in problem("API_KEY")

    monkeypatch.setenv("API_KEY_FILE", "x" * 5000)
    assert "it cannot be read (File name too long)" in problem("API_KEY")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("BATCH_SIZE=7\n".encode("utf-16"), "is UTF-16 or binary"),
        ("BATCH_SIZE=7\n".encode("utf-16-be"), "is UTF-16 or binary"),
        ("# für Ada\nBATCH_SIZE=7\n".encode("latin-1"), "is not text in UTF-8"),
        (b"#" * 2_000_000, "is larger than 1024 KiB"),
        (b'INFLUXDB_BUCKET="hush\nBATCH_SIZE=7\n', "INFLUXDB_BUCKET: line 1 of"),
    ],
)
def test_an_env_file_that_cannot_be_read_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes,
    words: str,
) -> None:
    """Otherwise its content would be ignored, or end in a traceback."""
    (tmp_path / ".env").write_bytes(content)
    monkeypatch.chdir(tmp_path)

    assert main(["run"]) == 2

    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert "hush" not in error


def test_an_env_file_that_is_a_folder_or_unreadable_is_status_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Docker makes a folder where a mounted file is missing."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / ".env"
    file.mkdir()
    assert main(["run"]) == 2
    file.rmdir()
    file.symlink_to(file)
    assert main(["run"]) == 2

    folder, loop = capsys.readouterr().err.splitlines()
    assert ".env: is a folder. Make it a text file in UTF-8" in folder
    assert ".env: cannot be read (Too many levels of symbolic links)" in loop


def test_an_env_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """Editors on Windows write one, and it made the first name an unknown one."""
    file = tmp_path / ".env"
    file.write_bytes(b"\xef\xbb\xbfBATCH_SIZE=7\r\nINSTANCE_NAME=' home '\r\n")

    settings = load_settings(file)

    assert (settings.batch.size, settings.home_assistant.instance_name) == (7, "home")


def test_unparsable_lines_of_an_env_file_that_set_no_setting_are_ignored(tmp_path: Path) -> None:
    """It may be the file of another program, too."""
    file = tmp_path / ".env"
    file.write_text("- nothing: of ours\nBATCH_SIZE=7\n")

    assert load_settings(file).batch.size == 7


def test_names_of_settings_are_read_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact one wins."""
    monkeypatch.setenv("batch_size", "7")
    assert load_settings().batch.size == 7

    monkeypatch.setenv("BATCH_SIZE", "8")
    assert load_settings().batch.size == 8


@pytest.mark.parametrize(
    "written",
    [
        "http://ha:8123/api",
        "http://ha:8123/api/",
        "http://ha:8123/api/websocket",
        "http://ha:8123/api/websocket/",
        "http://ha:8123/api/states",
        "http://ha:8123/",
        "http://ha:8123//",
        "ws://ha:8123",
        "http://ha:8123/lovelace",
        "http://ha:8123/lovelace/0",
        "http://ha:8123/lovelace-kitchen/main?edit=1",
        "http://ha:8123/dashboard-mobile/0#x",
        "http://ha:8123/dashboard/0",
        "http://ha:8123/config/integrations/dashboard",
        "http://ha:8123/profile/security",
        "http://ha:8123/developer-tools/state",
        "HTTP://ha:8123",
        "http://ha:8123/home/overview",
        "http://ha:8123/calendar",
        "ha/lovelace/0",
    ],
)
def test_the_address_of_a_home_assistant_page_is_shortened_to_the_server(written: str) -> None:
    """People copy it from the address bar, or from another tool."""
    assert websocket_url(written) == "ws://ha:8123/api/websocket"


def test_a_proxys_path_before_a_home_assistant_page_is_kept() -> None:
    """Such as the Supervisor's."""
    assert websocket_url("http://supervisor/core/api") == "ws://supervisor/core/api/websocket"


@pytest.mark.parametrize("written", ["http//ha:8123", "http://http://ha:8123", "http:/ha:8123"])
def test_a_mistyped_scheme_is_refused_and_not_read_as_a_host(written: str) -> None:
    """It would be looked up as `http`."""
    with pytest.raises(ValueError, match="must be a host"):
        websocket_url(written)


def test_a_user_in_home_assistants_address_needs_a_password() -> None:
    """The handshake could not be made of half of it."""
    assert websocket_url("http://ada:p@ha") == "ws://ada:p@ha/api/websocket"
    with pytest.raises(ValueError, match="has a user without a password"):
        websocket_url("http://ada@ha")


@pytest.mark.parametrize("written", ["soon", "9" * 5000, "70000", "-1", "٣"])
def test_an_invalid_port_of_the_demo_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], written: str
) -> None:
    """The demo looks for a free one only when none is set."""
    monkeypatch.setenv("WEBSOCKET_INGESTION_PORT", written)

    assert main(["demo"]) == 2

    error = capsys.readouterr().err
    assert "WEBSOCKET_INGESTION_PORT" in error
    assert (error.count("\n"), len(error) < 200) == (1, True)


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("http://db:8086/", "http://db:8086"),
        ("http://db:8086/write", "http://db:8086"),
        ("http://db:8086/write/", "http://db:8086"),
        ("http://db:8086/api/v2/write", "http://db:8086"),
        ("http://db:8086/api/v2", "http://db:8086"),
        ("http://db:8181/api/v3/write_lp", "http://db:8181"),
        ("http://db:8086/query", "http://db:8086"),
        ("http://vm:8428/api/v1/write", "http://vm:8428"),
        ("http://vm:8428/vmui/", "http://vm:8428"),
        ("http://db:8086/ping", "http://db:8086"),
        ("http://db:8086/orgs/0a1b2c/load-data/buckets", "http://db:8086"),
        ("http://vm:8428/influx", "http://vm:8428/influx"),
        ("http://vm:8428/influx/write", "http://vm:8428/influx"),
        ("http://vm:8480/insert/0/influx/api/v2/write", "http://vm:8480/insert/0/influx"),
        ("https://ada:p%40ss@db", "https://ada:p%40ss@db"),
    ],
)
def test_an_endpoint_of_a_database_is_shortened_to_its_address(written: str, url: str) -> None:
    """Other programs are configured with the whole of it."""
    assert database_url(written) == url


@pytest.mark.parametrize(
    "written",
    [
        "http://ada:hush@db:8086/write?db=home",
        "http://ada:hush@db:8086?u=ada&p=hush",
        "http://ada:hush@db:8086/api/v2/write?org=o&bucket=hush",
        "http://ada:hush@db:8086/#hush",
    ],
)
def test_a_query_in_the_address_of_a_database_is_refused(
    monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    """It was ignored or sent along; the line explains what to write instead, without a secret."""
    monkeypatch.setenv("INFLUXDB_URL", written)

    line = problem("INFLUXDB_URL")

    assert "must not have a query; write http://db:8086: the bucket" in line
    assert "hush" not in line


def test_an_endpoint_of_a_data_api_is_shortened_to_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As for the database."""
    monkeypatch.setenv("DATA_API_URL", "http://a:8006/internal")
    assert load_settings().discovery.data_api_url == "http://a:8006"
    assert data_api_url("http://a:8006/internal/devices/bulk_upsert") == "http://a:8006"
    assert data_api_url("http://a:8006/behind/internal/") == "http://a:8006/behind"
    with pytest.raises(ValueError, match="must not have a query; write http://a:8006: the key"):
        data_api_url("http://a:8006/?key=x")


@pytest.mark.parametrize("party", ["HOME_ASSISTANT", "INFLUXDB"])
@pytest.mark.parametrize(
    ("written", "headers"),
    [
        ('{"CF-Access-Client-Id": "a", "X-B": " b "}', {"CF-Access-Client-Id": "a", "X-B": "b"}),
        ("CF-Access-Client-Id: a\nX-B:b:c\n", {"CF-Access-Client-Id": "a", "X-B": "b:c"}),
        ("Authorization: Basic YTpi", {"Authorization": "Basic YTpi"}),
        ("", {}),
        ("{}", {}),
    ],
)
def test_headers_are_a_json_object_or_lines(
    monkeypatch: pytest.MonkeyPatch, party: str, written: str, headers: dict[str, str]
) -> None:
    """As compose files, shells and secret files can write them."""
    monkeypatch.setenv(f"{party}_HEADERS", written)

    settings = load_settings()

    chosen = settings.home_assistant if party == "HOME_ASSISTANT" else settings.influx
    assert chosen.headers_by_name == headers
    assert "YTpi" not in repr(settings) + settings.model_dump_json()


@pytest.mark.parametrize("party", ["HOME_ASSISTANT", "INFLUXDB"])
@pytest.mark.parametrize(
    ("written", "words"),
    [
        *(
            (f"{name}: hush", f"must not have the header {name}")
            for name in ("Host", "connection", "UPGRADE", "Sec-WebSocket-Key", "Content-Length")
        ),
        ("Transfer-Encoding: chunked\nX-A: hush", "must not have the header Transfer-Encoding"),
        ('{"X-A": "hush\\r\\nX-B: hush"}', "has a value for X-A that"),
        ('{"X-A": "hüsh hush"}', "has a value for X-A that"),
        ('{"X A": "hush"}', "has a header name with characters"),
        ('{"": "hush"}', "has a header name with characters"),
        ('{"X-A": 5}', "must have a text in quotes"),
        ('{"X-A": "hush"', "is not a JSON object"),
        ("{" * 100_000, "is not a JSON object"),
        ("hush", "must be a JSON object, or lines"),
        ("X-A:", "has no value for X-A"),
        ("X-A: hush\nx-a: hush", "names the header x-a twice"),
        ('{"X-A": "hush", "X-A": "hush"}', "names the header X-A twice"),
        ("X-A: " + "hush" * 3000, "has a value for X-A that"),
        ("\n".join(f"X-{number}: hush" for number in range(51)), "more than 50 headers"),
    ],
)
def test_headers_that_cannot_be_sent_are_refused(
    monkeypatch: pytest.MonkeyPatch, party: str, written: str, words: str
) -> None:
    """The line names the header and never shows a value."""
    monkeypatch.setenv(f"{party}_HEADERS", written)

    line = problem(f"{party}_HEADERS")

    assert words in line
    assert "hush" not in line


@pytest.mark.parametrize(
    "credentials",
    [
        {"INFLUXDB_TOKEN": "token"},
        {"INFLUXDB_USERNAME": "ada"},
        {"INFLUXDB_URL": "http://ada:pass@influxdb:8086"},
    ],
)
def test_a_request_to_the_database_has_one_authorization(
    monkeypatch: pytest.MonkeyPatch, credentials: dict[str, str]
) -> None:
    """Either of the settings or of the headers."""
    monkeypatch.setenv("INFLUXDB_URL", "http://influxdb:8086")
    monkeypatch.setenv("INFLUXDB_HEADERS", "authorization: Basic YTpi")
    assert load_settings().influx.headers_by_name

    for name, value in credentials.items():
        monkeypatch.setenv(name, value)

    assert "has the header Authorization" in problem("INFLUXDB_HEADERS")


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("INFLUXDB_USERNAME", "hush:hush"),
        ("INFLUXDB_URL", "http://hush%3Ahush:pass@influxdb:8086"),
        ("HOME_ASSISTANT_URL", "http://hush%3Ahush:pass@ha:8123"),
        ("DATA_API_URL", "http://hush%3Ahush:pass@data-api:8006"),
    ],
)
def test_a_user_name_with_a_colon_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, written: str
) -> None:
    """A server would take what follows the colon for the password."""
    monkeypatch.setenv(name, written)

    line = problem(name)

    assert "a colon in it, which HTTP does not allow" in line
    assert "hush" not in line


def test_a_request_to_the_data_api_has_one_authorization(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user in the address would silently replace the key."""
    monkeypatch.setenv("DATA_API_URL", "http://ada:hush@data-api:8006")
    assert load_settings().discovery.data_api_url == "http://ada:hush@data-api:8006"

    monkeypatch.setenv("DATA_API_KEY", "the key")

    line = problem("DATA_API_URL")
    assert "has a user, which is sent in the same header as DATA_API_KEY" in line
    assert "hush" not in line


def test_a_handshake_with_home_assistant_has_one_authorization(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The user in the address is one."""
    monkeypatch.setenv("HOME_ASSISTANT_HEADERS", "Authorization: Basic YTpi")
    assert load_settings().home_assistant.headers_by_name

    monkeypatch.setenv("HOME_ASSISTANT_URL", "http://ada:pass@ha:8123")

    assert "has the header Authorization" in problem("HOME_ASSISTANT_HEADERS")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a certificate, its key, another key and an encrypted one."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificates")
    folder = tmp_path_factory.mktemp("keys")
    curve = "-pkeyopt ec_paramgen_curve:prime256v1"
    for command in (
        f"req -x509 -nodes -days 1 -subj /CN=a -newkey ec {curve} -keyout key.pem -out cert.pem",
        "ecparam -name prime256v1 -genkey -noout -out other.pem",
        "ec -in key.pem -aes256 -passout pass:hush -out encrypted.pem",
    ):
        subprocess.run([openssl, *command.split()], check=True, capture_output=True, cwd=folder)
    both = (folder / "cert.pem").read_text() + (folder / "key.pem").read_text()
    (folder / "both.pem").write_text(both)
    (folder / "text.pem").write_text("hush")
    return folder


@pytest.mark.parametrize("party", ["HOME_ASSISTANT", "INFLUXDB"])
@pytest.mark.parametrize("files", [("cert.pem", "key.pem"), ("both.pem", None)])
def test_a_client_certificate_is_a_pair_of_files_or_one(
    monkeypatch: pytest.MonkeyPatch, keys: Path, party: str, files: tuple[str, str | None]
) -> None:
    """As PEM."""
    cert, key = files
    monkeypatch.setenv(f"{party}_CLIENT_CERT", str(keys / cert))
    if key is not None:
        monkeypatch.setenv(f"{party}_CLIENT_KEY", str(keys / key))

    settings = load_settings()

    chosen = settings.home_assistant if party == "HOME_ASSISTANT" else settings.influx
    assert chosen.client_cert == keys / cert


@pytest.mark.parametrize("party", ["HOME_ASSISTANT", "INFLUXDB"])
@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"CERT": "cert.pem", "KEY": "other.pem"}, "the key does not belong to the certificate"),
        ({"CERT": "cert.pem", "KEY": "encrypted.pem"}, "the key is encrypted; remove its passphr"),
        ({"CERT": "cert.pem", "KEY": "nothing.pem"}, "the key file cannot be read (No such file"),
        ({"CERT": "nothing.pem", "KEY": "key.pem"}, "the certificate file cannot be read (No such"),
        ({"CERT": ".", "KEY": "key.pem"}, "the certificate file cannot be read (Is a directory)"),
        ({"CERT": "/dev/zero"}, "the certificate file is not a regular file"),
        ({"CERT": "cert.pem", "KEY": "/dev/zero"}, "the key file is not a regular file"),
        ({"CERT": "cert.pem"}, "the file does not hold a certificate and its key in PEM format"),
        ({"CERT": "text.pem", "KEY": "key.pem"}, "the files are not a certificate and a key in"),
        ({"KEY": "key.pem"}, "is set without"),
    ],
)
def test_an_unusable_client_certificate_is_reported_in_one_line_at_the_start(
    monkeypatch: pytest.MonkeyPatch, keys: Path, party: str, files: dict[str, str], words: str
) -> None:
    """And not a failed handshake later."""
    for name, file in files.items():
        monkeypatch.setenv(f"{party}_CLIENT_{name}", str(keys / file))

    line = problem(f"{party}_CLIENT_")

    assert words in line
    assert "hush" not in line


def test_a_client_certificate_without_tls_gives_a_warning(
    monkeypatch: pytest.MonkeyPatch, keys: Path
) -> None:
    """It is never sent over http://."""
    monkeypatch.setenv("HOME_ASSISTANT_CLIENT_CERT", str(keys / "both.pem"))
    assert warnings() == [
        "HOME_ASSISTANT_CLIENT_CERT is not used: the address it is for does not start with https://"
    ]

    monkeypatch.setenv("HOME_ASSISTANT_URL", "https://ha")
    assert warnings() == []


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("broker", "mqtt://broker"),
        ("broker:1884", "mqtt://broker:1884"),
        ("tcp://10.0.0.2:1883/", "mqtt://10.0.0.2:1883"),
        ("ssl://[fe80::1]:8883", "mqtts://[fe80::1]:8883"),
    ],
)
def test_the_address_of_a_broker_may_be_written_as_other_programs_write_it(
    monkeypatch: pytest.MonkeyPatch, written: str, url: str
) -> None:
    """The schemes of Home Assistant's add-ons and of paho."""
    monkeypatch.setenv("MQTT_URL", written)

    assert load_settings().health_report.url == url


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("http://broker:1883", "must be a host, or a URL that starts with mqtt://"),
        ("mqtt://ada:hush@broker", "must not have a user: MQTT_USERNAME and MQTT_PASSWORD"),
        ("mqtt://broker/topic", "must not have a path"),
        ("mqtt://broker:99999", "must name a host and, if any, a port"),
    ],
)
def test_the_address_of_a_broker_names_host_and_port_only(
    monkeypatch: pytest.MonkeyPatch, written: str, why: str
) -> None:
    """The password has a setting of its own, which diagnostics do not show."""
    monkeypatch.setenv("MQTT_URL", written)

    line = problem("MQTT_URL")

    assert why in line
    assert "hush" not in line


def test_health_by_mqtt_needs_a_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` does without."""
    monkeypatch.setenv("HEALTH_IN_HOME_ASSISTANT", "mqtt")

    assert "MQTT_URL is unset" in problem("HEALTH_IN_HOME_ASSISTANT")


@pytest.mark.parametrize(
    ("way", "broker", "by_mqtt"),
    [("auto", "b", True), ("auto", "", False), ("rest", "b", False), ("mqtt", "b", True)],
)
def test_auto_means_mqtt_where_there_is_a_broker(
    monkeypatch: pytest.MonkeyPatch, way: str, broker: str, *, by_mqtt: bool
) -> None:
    """And health is off unless it is asked for."""
    assert not load_settings().health_report.is_on
    monkeypatch.setenv("HEALTH_IN_HOME_ASSISTANT", way)
    monkeypatch.setenv("MQTT_URL", broker)

    assert load_settings().health_report.by_mqtt == by_mqtt


@pytest.mark.parametrize(("way", "count"), [("", 1), ("off", 1), ("rest", 1), ("auto", 0)])
def test_a_broker_that_is_not_used_is_warned_about(
    monkeypatch: pytest.MonkeyPatch, way: str, count: int
) -> None:
    """Health by MQTT is off unless it is asked for."""
    monkeypatch.setenv("MQTT_URL", "mqtt://broker")
    monkeypatch.setenv("HEALTH_IN_HOME_ASSISTANT", way)

    assert len([line for line in warnings() if "MQTT_URL is not used" in line]) == count
