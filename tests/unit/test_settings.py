"""Settings: read once, frozen, with one readable line for what is wrong."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.runtime.addresses import websocket_url
from app.runtime.errors import SettingsError
from app.settings import load_settings, variables, warnings

TOKEN = "t" * 40


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start from an environment that has none of our names but the two required."""
    for variable in variables():
        for name in variable.names:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME_ASSISTANT_URL", "http://ha:8123")
    monkeypatch.setenv("HOME_ASSISTANT_TOKEN", TOKEN)


def test_only_address_and_token_are_required() -> None:
    """Everything else has a default, and the embedded store is on without InfluxDB."""
    settings = load_settings()

    assert settings.home_assistant.url == "ws://ha:8123/api/websocket"
    assert settings.embedded_store
    assert settings.serving.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("http://ha:8123", "ws://ha:8123/api/websocket"),
        ("https://ha.example/", "wss://ha.example/api/websocket"),
        ("ws://ha:8123/api/websocket", "ws://ha:8123/api/websocket"),
        ("wss://ha/core/websocket", "wss://ha/core/websocket"),
        ("https://ha.example/behind/proxy", "wss://ha.example/behind/proxy/api/websocket"),
        ("homeassistant.local", "ws://homeassistant.local:8123/api/websocket"),
        ("10.0.0.5:9000", "ws://10.0.0.5:9000/api/websocket"),
        ("[::1]", "ws://[::1]:8123/api/websocket"),
    ],
)
def test_every_form_of_home_assistants_address_becomes_its_websocket_url(
    written: str, url: str
) -> None:
    """http, https, ws, wss and bare hosts are taken."""
    assert websocket_url(written) == url


@pytest.mark.parametrize("written", ["ftp://ha", "http://", "://"])
def test_text_that_is_not_an_address_is_refused(written: str) -> None:
    """The message describes a valid address."""
    with pytest.raises(ValueError, match="must be a host, or a URL"):
        websocket_url(written)


def test_the_first_of_two_names_of_a_setting_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both names of a pair may be set, for example while moving from one to the other."""
    monkeypatch.setenv("HA_HTTP_URL", "http://other:8123")
    monkeypatch.setenv("HA_TOKEN", "u" * 40)

    settings = load_settings()

    assert settings.home_assistant.url == "ws://ha:8123/api/websocket"
    assert settings.home_assistant.token.get_secret_value() == TOKEN


def test_ha_ws_url_overrides_home_assistant_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the address of the WebSocket API itself, for homes where that differs."""
    monkeypatch.setenv("HA_WS_URL", "ws://elsewhere:8123/api/websocket")

    assert load_settings().home_assistant.url == "ws://elsewhere:8123/api/websocket"


def test_the_name_to_use_comes_before_older_names_of_a_setting() -> None:
    """In documents and messages alike, whichever name wins when several are set."""
    names = {variable.names for variable in variables() if len(variable.names) > 1}

    assert names == {
        ("HOME_ASSISTANT_URL", "HA_WS_URL", "HA_HTTP_URL"),
        ("HOME_ASSISTANT_TOKEN", "HA_TOKEN"),
        ("HOME_ASSISTANT_TOKEN_FILE", "HA_TOKEN_FILE"),
    }


