"""Every environment variable, its default and its unit; `.env.example` says the same.

Names are those people already use; of a pair the first wins. The description of a field
doubles as the advice a person reads when the value is missing or unusable.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, TypeVar
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

from app.runtime.addresses import check_host, data_api_url, database_url, websocket_url
from app.runtime.environment import (
    Environment,
    is_printable,
    read_environment,
    read_secret_file,
    unparsed_lines,
)
from app.runtime.errors import SettingsError
from app.runtime.http_headers import has_authorization, parse_headers
from app.runtime.tls import UnusableCertificate, check_client_certificate

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Section = TypeVar("Section", bound="_Section")

SHORTEST_GOOD_KEY = 16
"""Characters of an API_KEY that is not warned about (docs/decisions/0017)."""

_AROUND_PARTS = " \t\"'"
"""Stripped from each part of a list: white space, and quotation marks around each part."""
_FILE = "_FILE"
"""Ends the name of the variable that names a file with the secret."""
_MAX_PATH_BYTES = 3_000
"""A thousand less than Linux has: we add names of our own."""
_MAX_NAME_BYTES = 255
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
    try:
        expanded = value.expanduser()
    except RuntimeError:
        raise ValueError("is in the home folder of an unknown user") from None
    parts = [len(part.encode()) for part in expanded.parts]
    if sum(parts) > _MAX_PATH_BYTES or max(parts, default=0) > _MAX_NAME_BYTES:
        raise ValueError("is too long for a path")
    return expanded


def _headers(value: SecretStr) -> SecretStr:
    parse_headers(value.get_secret_value())
    return value


_MULTI_LINE = "may have line breaks"
"""Marks a type whose text may have line breaks in it."""

Seconds: TypeAlias = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Count: TypeAlias = Annotated[int, Field(gt=0, le=10_000_000)]
Name: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=256)]
LocalPath: TypeAlias = Annotated[Path, AfterValidator(_path)]
DatabaseUrl: TypeAlias = Annotated[str, AfterValidator(database_url)]
DataApiUrl: TypeAlias = Annotated[str, AfterValidator(data_api_url)]
WebsocketUrl: TypeAlias = Annotated[str, AfterValidator(websocket_url)]
Strings: TypeAlias = Annotated[tuple[str, ...], _MULTI_LINE, BeforeValidator(_comma_separated)]
Origins: TypeAlias = Annotated[tuple[str, ...], _MULTI_LINE, BeforeValidator(_origins)]
Networks: TypeAlias = Annotated[tuple[Network, ...], _MULTI_LINE, BeforeValidator(_networks)]
HomeAssistantToken: TypeAlias = Annotated[SecretStr, AfterValidator(_token)]
Headers: TypeAlias = Annotated[SecretStr, _MULTI_LINE, AfterValidator(_headers)]


@dataclass(frozen=True, slots=True)
class _Unusable:
    """Stands for a value that could not be read."""

    why: str


class _Section(BaseSettings):
    """A group of variables, frozen."""

    model_config = SettingsConfigDict(
        frozen=True, hide_input_in_errors=True, validate_default=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _check_text(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, _Unusable):
            raise ValueError(value.why)  # noqa: TRY004 - pydantic collects ValueErrors
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, str) and (what := _hygiene(field, value)) is not None:
            raise ValueError(what)
        return value


class _CleanedEnvironment(PydanticBaseSettingsSource):
    """Source of one section: the cleaned environment, and mounted files for secrets."""

    def __init__(self, section: type[_Section], environment: Environment) -> None:
        super().__init__(section)
        self._environment = environment

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[object, str, bool]:
        """Return the text of a variable, None when it is unset, and the variable's first name."""
        del field_name  # the variables are named by the aliases
        names = _names(field.validation_alias)
        try:
            return _given(field, self._environment), names[0], False
        except ValueError as exc:
            return _Unusable(str(exc)), names[0], False

    def __call__(self) -> dict[str, object]:
        """Return what is set, by the first name of each variable."""
        fields = self.settings_cls.model_fields.items()
        found = (self.get_field_value(field, name) for name, field in fields)
        return {name: value for value, name, _ in found if value is not None}


