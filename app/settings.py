"""Every setting with its default, bounds and description.

A setting is an environment variable, or is in DATA_DIR/settings.json. It is named by the section's
`env_prefix` and the field, or by the field's alias where people already use another name. The
docstring of a field is its description in docs/SETTINGS.md and the advice in the error message
when the value is missing or invalid.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from app.model import MEGABYTE
from app.runtime.addresses import (
    check_host,
    data_api_url,
    database_url,
    mqtt_url,
    websocket_url,
)
from app.runtime.environment import (
    Environment,
    cleaned,
    is_printable,
    read_environment,
    read_secret_file,
)
from app.runtime.errors import SettingsError
from app.runtime.http_headers import has_authorization, parse_headers
from app.runtime.settings_file import SETTINGS_FILE, read_settings
from app.runtime.tls import UnusableCertificate, check_client_certificate

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

SHORTEST_GOOD_KEY = 16
"""A shorter API_KEY is warned about (docs/decisions/0017)."""

_MISSPELT = 0.88
"""How similar, as difflib counts, a name is to the one that was meant."""
_AROUND_PARTS = " \t\"'"
"""Stripped from each part of a list."""
_MAX_PATH_BYTES = 3_000
"""A thousand less than Linux has: we add names of our own."""
_MAX_NAME_BYTES = 255
_SHELL_VARIABLE = re.compile(r"\$([A-Za-z_]\w*|\{\w+\})")
_ENVIRONMENT_ONLY = frozenset(
    {
        "DATA_DIR",
        "HOMEIQ_SHARED_PATH",
        "INFLUXDB_SCHEMA_CONFIG",
        "INGEST_TRANSFORMS",
        "INGRESS_PEERS",
        "TRUSTED_PEERS",
        "TRUSTED_PROXIES",
    }
)
"""Settings that clients of the API cannot change, like all that name a file: they would choose the
code that runs, the files that are read, or who is trusted."""
_OF_HOME_ASSISTANT = ("HOMEASSISTANT", "HASS")
"""Beginnings, without underscores, of names that are meant for Home Assistant; also HA_."""
PLACEHOLDERS = {
    "HOME_ASSISTANT_URL": "http://homeassistant.local:8123",
    "HOME_ASSISTANT_TOKEN": "0" * 32,
}
"""In place of what the set-up will ask for."""
_DEPRECATED = (
    "WEATHER_API_KEY",
    "WEATHER_DEFAULT_LOCATION",
    "WEATHER_ENRICHMENT_ENABLED",
    "WEATHER_CACHE_MINUTES",
)


def _comma_separated(value: object) -> object:
    if not isinstance(value, str):
        return value
    parts = tuple(
        part for each in re.split("[,\r\n]", value) if (part := each.strip(_AROUND_PARTS))
    )
    if any(quote in part for part in parts for quote in "\"'"):
        raise ValueError("has a quotation mark in it")
    return parts


def _networks(value: object) -> object:
    parts = _comma_separated(value)
    if not isinstance(parts, tuple):
        return value
    return tuple(ipaddress.ip_network(part) for part in parts)


def _token(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[A-Za-z0-9._-]{32,300}", value.get_secret_value()):
        raise ValueError("does not look like a token")
    return value


def _origins(value: object) -> object:
    parts = _comma_separated(value)
    if not isinstance(parts, tuple):
        return value
    for part in parts:
        url = urlsplit(part)
        if url.scheme not in {"http", "https"} or part != f"{url.scheme}://{url.netloc}":
            raise ValueError(f"{part!r} is not an origin like https://panel.example:8443")
        check_host(url)
    return parts


def _path(value: Path) -> Path:
    if variable := _SHELL_VARIABLE.search(str(value)):
        raise ValueError(
            f"has {variable[0]} in it, which only a shell would replace; write the path itself,"
            " or ~ for the home folder"
        )
    try:
        expanded = value.expanduser()
    except RuntimeError:
        raise ValueError("is in the home folder of an unknown user") from None
    parts = [len(part.encode()) for part in expanded.parts]
    if sum(parts) > _MAX_PATH_BYTES or max(parts, default=0) > _MAX_NAME_BYTES:
        raise ValueError("is too long for a path")
    return expanded


def _username(value: str) -> str:
    if ":" in value:  # https://www.rfc-editor.org/rfc/rfc7617#section-2
        raise ValueError("has a colon in it, which HTTP does not allow in a user name")
    return value


def _headers(value: SecretStr) -> SecretStr:
    parse_headers(value.get_secret_value())
    return value


_MULTI_LINE = "may have line breaks"
"""Marks a type whose text may have line breaks."""

Seconds: TypeAlias = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Count: TypeAlias = Annotated[int, Field(gt=0, le=10_000_000)]
Name: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Username: TypeAlias = Annotated[str, AfterValidator(_username)]
LocalPath: TypeAlias = Annotated[Path, AfterValidator(_path)]
DatabaseUrl: TypeAlias = Annotated[str, AfterValidator(database_url)]
DataApiUrl: TypeAlias = Annotated[str, AfterValidator(data_api_url)]
MqttUrl: TypeAlias = Annotated[str, AfterValidator(mqtt_url)]
WebsocketUrl: TypeAlias = Annotated[str, AfterValidator(websocket_url)]
Strings: TypeAlias = Annotated[tuple[str, ...], _MULTI_LINE, BeforeValidator(_comma_separated)]
Origins: TypeAlias = Annotated[tuple[str, ...], _MULTI_LINE, BeforeValidator(_origins)]
Networks: TypeAlias = Annotated[tuple[Network, ...], _MULTI_LINE, BeforeValidator(_networks)]
HomeAssistantToken: TypeAlias = Annotated[SecretStr, AfterValidator(_token)]
Headers: TypeAlias = Annotated[SecretStr, _MULTI_LINE, AfterValidator(_headers)]


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """Stands for a value that could not be read."""

    why: str


class _Section(BaseSettings):
    """A group of variables, frozen."""

    model_config = SettingsConfigDict(
        frozen=True,
        hide_input_in_errors=True,
        validate_default=False,
        use_attribute_docstrings=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _check_text(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, _Unreadable):
            raise ValueError(value.why)  # noqa: TRY004 - pydantic collects ValueErrors
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, str) and (why := _malformed(field, value)) is not None:
            raise ValueError(why)
        return value


class _Source(PydanticBaseSettingsSource):
    """Source of one section: cleaned values by name, and mounted files for secrets."""

    def __init__(self, section: type[_Section], environment: Environment) -> None:
        super().__init__(section)
        self._section = section
        self._environment = environment

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[object, str, bool]:
        """Return the text of a variable, None when it is unset, and the key of the field."""
        key = _key(field, field_name)
        try:
            value = _value(field, _names(self._section, field_name), self._environment)
        except ValueError as exc:
            return _Unreadable(str(exc)), key, False
        return value, key, False

    def __call__(self) -> dict[str, object]:
        """Return what is set."""
        fields = self._section.model_fields.items()
        found = (self.get_field_value(field, name) for name, field in fields)
        return {key: value for value, key, _ in found if value is not None}


class _ServerSettings(_Section):
    """Options of the connection to a server that may be behind a proxy."""

    ssl_verify: bool = True
    """Verify the server's TLS certificate"""
    headers: Headers = SecretStr("")
    """HTTP headers sent with every request, for a proxy in front of the server: a JSON object, or
    lines like `Name: value`"""
    client_cert: LocalPath | None = None
    """File with the client certificate that the server or its proxy requires, as PEM; read again
    when it is renewed"""
    client_key: LocalPath | None = None
    """File with the key of that certificate, without a passphrase; unset: it is in the same
    file"""

    @property
    def headers_by_name(self) -> Mapping[str, str]:
        """The extra headers."""
        return parse_headers(self.headers.get_secret_value())