def test_all_mistakes_are_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two mistakes must not need two starts."""
    monkeypatch.delenv("HOME_ASSISTANT_URL")
    monkeypatch.delenv("HOME_ASSISTANT_TOKEN")
    monkeypatch.setenv("BATCH_SIZE", "0")

    with pytest.raises(SettingsError) as caught:
        load_settings()

    line = str(caught.value)
    assert "\n" not in line
    names = "HOME_ASSISTANT_URL or HA_WS_URL or HA_HTTP_URL"
    assert line.startswith(f"{names}: is missing. Address of Home Assistant")
    assert "HOME_ASSISTANT_TOKEN or HA_TOKEN: is missing. A long-lived access token" in line
    assert "BATCH_SIZE: input should be greater than 0. Points that make up" in line


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("HOME_ASSISTANT_TOKEN", "secret-but-short", "does not look like a token"),
        ("HOME_ASSISTANT_URL", "ftp://ha", "must be a host"),
        ("HOME_ASSISTANT_URL", "http://ha:99999", "a port from 1 to 65535"),
        ("HOME_ASSISTANT_URL", "ha:0", "a port from 1 to 65535"),
        ("HOME_ASSISTANT_URL", "my home", "must name a host"),
        ("INFLUXDB_URL", "influxdb:8086", "must be a URL that starts with http:// or https://"),
        ("INFLUXDB_URL", "http://influxdb:80866", "a port from 1 to 65535"),
        ("CORS_ORIGINS", "*", "'\\*' is not an origin like https://panel.example"),
        ("CORS_ORIGINS", "https://a.example,b.example", "'b.example' is not an origin"),
        ("CORS_ORIGINS", "https://a.example/panel", "'https://a.example/panel' is not"),
        ("CORS_ORIGINS", "https://a.example:123456", "a port from 1 to 65535"),
        ("TRUSTED_PEERS", "127.0.0.0/8,nonsense", "'nonsense' does not appear to be"),
        ("JOURNAL", "kafka", "should be 'sqlite' or 'memory'"),
        ("INFLUXDB_OVERFLOW_STRATEGY", "drop_all", "should be 'drop_oldest' or 'drop_new'"),
        ("WEBSOCKET_INGESTION_PORT", "70000", "should be less than or equal to 65535"),
        ("BATCH_TIMEOUT", "soon", "should be a valid number"),
    ],
)
def test_the_error_names_the_variable_with_an_invalid_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    """The line names the variable and the reason."""
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError, match=message) as caught:
        load_settings()

    assert name in str(caught.value).partition(":")[0]


def test_secrets_are_neither_in_errors_nor_in_the_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the error for a bad one nor in the repr of good ones."""
    monkeypatch.setenv("API_KEY", "key-that-is-secret")
    monkeypatch.setenv("INFLUXDB_TOKEN", "influx-that-is-secret")
    shown = repr(load_settings()) + str(load_settings().model_dump(mode="json"))
    monkeypatch.setenv("HOME_ASSISTANT_TOKEN", "short-that-is-secret")
    with pytest.raises(SettingsError) as caught:
        load_settings()

    assert "secret" not in (shown + str(caught.value)).replace("SecretStr", "")
    assert TOKEN not in shown