class HomeAssistantSettings(_Section):
    """Where events come from."""

    url: WebsocketUrl = Field(
        validation_alias=AliasChoices("HA_WS_URL", "HOME_ASSISTANT_URL", "HA_HTTP_URL"),
        description="Address of Home Assistant, for example http://homeassistant.local:8123;"
        " HA_WS_URL only where its WebSocket API is elsewhere",
    )
    token: HomeAssistantToken = Field(
        validation_alias=AliasChoices("HOME_ASSISTANT_TOKEN", "HA_TOKEN"),
        description="A long-lived access token from your Home Assistant profile, Security tab"
        " (32 to 300 of A-Z a-z 0-9 . _ -); a read-only user's is enough",
    )
    ssl_verify: bool = Field(
        True,
        validation_alias="HA_SSL_VERIFY",
        description="Whether the TLS certificate of Home Assistant is checked",
    )
    headers: Headers = Field(
        SecretStr(""),
        validation_alias="HOME_ASSISTANT_HEADERS",
        description="HTTP headers sent to Home Assistant, for a proxy in front of it: a JSON"
        " object, or lines like `Name: value`",
    )
    client_cert: LocalPath | None = Field(
        None,
        validation_alias="HOME_ASSISTANT_CLIENT_CERT",
        description="A file with the client certificate that Home Assistant's proxy requires, as"
        " PEM; read again when it is renewed",
    )
    client_key: LocalPath | None = Field(
        None,
        validation_alias="HOME_ASSISTANT_CLIENT_KEY",
        description="A file with the key of that certificate, without a passphrase; unset: it is"
        " in the same file",
    )
    instance_name: Name | None = Field(
        None,
        validation_alias="INSTANCE_NAME",
        description="Becomes the tag `instance` of every point, to tell several homes apart",
    )

    @property
    def headers_by_name(self) -> Mapping[str, str]:
        """The extra headers."""
        return parse_headers(self.headers.get_secret_value())