class HomeAssistantSettings(_ServerSettings):
    """Home Assistant."""

    model_config = SettingsConfigDict(env_prefix="HOME_ASSISTANT_")

    url: WebsocketUrl = Field(
        validation_alias=AliasChoices("HA_WS_URL", "HOME_ASSISTANT_URL", "HA_HTTP_URL")
    )
    """Address of Home Assistant, for example http://homeassistant.local:8123; HA_WS_URL overrides
    it if the WebSocket API has another address"""
    token: HomeAssistantToken = Field(
        validation_alias=AliasChoices("HOME_ASSISTANT_TOKEN", "HA_TOKEN")
    )
    """A long-lived access token from your Home Assistant profile, Security tab (32 to 300 of A-Z
    a-z 0-9 . _ -); a read-only user's is enough"""
    ssl_verify: bool = Field(True, validation_alias="HA_SSL_VERIFY")
    """Verify the server's TLS certificate"""
    instance_name: Name | None = Field(None, validation_alias="INSTANCE_NAME")
    """Value of the tag `instance` of every point, to distinguish several homes"""


class ServingSettings(_Section):
    """Dashboard and API."""

    host: Name = Field("127.0.0.1", validation_alias="WEBSOCKET_INGESTION_HOST")
    """Address to listen on; 0.0.0.0 for all, which also needs API_KEY"""
    port: int = Field(8001, ge=0, le=65_535, validation_alias="WEBSOCKET_INGESTION_PORT")
    """Port to listen on; 0 for any free one"""
    api_key: SecretStr | None = None
    """Key that clients send as `Authorization: Bearer` or `X-API-Key`; unset: only requests from
    this machine are answered"""
    trusted_peers: Networks = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1"))
    """Networks that are answered while API_KEY is unset, separated by commas"""
    trusted_proxies: Networks = ()
    """Addresses or networks of your reverse proxies, separated by commas: their X-Forwarded-For
    names the client that wrong keys are counted for"""
    ingress_peers: Networks = ()
    """Addresses of the Supervisor's ingress proxy, set by the Home Assistant app only: requests
    from there need no key, because Home Assistant has authenticated their user"""
    cors_origins: Origins = ()
    """Origins whose pages may use the API, separated by commas"""

    @property
    def proxies(self) -> Networks:
        """Addresses that many clients share."""
        return (*self.trusted_proxies, *self.ingress_peers)