def test_the_embedded_store_cannot_be_off_without_a_database(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without InfluxDB the embedded store cannot be off."""
    monkeypatch.setenv("EMBEDDED_STORE", "off")

    with pytest.raises(SettingsError, match="EMBEDDED_STORE: is off while INFLUXDB_URL is unset"):
        load_settings()


@pytest.mark.parametrize("other", ["INFLUXDB_TOKEN", "INFLUXDB_USERNAME"])
def test_two_users_for_the_database_are_refused(
    monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """Two would be no request at all; nothing of what was given is shown."""
    monkeypatch.setenv("INFLUXDB_URL", "http://ada:hush@influxdb:8086")
    assert load_settings().influx.url is not None

    monkeypatch.setenv(other, "somebody-else")
    with pytest.raises(SettingsError, match="INFLUXDB_URL: holds a user") as caught:
        load_settings()

    assert "hush" not in str(caught.value)
    assert "somebody-else" not in str(caught.value)


@pytest.mark.parametrize(
    ("store", "url", "on"),
    [
        ("auto", "", True),
        ("auto", "http://influxdb:8086", False),
        ("on", "http://influxdb:8086", True),
        ("off", "http://influxdb:8086", False),
    ],
)
def test_the_embedded_store_is_on_when_set_or_without_a_database(
    monkeypatch: pytest.MonkeyPatch, store: str, url: str, *, on: bool
) -> None:
    """Auto means: on when INFLUXDB_URL is unset; empty counts as unset."""
    monkeypatch.setenv("EMBEDDED_STORE", store)
    monkeypatch.setenv("INFLUXDB_URL", url)

    assert load_settings().embedded_store is on


def test_settings_that_are_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spaces around the parts do not matter."""
    monkeypatch.setenv("CORS_ORIGINS", "https://a.example, https://b.example,")
    monkeypatch.setenv("TRUSTED_PEERS", "10.0.0.0/8")

    serving = load_settings().serving

    assert serving.cors_origins == ("https://a.example", "https://b.example")
    assert [str(network) for network in serving.trusted_peers] == ["10.0.0.0/8"]


def test_the_environment_has_precedence_over_the_env_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`.env` fills in what the environment does not set."""
    file = tmp_path / ".env"
    file.write_text("BATCH_SIZE=7\nBATCH_TIMEOUT=9\n")
    monkeypatch.setenv("BATCH_TIMEOUT", "2")

    batch = load_settings(file).batch

    assert (batch.size, batch.timeout_s) == (7, 2.0)


def test_settings_cannot_be_changed() -> None:
    """Every section is frozen, not only the outermost."""
    settings = load_settings()

    with pytest.raises(ValidationError):
        settings.batch = settings.batch
    with pytest.raises(ValidationError):
        settings.batch.size = 1


def test_a_misspelt_setting_gives_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the environment and in the file; foreign names are none of our business."""
    file = tmp_path / ".env"
    file.write_text("INFLUXDB_BUKET=x\nGRAFANA_PORT=3000\n")
    monkeypatch.setenv("BATCH_SIZ", "7")

    assert warnings(file) == [
        "BATCH_SIZ is not a setting; did you mean BATCH_SIZE?",
        "INFLUXDB_BUKET is not a setting; did you mean INFLUXDB_BUCKET?",
    ]


def test_a_deprecated_name_is_accepted_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weather moved to a service of its own."""
    monkeypatch.setenv("WEATHER_API_KEY", "x")

    assert warnings() == ["WEATHER_API_KEY is no longer used: weather belongs to its own service"]
    assert load_settings().embedded_store


def test_the_log_file_is_in_the_data_folder_by_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """LOG_FILE overrides DATA_DIR/service.log."""
    monkeypatch.setenv("DATA_DIR", "/var/lib/x")
    assert load_settings().log_file == Path("/var/lib/x/service.log")

    monkeypatch.setenv("LOG_FILE", "/var/log/y")
    assert load_settings().log_file == Path("/var/log/y")


def test_the_example_file_has_every_setting_with_its_default() -> None:
    """`.env.example` and the code say the same."""
    example = (Path(__file__).parents[2] / ".env.example").read_text()
    lines = {line.removeprefix("# ") for line in example.splitlines()}
    expected = {
        f"{name}={variable.default or ''}" for variable in variables() for name in variable.names
    }

    assert expected <= lines
    assert expected == {line for line in lines if line.partition("=")[0].isupper() and "=" in line}


def test_the_document_lists_every_setting_with_its_description() -> None:
    """The table of settings is complete, with the default and the words of the code."""
    document = (Path(__file__).parents[2] / "docs" / "SETTINGS.md").read_text()
    rows = [
        "| "
        + ", ".join(f"`{name}`" for name in variable.names)
        + (" | required" if variable.default is None else f" | `{variable.default}`").replace(
            " | ``", " | unset"
        )
        + f" | {variable.description} |"
        for variable in variables()
    ]

    assert [row for row in rows if row not in document.splitlines()] == []


def test_reading_settings_leaves_the_environment_alone() -> None:
    """Loading has no side effects."""
    before = dict(os.environ)

    load_settings()

    assert before == dict(os.environ)