class ServingSettings(_Section):
    """Where people and programs reach this service."""

    host: Name = Field(
        "127.0.0.1",
        validation_alias="WEBSOCKET_INGESTION_HOST",
        description="Address to listen on; 0.0.0.0 for all, and then set API_KEY",
    )
    port: int = Field(
        8001,
        ge=0,
        le=65_535,
        validation_alias="WEBSOCKET_INGESTION_PORT",
        description="Port to listen on; 0 takes a free one",
    )
    api_key: SecretStr | None = Field(
        None,
        validation_alias="API_KEY",
        description="Key that clients send as `Authorization: Bearer` or `X-API-Key`;"
        " without one only this machine is answered",
    )
    trusted_peers: Networks = Field(
        (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1")),
        validation_alias="TRUSTED_PEERS",
        description="Networks that are answered without a key, separated by commas",
    )
    trusted_proxies: Networks = Field(
        (),
        validation_alias="TRUSTED_PROXIES",
        description="Addresses or networks of your reverse proxies, separated by commas: their"
        " X-Forwarded-For names the client that wrong keys are counted for",
    )
    cors_origins: Origins = Field(
        (),
        validation_alias="CORS_ORIGINS",
        description="Origins whose pages may use the API, separated by commas",
    )


class InfluxSettings(_Section):
    """The database."""

    url: DatabaseUrl | None = Field(
        None,
        validation_alias="INFLUXDB_URL",
        description="Address of InfluxDB or VictoriaMetrics, for example http://influxdb:8086;"
        " unset: the embedded store is used instead",
    )
    token: SecretStr = Field(
        SecretStr(""),
        validation_alias="INFLUXDB_TOKEN",
        description="A token that may write to the bucket (v2) or the database (v3)",
    )
    org: Name = Field(
        "homeiq", validation_alias="INFLUXDB_ORG", description="Organization of the bucket (v2)"
    )
    bucket: Name = Field(
        "home_assistant_events",
        validation_alias="INFLUXDB_BUCKET",
        description="Bucket (v2) or database (v1, v3) to write to; created when missing and the"
        " token or the user may",
    )
    api: Literal["auto", "v1", "v2", "v3"] = Field(
        "auto",
        validation_alias="INFLUXDB_API",
        description="v1, v2, v3, or auto: v1 with INFLUXDB_USERNAME, v2 with INFLUXDB_TOKEN, else,"
        " or when that is not found there, what the server says it is",
    )
    username: str = Field(
        "", validation_alias="INFLUXDB_USERNAME", description="User of InfluxDB 1, if it wants one"
    )
    password: SecretStr = Field(
        SecretStr(""), validation_alias="INFLUXDB_PASSWORD", description="Password of that user"
    )
    timeout_s: Seconds = Field(
        30.0, validation_alias="INFLUXDB_TIMEOUT", description="Seconds a request may take"
    )
    flush_s: Annotated[float, Field(ge=0, le=3600)] | None = Field(
        None,
        validation_alias="INFLUXDB_FLUSH_INTERVAL",
        description="Seconds after which points that the database accepted are on its disk; until"
        " then they stay in the journal; unset: 10 for VictoriaMetrics, 0 for InfluxDB",
    )
    max_pending_points: Count = Field(
        20_000,
        validation_alias="INFLUXDB_MAX_PENDING_POINTS",
        description="Points received and not yet in the journal, at most",
    )
    overflow_strategy: Literal["drop_oldest", "drop_new"] = Field(
        "drop_oldest",
        validation_alias="INFLUXDB_OVERFLOW_STRATEGY",
        description="What to give up when a bound is reached: drop_oldest or drop_new",
    )
    max_batch_points: Count = Field(
        5_000,
        validation_alias="INFLUXDB_MAX_BATCH_POINTS",
        description="Points in one request, at most, while a backlog drains",
    )
    attribute_fields: Strings = Field(
        (),
        validation_alias="INFLUXDB_ATTRIBUTE_FIELDS",
        description="Attributes written as fields of their own: names or globs, by commas",
    )
    measurement: Name = Field(
        "home_assistant_events",
        validation_alias="INFLUXDB_MEASUREMENT",
        description="Measurement of every point",
    )
    ssl_verify: bool = Field(
        True,
        validation_alias="INFLUXDB_SSL_VERIFY",
        description="Whether the TLS certificate of the database is checked",
    )
    headers: Headers = Field(
        SecretStr(""),
        validation_alias="INFLUXDB_HEADERS",
        description="HTTP headers sent to the database, for a proxy in front of it: a JSON"
        " object, or lines like `Name: value`",
    )
    client_cert: LocalPath | None = Field(
        None,
        validation_alias="INFLUXDB_CLIENT_CERT",
        description="A file with the client certificate that the database or its proxy requires,"
        " as PEM; read again when it is renewed",
    )
    client_key: LocalPath | None = Field(
        None,
        validation_alias="INFLUXDB_CLIENT_KEY",
        description="A file with the key of that certificate, without a passphrase; unset: it is"
        " in the same file",
    )

    @property
    def headers_by_name(self) -> Mapping[str, str]:
        """The extra headers."""
        return parse_headers(self.headers.get_secret_value())


class EmbeddedSettings(_Section):
    """The SQLite event store."""

    store: Literal["auto", "on", "off"] = Field(
        "auto",
        validation_alias="EMBEDDED_STORE",
        description="on, off, or auto: on when INFLUXDB_URL is unset",
    )
    retention_days: Annotated[int, Field(gt=0, le=36_500)] = Field(
        30,
        validation_alias="EMBEDDED_RETENTION_DAYS",
        description="Days that the embedded store keeps",
    )


class JournalSettings(_Section):
    """Where points are durable before any database sees them."""

    data_dir: LocalPath = Field(
        Path("data"),
        validation_alias="DATA_DIR",
        description="Folder of the journal, the embedded store and the log file",
    )
    kind: Literal["sqlite", "memory"] = Field(
        "sqlite",
        validation_alias="JOURNAL",
        description="sqlite: on disk; memory: lost on a crash, for machines without a disk",
    )
    commit_interval_s: Seconds = Field(
        0.1,
        validation_alias="JOURNAL_COMMIT_INTERVAL",
        description="Seconds between receiving an event and the commit that makes it durable",
    )
    max_mb: Count = Field(
        1_024, validation_alias="JOURNAL_MAX_MB", description="Size of the journal, at most"
    )
    min_free_mb: Annotated[int, Field(ge=0, le=1_000_000_000)] = Field(
        200,
        validation_alias="JOURNAL_MIN_FREE_MB",
        description="Megabytes of the disk that the journal never uses",
    )


class BatchSettings(_Section):
    """When a request to a database leaves: at the first of the two."""

    size: Count = Field(
        100, validation_alias="BATCH_SIZE", description="Points that make a request leave"
    )
    timeout_s: Seconds = Field(
        5.0,
        validation_alias="BATCH_TIMEOUT",
        description="Seconds after which a smaller request leaves",
    )


class ResilienceSettings(_Section):
    """How hard to try."""

    max_retries: int = Field(
        -1,
        ge=-1,
        le=1_000_000,
        validation_alias="WEBSOCKET_MAX_RETRIES",
        description="Failed connections in a row before the service ends with status 1; -1: never",
    )
    max_retry_delay_s: Seconds = Field(
        300.0,
        validation_alias="WEBSOCKET_MAX_RETRY_DELAY",
        description="Seconds between two attempts, at most",
    )
    breaker_threshold: Count = Field(
        5,
        validation_alias="CIRCUIT_BREAKER_THRESHOLD",
        description="Failures in a row that open a circuit breaker",
    )
    breaker_reset_s: Seconds = Field(
        30.0,
        validation_alias="CIRCUIT_BREAKER_RESET_SECONDS",
        description="Seconds that an open circuit breaker waits",
    )
    shutdown_timeout_s: Seconds = Field(
        8.0,
        validation_alias="SHUTDOWN_TIMEOUT",
        description="Seconds that stopping may take; what is not sent by then is in the journal",
    )


class DiscoverySettings(_Section):
    """Devices, entities and areas, and where they are kept."""

    data_api_url: DataApiUrl | None = Field(
        None,
        validation_alias="DATA_API_URL",
        description="Address of a data API that is sent all devices and entities, for example"
        " http://data-api:8006; unset: this service is one itself",
    )
    data_api_key: SecretStr = Field(
        SecretStr(""),
        validation_alias="DATA_API_KEY",
        description="Key that is sent to the data API as `Authorization: Bearer`",
    )
    refresh_interval_s: Seconds = Field(
        1_800.0,
        validation_alias="DISCOVERY_REFRESH_INTERVAL",
        description="Seconds between two listings of all devices, entities and areas;"
        " changes are noticed at once all the same",
    )
    store_device_history: bool = Field(
        False,
        validation_alias="STORE_DEVICE_HISTORY_IN_INFLUXDB",
        description="Whether devices and entities are written as points, too, whenever a refresh"
        " changed something",
    )


class FilterSettings(_Section):
    """Which changes are kept."""

    config: Annotated[str | None, _MULTI_LINE] = Field(
        None,
        validation_alias="ENTITY_FILTER_CONFIG",
        description='The entity filter as JSON, for example {"mode":"exclude","patterns":'
        '[{"domain":"sun"}]}; see docs/FILTER.md',
    )
    config_file: LocalPath | None = Field(
        None,
        validation_alias="ENTITY_FILTER_CONFIG_FILE",
        description="A file with that JSON, read again whenever it changes;"
        " not used when ENTITY_FILTER_CONFIG is set",
    )
    fanout: bool = Field(
        False,
        validation_alias="FILTER_FANOUT",
        description="Whether events that the filter holds back still reach /ws",
    )


class ExtensionSettings(_Section):
    """Code of yours that every change passes through."""

    shared_path: LocalPath | None = Field(
        None,
        validation_alias="HOMEIQ_SHARED_PATH",
        description="A folder that is put on the import path, for INGEST_TRANSFORMS",
    )
    transforms: Strings = Field(
        (),
        validation_alias="INGEST_TRANSFORMS",
        description="Functions every change passes through, as module:function, by commas;"
        " see docs/TRANSFORMS.md",
    )


class BackfillSettings(_Section):
    """How what was missed is read back from Home Assistant's recorder."""

    enabled: bool = Field(
        True,
        validation_alias="BACKFILL_ENABLED",
        description="Whether what was missed is read back from Home Assistant's recorder",
    )
    max_hours: Annotated[float, Field(gt=0, le=87_600, allow_inf_nan=False)] = Field(
        240.0,
        validation_alias="BACKFILL_MAX_HOURS",
        description="Hours back that are read; the recorder keeps 240 unless told otherwise",
    )
    points_per_s: Annotated[float, Field(ge=0.001, le=1_000_000, allow_inf_nan=False)] = Field(
        2_000.0,
        validation_alias="BACKFILL_RATE",
        description="Points per second that are read back, at most",
    )
    commit_interval_s: Annotated[float, Field(gt=0, le=3_600)] = Field(
        5.0,
        validation_alias="BACKFILL_COMMIT_INTERVAL",
        description="Seconds between two commits of the recorder: its own commit_interval",
    )


class LogSettings(_Section):
    """What is written to the log, and the memory alarm."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", validation_alias="LOG_LEVEL", description="DEBUG, INFO, WARNING or ERROR"
    )
    format: Literal["json", "text"] = Field(
        "json", validation_alias="LOG_FORMAT", description="json or text, a line per record"
    )
    output: Literal["stdout", "file", "both"] = Field(
        "stdout", validation_alias="LOG_OUTPUT", description="stdout, file or both"
    )
    file: LocalPath | None = Field(
        None, validation_alias="LOG_FILE", description="Log file; default DATA_DIR/service.log"
    )
    max_mb: Count = Field(
        100,
        validation_alias="LOG_MAX_MB",
        description="Megabytes after which a new log file is begun",
    )
    backups: Annotated[int, Field(ge=0, le=1_000)] = Field(
        5, validation_alias="LOG_BACKUPS", description="Older log files that are kept"
    )
    max_memory_mb: Count = Field(
        500,
        validation_alias="MAX_MEMORY_MB",
        description="Megabytes of memory above which the service raises an alarm",
    )


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
    log: LogSettings

    @property
    def embedded_store(self) -> bool:
        """Whether the embedded store is one of the sinks."""
        if self.embedded.store == "auto":
            return self.influx.url is None
        return self.embedded.store == "on"

    @property
    def source_name(self) -> str:
        """What this Home Assistant is called where there may be rows of several."""
        return self.home_assistant.instance_name or "home_assistant"

    @property
    def log_file(self) -> Path:
        """The log file, whether or not it is used."""
        return self.log.file or self.journal.data_dir / "service.log"


def load_settings(env_file: Path | None = None) -> Settings:
    """Read the environment, and `env_file` for what the environment does not set.

    Raises:
        SettingsError: a variable is missing or unusable, or the file is; the message is one line
            that names each, says what is wrong and how to fix it, and never shows a secret.
    """
    environment = read_environment(env_file)
    sections: dict[str, _Section] = {}
    problems = [] if env_file is None else list(_lost_lines(env_file))
    for name, section in _sections().items():
        source = _CleanedEnvironment(section, environment)
        try:
            # The type checker takes the keyword for a field.
            sections[name] = section(_build_sources=((source,), {}))  # type: ignore[call-arg]
        except ValidationError as exc:
            problems += _sentences(section, _refused(exc))
    if problems:
        raise SettingsError(*problems)
    settings = Settings.model_validate(sections)
    problems = list(_contradictions(settings))
    if problems:
        raise SettingsError(*problems)
    return settings


def _given(field: FieldInfo, environment: Environment) -> str | None:
    """Return what a variable is set to, or for a secret what its file holds; None when unset.

    Raises:
        ValueError: both are set, or the file cannot be used.
    """
    names = _names(field.validation_alias)
    given = environment.find(names)
    text = None if given is None else given[1]
    if not _is_secret(field):
        return text
    file = environment.find(name + _FILE for name in names)
    if file is None:
        return text
    variable, path = file
    if given is not None:
        raise ValueError(f"{given[0]} is set, and {variable} is set, too; remove one of them")
    try:
        return read_secret_file(Path(path))
    except ValueError as exc:
        raise ValueError(f"{variable} {exc}") from exc


def _hygiene(field: FieldInfo, text: str) -> str | None:
    """Say what no setting may have in it; None when the text is fine."""
    is_multi_line = _MULTI_LINE in field.metadata
    if not is_printable(text, multi_line=is_multi_line):
        return "has a line break, another control character or bytes that are not UTF-8 in it"
    has_lone_quote = (text[0] in "\"'") != (text[-1] in "\"'")
    if has_lone_quote and not is_multi_line and not _is_secret(field):
        return "has a quotation mark at one end only"
    return None


def _is_secret(field: FieldInfo) -> bool:
    return field.annotation is SecretStr or field.annotation == SecretStr | None


def _lost_lines(env_file: Path) -> Iterator[str]:
    """Yield a sentence for each line that would set one of our variables and cannot be read."""
    known = _known_names()
    for number, text in unparsed_lines(env_file):
        name = re.match(r"(?:export\s+)?['\"]?(\w+)", text)
        if name and name[1] in known:
            yield (
                f"{name[1]}: line {number} of {env_file} cannot be read."
                " Look for a quotation mark that is missing"
            )


def _contradictions(settings: Settings) -> Iterator[str]:
    """Yield what two settings cannot mean at once."""
    influx, home_assistant = settings.influx, settings.home_assistant
    for prefix, party in (("HOME_ASSISTANT", home_assistant), ("INFLUXDB", influx)):
        yield from _unusable_certificate(prefix, party)
    if urlsplit(home_assistant.url).username is not None and has_authorization(
        home_assistant.headers_by_name
    ):
        yield (
            "HOME_ASSISTANT_HEADERS: has the header Authorization, and HOME_ASSISTANT_URL has a"
            " user. Remove one of them"
        )
    if influx.url is None:
        if not settings.embedded_store:
            yield (
                "EMBEDDED_STORE: is off while INFLUXDB_URL is unset, so events would go nowhere."
                " Set INFLUXDB_URL, or EMBEDDED_STORE=auto"
            )
        return
    # An HTTP request has one `Authorization`, and a user in an address is one already.
    has_user = urlsplit(influx.url).username
    has_credentials = influx.username or influx.token.get_secret_value()
    if has_user and has_credentials:
        yield (
            "INFLUXDB_URL: holds a user, and INFLUXDB_USERNAME or INFLUXDB_TOKEN names another."
            " Leave one of them out"
        )
    if (has_user or has_credentials) and has_authorization(influx.headers_by_name):
        yield (
            "INFLUXDB_HEADERS: has the header Authorization, which is made of INFLUXDB_TOKEN,"
            " INFLUXDB_USERNAME or the user in INFLUXDB_URL. Remove one of them"
        )


def _unusable_certificate(
    prefix: str, party: HomeAssistantSettings | InfluxSettings
) -> Iterator[str]:
    if party.client_cert is None:
        if party.client_key is not None:
            yield (
                f"{prefix}_CLIENT_KEY: is set without {prefix}_CLIENT_CERT. Set both, or neither"
            )
        return
    try:
        check_client_certificate(party.client_cert, party.client_key)
    except UnusableCertificate as exc:
        yield f"{prefix}_CLIENT_CERT and {prefix}_CLIENT_KEY: {exc}"


def warnings(env_file: Path | None = None) -> list[str]:
    """Return a sentence for each variable that is deprecated, unused or looks misspelt."""
    environment = read_environment(env_file)
    given = environment.names()
    found = [
        f"{name} is no longer used: weather belongs to its own service"
        for name in _DEPRECATED
        if name in given
    ]
    known = _known_names()
    strangers = sorted(given - known - set(_DEPRECATED))
    matches = (
        (name, difflib.get_close_matches(name, known, n=1, cutoff=0.88)) for name in strangers
    )
    found += [
        f"{name} is not a setting; did you mean {match[0]}?" for name, match in matches if match
    ]
    return found + list(_without_tls(environment))


def _without_tls(environment: Environment) -> Iterator[str]:
    urls = {
        "HOME_ASSISTANT_CLIENT_CERT": environment.lookup(
            _names(HomeAssistantSettings.model_fields["url"].validation_alias)
        ),
        "INFLUXDB_CLIENT_CERT": environment.lookup(("INFLUXDB_URL",)),
    }
    for name, url in urls.items():
        if url and environment.lookup((name,)) and not url.startswith(("https:", "wss:")):
            yield f"{name} is not used: the address it is for does not start with https://"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One setting as a person meets it."""

    names: tuple[str, ...]
    """The first one set in the environment wins."""
    default: str | None
    """As it would stand in the environment; empty for unset, None when one must be given."""
    description: str


def variables() -> list[Variable]:
    """Return every setting, in the order of this file; the file of a secret comes after it."""
    return [
        variable
        for section in _sections().values()
        for field in section.model_fields.values()
        for variable in _variables_of(field)
    ]


def _variables_of(field: FieldInfo) -> Iterator[Variable]:
    names = _names(field.validation_alias)
    yield Variable(
        names=names,
        default=None if field.is_required() else _as_text(field.default),
        description=field.description or "",
    )
    if _is_secret(field):
        yield Variable(
            names=tuple(name + _FILE for name in names),
            default="",
            description=f"A file that holds {names[0]}, for example a mounted secret",
        )


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


def _names(alias: object) -> tuple[str, ...]:
    if isinstance(alias, AliasChoices):
        return tuple(str(choice) for choice in alias.choices)
    return (str(alias),)


def _refused(exc: ValidationError) -> dict[str, str]:
    """Return what is wrong, by the first name of the variable."""
    found = {}
    for error in exc.errors(include_input=False, include_url=False):
        what = error["msg"].removeprefix("Value error, ")
        if error["type"] == "missing":
            what = "is missing"
        elif what[:2].istitle():  # pydantic's sentences; ours may begin with a variable's name
            what = what[:1].lower() + what[1:]
        found[str(error["loc"][0])] = what
    return found


def _sentences(section: type[_Section], unusable: Mapping[str, str]) -> Iterable[str]:
    for field in section.model_fields.values():
        names = _names(field.validation_alias)
        if (what := unusable.get(names[0])) is not None:
            yield f"{' or '.join(names)}: {what}. {field.description}"