class InfluxSettings(_ServerSettings):
    """Database."""

    model_config = SettingsConfigDict(env_prefix="INFLUXDB_")

    url: DatabaseUrl | None = None
    """Address of InfluxDB or VictoriaMetrics, for example http://influxdb:8086; unset: points go
    to the embedded store"""
    token: SecretStr = SecretStr("")
    """A token that may write to the bucket (v2) or the database (v3)"""
    org: Name = "homeiq"
    """Organization of the bucket (v2)"""
    bucket: Name = "home_assistant_events"
    """Bucket (v2) or database (v1, v3) to write to; created when missing if the token or user
    may do so"""
    api: Literal["auto", "v1", "v2", "v3"] = "auto"
    """v1, v2, v3, or auto: v1 with INFLUXDB_USERNAME, v2 with INFLUXDB_TOKEN; without either, or
    when the server has no such API, the version that the server reports"""
    username: Username = ""
    """User of InfluxDB 1, if it requires one"""
    password: SecretStr = SecretStr("")
    """Password of that user"""
    measurement: Name = "home_assistant_events"
    """Measurement of every point"""
    attribute_fields: Strings = ()
    """Attributes written as separate fields: names or globs, separated by commas"""
    point_schema: Literal["homeiq", "home_assistant"] = Field(
        "homeiq", validation_alias="INFLUXDB_SCHEMA"
    )
    """homeiq, or home_assistant: what Home Assistant's own influxdb integration writes; see
    docs/SCHEMA.md"""
    # Not in diagnostics: a pasted whole block contains a password.
    schema_config: Annotated[str | None, _MULTI_LINE] = Field(None, exclude=True, repr=False)
    """Options of that integration: a file with its influxdb: block, Home Assistant's folder, or
    the YAML itself; unset: its defaults"""
    timeout_s: Seconds = Field(30.0, validation_alias="INFLUXDB_TIMEOUT")
    """Seconds a request may take"""
    flush_s: Annotated[float, Field(ge=0, le=3600)] | None = Field(
        None, validation_alias="INFLUXDB_FLUSH_INTERVAL"
    )
    """Seconds until accepted points are on the database's disk; they stay in the journal until
    then; unset: 10 for VictoriaMetrics, 0 for InfluxDB"""
    max_pending_points: Count = 20_000
    """Most points received and not yet committed to the journal"""
    overflow_strategy: Literal["drop_oldest", "drop_new"] = "drop_oldest"
    """Which points to drop when a limit is reached: drop_oldest or drop_new"""
    max_batch_points: Count = 5_000
    """Most points in one request while a backlog drains"""

    @property
    def is_home_assistant_schema(self) -> bool:
        """Whether the database gets Home Assistant's schema."""
        return self.url is not None and self.point_schema == "home_assistant"

    @property
    def client(self) -> Literal["v1", "v2"]:
        """The client of Home Assistant whose text is written.

        Points are encoded before the database is detected, so only the settings decide.
        """
        if self.api == "auto":
            has_token = bool(self.token.get_secret_value())
            return "v2" if has_token and not self.username else "v1"
        return "v1" if self.api == "v1" else "v2"


class EmbeddedSettings(_Section):
    """Embedded store."""

    model_config = SettingsConfigDict(env_prefix="EMBEDDED_")

    store: Literal["auto", "on", "off"] = "auto"
    """Keep points in a SQLite file in DATA_DIR: on, off, or auto: on when INFLUXDB_URL is unset"""
    retention_days: Annotated[int, Field(gt=0, le=36_500)] = 30
    """Days until the embedded store deletes points"""


class JournalSettings(_Section):
    """Journal: points are durable here before any database receives them."""

    model_config = SettingsConfigDict(env_prefix="JOURNAL_")

    data_dir: LocalPath = Field(Path("data"), validation_alias="DATA_DIR")
    """Folder of the journal, the embedded store and the log file"""
    kind: Literal["sqlite", "memory"] = Field("sqlite", validation_alias="JOURNAL")
    """sqlite: on disk; memory: lost on a crash, for machines without a disk"""
    commit_interval_s: Seconds = Field(0.1, validation_alias="JOURNAL_COMMIT_INTERVAL")
    """Most seconds between receiving an event and the commit that makes it durable"""
    max_mb: Count = 1_024
    """Most megabytes of the journal"""
    min_free_mb: Annotated[int, Field(ge=0, le=1_000_000_000)] = 200
    """Megabytes of disk space that the journal leaves free"""

    @property
    def is_on_disk(self) -> bool:
        """Whether the journal outlives the process."""
        return self.kind == "sqlite"

    @property
    def max_bytes(self) -> int:
        """Bound of the journal's size."""
        return self.max_mb * MEGABYTE

    @property
    def min_free_bytes(self) -> int:
        """Disk space that the journal leaves free."""
        return self.min_free_mb * MEGABYTE


class BatchSettings(_Section):
    """Batches: a request is sent when either limit is reached."""

    model_config = SettingsConfigDict(env_prefix="BATCH_")

    size: Count = 100
    """Points that make up a full request"""
    timeout_s: Seconds = Field(5.0, validation_alias="BATCH_TIMEOUT")
    """Seconds after which a smaller request is sent"""


class ResilienceSettings(_Section):
    """Retries."""

    max_retries: int = Field(-1, ge=-1, le=1_000_000, validation_alias="WEBSOCKET_MAX_RETRIES")
    """Failed connections in a row after which the service exits with status 1; -1: never"""
    max_retry_delay_s: Seconds = Field(300.0, validation_alias="WEBSOCKET_MAX_RETRY_DELAY")
    """Most seconds between two attempts"""
    breaker_threshold: Count = Field(5, validation_alias="CIRCUIT_BREAKER_THRESHOLD")
    """Failures in a row that open a circuit breaker"""
    breaker_reset_s: Seconds = Field(30.0, validation_alias="CIRCUIT_BREAKER_RESET_SECONDS")
    """Seconds until an open circuit breaker allows the next attempt"""
    shutdown_timeout_s: Seconds = Field(8.0, validation_alias="SHUTDOWN_TIMEOUT")
    """Most seconds for stopping; points not sent by then stay in the journal"""


class DiscoverySettings(_Section):
    """Devices, entities and areas."""

    data_api_url: DataApiUrl | None = None
    """Address of a data API that receives all devices and entities, for example
    http://data-api:8006; unset: this service is a data API itself"""
    data_api_key: SecretStr = SecretStr("")
    """Key sent to the data API as `Authorization: Bearer`"""
    refresh_interval_s: Seconds = Field(1_800.0, validation_alias="DISCOVERY_REFRESH_INTERVAL")
    """Seconds between two full refreshes of devices, entities and areas; changes are noticed at
    once anyway"""
    store_device_history: bool = Field(False, validation_alias="STORE_DEVICE_HISTORY_IN_INFLUXDB")
    """Also write devices and entities as points whenever a refresh finds a change"""


class FilterSettings(_Section):
    """Entity filter."""

    model_config = SettingsConfigDict(env_prefix="ENTITY_FILTER_")

    config: Annotated[str | None, _MULTI_LINE] = None
    """The entity filter as JSON, for example
    {"mode":"exclude","patterns":[{"domain":"sun"}]}; see docs/FILTER.md"""
    config_file: LocalPath | None = None
    """File with that JSON, read again whenever it changes; not used when ENTITY_FILTER_CONFIG is
    set"""
    fanout: bool = Field(False, validation_alias="FILTER_FANOUT")
    """Send filtered events to /ws anyway"""


class ExtensionSettings(_Section):
    """Custom transforms."""

    shared_path: LocalPath | None = Field(None, validation_alias="HOMEIQ_SHARED_PATH")
    """Folder added to the import path, for INGEST_TRANSFORMS"""
    transforms: Strings = Field((), validation_alias="INGEST_TRANSFORMS")
    """Functions applied to every change, as module:function, separated by commas; see
    docs/TRANSFORMS.md"""


class BackfillSettings(_Section):
    """Backfill: missed changes are read from Home Assistant's recorder."""

    model_config = SettingsConfigDict(env_prefix="BACKFILL_")

    enabled: bool = True
    """Read missed changes from Home Assistant's recorder"""
    max_hours: Annotated[float, Field(gt=0, le=87_600, allow_inf_nan=False)] = 240.0
    """Hours back that are read; the recorder keeps 240 by default"""
    points_per_s: Annotated[float, Field(ge=0.001, le=1_000_000, allow_inf_nan=False)] = Field(
        2_000.0, validation_alias="BACKFILL_RATE"
    )
    """Most points read back per second"""
    commit_interval_s: Annotated[float, Field(gt=0, le=3_600)] = Field(
        5.0, validation_alias="BACKFILL_COMMIT_INTERVAL"
    )
    """Seconds between two commits of the recorder: its own setting commit_interval"""


class HealthReportSettings(_Section):
    """Health in Home Assistant."""

    model_config = SettingsConfigDict(env_prefix="MQTT_")

    way: Literal["off", "auto", "mqtt", "rest"] = Field(
        "off", validation_alias="HEALTH_IN_HOME_ASSISTANT"
    )
    """Show the service's health as sensors in Home Assistant: off, mqtt, rest (which needs an
    administrator's token), or auto: mqtt if MQTT_URL is set, else rest; see docs/OPERATIONS.md"""
    url: MqttUrl | None = None
    """Address of the MQTT broker that Home Assistant uses, for example mqtt://broker:1883, or
    mqtts:// for TLS"""
    username: str = ""
    """User of the broker, if it requires one"""
    password: SecretStr = SecretStr("")
    """Password of that user"""
    ssl_verify: bool = True
    """Verify the broker's TLS certificate"""

    @property
    def is_on(self) -> bool:
        """Whether health is reported."""
        return self.way != "off"

    @property
    def by_mqtt(self) -> bool:
        """Whether the sensors are reported by MQTT."""
        return self.url is not None and self.way in {"auto", "mqtt"}


class CopySourceSettings(_ServerSettings):
    """Source of the command copy."""

    model_config = SettingsConfigDict(env_prefix="COPY_FROM_")

    url: DatabaseUrl | None = None
    """Address of the InfluxDB 1 or 2 or VictoriaMetrics that `python -m app copy` reads; --from
    overrides it"""
    api: Literal["auto", "v1", "v2", "victoriametrics"] = "auto"
    """v1, v2, victoriametrics, or auto: what the server reports"""
    bucket: Name = "home_assistant"
    """Bucket (v2), database (v1) or label `db` (VictoriaMetrics) to read; --from-bucket overrides
    it"""
    org: Name = "homeiq"
    """Organization of the bucket (v2)"""
    token: SecretStr = SecretStr("")
    """A token that may read the bucket (v2)"""
    username: Username = ""
    """User of InfluxDB 1, if it requires one"""
    password: SecretStr = SecretStr("")
    """Password of that user"""


class LogSettings(_Section):
    """Log and memory."""

    model_config = SettingsConfigDict(env_prefix="LOG_")

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """DEBUG, INFO, WARNING or ERROR"""
    format: Literal["json", "text"] = "json"
    """json or text, one line per record"""
    output: Literal["stdout", "file", "both"] = "stdout"
    """stdout, file or both"""
    file: LocalPath | None = None
    """Log file; default DATA_DIR/service.log"""
    max_mb: Count = 100
    """Megabytes after which a new log file is started"""
    backups: Annotated[int, Field(ge=0, le=1_000)] = 5
    """How many rotated log files are retained"""
    max_memory_mb: Count = Field(500, validation_alias="MAX_MEMORY_MB")
    """Megabytes of memory above which an error is logged and /health is degraded"""


class Settings(BaseModel):
    """The whole configuration, read once at start and never changed."""

    model_config = ConfigDict(frozen=True)

    home_assistant: HomeAssistantSettings
    serving: ServingSettings
    influx: InfluxSettings
    embedded: EmbeddedSettings
    journal: JournalSettings
    batch: BatchSettings
    resilience: ResilienceSettings
    discovery: DiscoverySettings
    filter: FilterSettings
    extensions: ExtensionSettings
    backfill: BackfillSettings
    health_report: HealthReportSettings
    copy_from: CopySourceSettings
    log: LogSettings

    @property
    def embedded_store(self) -> bool:
        """Whether the embedded store is one of the sinks."""
        if self.embedded.store == "auto":
            return self.influx.url is None
        return self.embedded.store == "on"

    @property
    def source_name(self) -> str:
        """Name of this Home Assistant where there may be rows of several."""
        return self.home_assistant.instance_name or "home_assistant"

    @property
    def memory_journal_bytes(self) -> int:
        """Bound of a journal in memory, which leaves room for the service itself."""
        return min(self.journal.max_mb, self.log.max_memory_mb // 4) * MEGABYTE

    @property
    def log_file(self) -> Path:
        """The log file, whether or not it is used."""
        return self.log.file or self.journal.data_dir / "service.log"


def load_settings(
    env_file: Path | None = None, *, stored: Mapping[str, str] | None = None
) -> Settings:
    """Read the environment, then `env_file`, then DATA_DIR/settings.json: the first that sets it.

    Args:
        env_file: the `.env` file, if there is one.
        stored: what to use in place of DATA_DIR/settings.json.

    Raises:
        SettingsError: a variable is missing or invalid, or a file is; the message is one line
            that names each, says what is wrong and how to fix it, and never shows a secret.
    """
    environment = read_environment(env_file)
    by_name = stored_settings(environment)[1] if stored is None else stored
    of_file = Environment(({name: cleaned(value) for name, value in by_name.items()},))
    sections: dict[str, _Section] = {}
    problems = list(_unparsed_settings(environment, env_file))
    for name, section in _sections().items():
        sources = (_Source(section, environment), _Source(section, of_file))
        try:
            # The type checker takes the keyword for a field.
            sections[name] = section(_build_sources=(sources, {}))  # type: ignore[call-arg]
        except ValidationError as exc:
            problems += _sentences(section, exc)
    if problems:
        raise SettingsError(*problems)
    settings = Settings.model_validate(sections)
    if problems := list(_contradictions(settings)):
        raise SettingsError(*problems)
    return settings


def load_for_setup(env_file: Path | None = None) -> Settings | None:
    """Return the settings of the set-up mode; None when anything about Home Assistant is set.

    Home Assistant's own are placeholders. A misspelt or partial set is a mistake to report, and
    not a first start.

    Raises:
        SettingsError: as `load_settings`.
    """
    environment = read_environment(env_file)
    _, stored = stored_settings(environment)
    if any(_is_about_home_assistant(name) for name in (*environment.names_with_values(), *stored)):
        return None
    return load_settings(env_file, stored={**stored, **PLACEHOLDERS})


def _is_about_home_assistant(name: str) -> bool:
    if name.startswith("HA_") or name.replace("_", "").startswith(_OF_HOME_ASSISTANT):
        return True
    known = (*_names(HomeAssistantSettings, "url"), *_names(HomeAssistantSettings, "token"))
    return bool(difflib.get_close_matches(name, known, n=1, cutoff=_MISSPELT))


def stored_settings(environment: Environment) -> tuple[Path, Mapping[str, str]]:
    """Return DATA_DIR/settings.json, and the text of each setting in it.

    Raises:
        SettingsError: it cannot be used.
    """
    found = environment.find(_names(JournalSettings, "data_dir"))
    default: Path = JournalSettings.model_fields["data_dir"].default
    try:
        folder = default if found is None else _path(Path(found[1]))
    except ValueError:
        folder = default  # the setting itself is reported
    allowed = {each.names[0] for each in variables() if not each.is_environment_only}
    file = folder / SETTINGS_FILE
    return file, read_settings(file, allowed=allowed)


def _value(field: FieldInfo, names: tuple[str, ...], environment: Environment) -> str | None:
    """Return the text of a variable, or the content of a secret's file; None when unset.

    Raises:
        ValueError: both are set, or the file cannot be used.
    """
    given = environment.find(names)
    file = environment.find(_file_names(names)) if _is_secret(field) else None
    if file is None:
        return None if given is None else given[1]
    variable, path = file
    if given is not None:
        raise ValueError(f"{given[0]} is set, and {variable} is set, too; remove one of them")
    try:
        return read_secret_file(Path(path))
    except ValueError as exc:
        raise ValueError(f"{variable} {exc}") from exc


def _malformed(field: FieldInfo, text: str) -> str | None:
    """Return why no setting may have this text; None when it may."""
    is_multi_line = _MULTI_LINE in field.metadata
    if not is_printable(text, multi_line=is_multi_line):
        return "has a line break, another control character or bytes that are not UTF-8 in it"
    has_lone_quote = (text[0] in "\"'") != (text[-1] in "\"'")
    if has_lone_quote and not is_multi_line and not _is_secret(field):
        return "has a quotation mark at one end only"
    return None


def _is_secret(field: FieldInfo) -> bool:
    return field.annotation is SecretStr or field.annotation == SecretStr | None


def _is_file(field: FieldInfo) -> bool:
    parts = (field.annotation, *get_args(field.annotation))
    return any(getattr(part, "__origin__", part) is Path for part in parts)


def _unparsed_settings(environment: Environment, env_file: Path | None) -> Iterator[str]:
    """Yield a sentence for each unparsed line of the file that would set one of our variables."""
    known = _known_names() if environment.unparsed else set()
    for number, text in environment.unparsed:
        name = re.match(r"(?:export\s+)?['\"]?(\w+)", text)
        if name and name[1] in known:
            yield (
                f"{name[1]}: line {number} of {env_file} cannot be read."
                " Look for a quotation mark that is missing"
            )


def _contradictions(settings: Settings) -> Iterator[str]:
    """Yield what two settings cannot mean at once."""
    influx, home_assistant, discovery = settings.influx, settings.home_assistant, settings.discovery
    yield from _unusable_certificate(home_assistant)
    yield from _unusable_certificate(influx)
    yield from _unusable_certificate(settings.copy_from)
    # An HTTP request has one `Authorization`, and a user in an address becomes one.
    if _has_user(home_assistant.url) and has_authorization(home_assistant.headers_by_name):
        yield (
            "HOME_ASSISTANT_HEADERS: has the header Authorization, and HOME_ASSISTANT_URL has a"
            " user. Remove one of them"
        )
    if _has_user(discovery.data_api_url) and discovery.data_api_key.get_secret_value():
        yield (
            "DATA_API_URL: has a user, which is sent in the same header as DATA_API_KEY."
            " Remove one of them"
        )
    if settings.health_report.way == "mqtt" and settings.health_report.url is None:
        yield (
            "HEALTH_IN_HOME_ASSISTANT: is mqtt while MQTT_URL is unset. Set MQTT_URL, or"
            " HEALTH_IN_HOME_ASSISTANT=rest"
        )
    if influx.url is None:
        if not settings.embedded_store:
            yield (
                "EMBEDDED_STORE: is off while INFLUXDB_URL is unset, so events would go nowhere."
                " Set INFLUXDB_URL, or EMBEDDED_STORE=auto"
            )
        return
    has_credentials = bool(influx.username or influx.token.get_secret_value())
    if _has_user(influx.url) and has_credentials:
        yield (
            "INFLUXDB_URL: holds a user, and INFLUXDB_USERNAME or INFLUXDB_TOKEN names another."
            " Leave one of them out"
        )
    if (_has_user(influx.url) or has_credentials) and has_authorization(influx.headers_by_name):
        yield (
            "INFLUXDB_HEADERS: has the header Authorization, which is made of INFLUXDB_TOKEN,"
            " INFLUXDB_USERNAME or the user in INFLUXDB_URL. Remove one of them"
        )


def _has_user(url: str | None) -> bool:
    return url is not None and urlsplit(url).username is not None


def _unusable_certificate(server: _ServerSettings) -> Iterator[str]:
    prefix = server.model_config["env_prefix"]
    if server.client_cert is not None:
        try:
            check_client_certificate(server.client_cert, server.client_key)
        except UnusableCertificate as exc:
            yield f"{prefix}CLIENT_CERT and {prefix}CLIENT_KEY: {exc}"
    elif server.client_key is not None:
        yield f"{prefix}CLIENT_KEY: is set without {prefix}CLIENT_CERT. Set both, or neither"


def warnings(env_file: Path | None = None) -> list[str]:
    """Return a sentence for each variable that is deprecated, unused or looks misspelt."""
    given_outside = read_environment(env_file)
    environment = Environment((*given_outside.sources, stored_settings(given_outside)[1]))
    given = environment.names()
    found = [
        f"{name} is no longer used: weather belongs to its own service"
        for name in _DEPRECATED
        if name in given
    ]
    known = _known_names()
    for name in sorted(given - known - set(_DEPRECATED)):
        matches = difflib.get_close_matches(name, known, n=1, cutoff=_MISSPELT)
        found += [f"{name} is not a setting; did you mean {match}?" for match in matches]
    schema = environment.find(("INFLUXDB_SCHEMA",))
    if schema is not None and schema[1].strip() == "home_assistant":
        if environment.find(("INFLUXDB_URL",)) is None:
            found.append("INFLUXDB_SCHEMA is not used: the embedded store has its own schema")
    elif environment.find(("INFLUXDB_SCHEMA_CONFIG",)) is not None:
        found.append("INFLUXDB_SCHEMA_CONFIG is not used: INFLUXDB_SCHEMA is not home_assistant")
    way = environment.find(("HEALTH_IN_HOME_ASSISTANT",))
    if environment.find(("MQTT_URL",)) and (way is None or way[1].strip() in {"off", "rest"}):
        found.append("MQTT_URL is not used: HEALTH_IN_HOME_ASSISTANT is neither mqtt nor auto")
    for section in (HomeAssistantSettings, InfluxSettings):
        name = f"{section.model_config['env_prefix']}CLIENT_CERT"
        url = environment.find(_names(section, "url"))
        if environment.find((name,)) and url and not url[1].startswith(("https:", "wss:")):
            found.append(f"{name} is not used: the address it is for does not start with https://")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One setting as a person meets it."""

    names: tuple[str, ...]
    """The one to use, then those that older installations have."""
    default: str | None
    """As written in the environment; empty for unset, None if the setting is required."""
    description: str
    is_environment_only: bool = True
    """Whether DATA_DIR/settings.json may not have it."""
    is_secret: bool = False
    """Whether it must never be shown."""
    group: str = ""
    """What the settings around it are about."""
    choices: tuple[str, ...] = ()
    """The only values that are possible, if there are few."""
    file_names: tuple[str, ...] = ()
    """The variables that name a file with this secret."""


def variables() -> list[Variable]:
    """Return every setting, in the order of this file; the file of a secret comes after it."""
    found = []
    for section in _sections().values():
        for name, field in section.model_fields.items():
            variable = _variable(section, name, field)
            found.append(variable)
            if variable.file_names:
                what = f"File that holds {variable.names[0]}, for example a mounted secret"
                found.append(Variable(names=variable.file_names, default="", description=what))
    return found


def _variable(section: type[_Section], name: str, field: FieldInfo) -> Variable:
    names = _documented_names(section, name)
    return Variable(
        names=names,
        default=None if field.is_required() else _as_text(field.default),
        description=_description(field),
        is_environment_only=names[0] in _ENVIRONMENT_ONLY or _is_file(field),
        is_secret=_is_secret(field) or field.exclude is True,
        group=re.split("[.:]", section.__doc__ or "")[0],
        choices=("true", "false") if field.annotation is bool else _choices(field),
        file_names=_file_names(names) if _is_secret(field) else (),
    )


def _choices(field: FieldInfo) -> tuple[str, ...]:
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def _known_names() -> set[str]:
    return {name for variable in variables() for name in variable.names}


def _sections() -> dict[str, type[_Section]]:
    found = {}
    for name, field in Settings.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        assert issubclass(section, _Section)
        found[name] = section
    return found


def _names(section: type[_Section], field_name: str) -> tuple[str, ...]:
    """Return the names of a variable; the first one set wins."""
    match section.model_fields[field_name].validation_alias:
        case None:
            return (f"{section.model_config['env_prefix']}{field_name}".upper(),)
        case AliasChoices(choices=choices):
            return tuple(str(choice) for choice in choices)
        case alias:
            return (str(alias),)


def _documented_names(section: type[_Section], field_name: str) -> tuple[str, ...]:
    """Return the names of a variable, the one to use first: it has the prefix of the section."""
    prefix = section.model_config["env_prefix"]
    return tuple(sorted(_names(section, field_name), key=lambda name: not name.startswith(prefix)))


def _file_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the variables that name a file with this secret."""
    return tuple(f"{name}_FILE" for name in names)


def _key(field: FieldInfo, name: str) -> str:
    """Return what pydantic calls the field, in its input and in its errors."""
    alias = field.validation_alias
    return str(alias.choices[0] if isinstance(alias, AliasChoices) else alias or name)


def _description(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _as_text(default: object) -> str:
    match default:
        case None:
            return ""
        case bool():
            return str(default).lower()
        case tuple():
            return ",".join(str(part) for part in default)
        case SecretStr():
            return default.get_secret_value()
        case _:
            return str(default)


def _sentences(section: type[_Section], exc: ValidationError) -> Iterator[str]:
    """Yield what is wrong with each variable, and its description."""
    errors = {str(error["loc"][0]): error for error in exc.errors(include_input=False)}
    for name, field in section.model_fields.items():
        if error := errors.get(_key(field, name)):
            what = error["msg"].removeprefix("Value error, ")
            if error["type"] == "missing":
                what = "is missing"
            elif what[:2].istitle():  # pydantic's sentences; ours may begin with a variable's name
                what = what[:1].lower() + what[1:]
            yield f"{' or '.join(_documented_names(section, name))}: {what}. {_description(field)}"
