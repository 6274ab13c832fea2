"""The options of Home Assistant's `influxdb` integration, and what they say of an entity; pure.

Values are accepted, converted and refused as by Home Assistant 2026.11:
https://www.home-assistant.io/integrations/influxdb/
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from app.runtime.globs import glob_matcher

Precision: TypeAlias = Literal["ms", "s", "us", "ns"]
Path: TypeAlias = tuple[str | int, ...]
"""Keys and indexes that lead to a value below `influxdb:`."""

_ENTITY_ID = re.compile(r"(?!.+__)(?!_)[\da-z_]+(?<!_)\.(?!_)[\da-z_]+(?<!_)")
_BOOLEANS = frozenset({"1", "true", "yes", "on", "enable", "0", "false", "no", "off", "disable"})
_MAX_PORT = 65_535


class RefusedOption(NamedTuple):
    """Why Home Assistant would refuse an option."""

    path: Path
    sentence: str
    """Without the name of the option."""


class OptionsInvalid(ValueError):
    """Home Assistant would refuse the options."""

    def __init__(self, problems: list[RefusedOption]) -> None:
        """Store all reasons, in the order of the options."""
        super().__init__(f"{len(problems)} options cannot be used")
        self.problems = problems


def _text(value: object) -> str:
    if value is None or isinstance(value, list | dict):
        raise ValueError("must be text")
    return str(value)


def _given(value: object) -> object:
    if value is None:
        raise ValueError("must be 'ms', 's', 'us' or 'ns'")
    return value


def _listed(value: object) -> object:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _entity_id(value: object) -> str:
    text = _text(value).lower()
    if not _ENTITY_ID.fullmatch(text):
        raise ValueError(f"{text[:100]!r} is not an entity id")
    return text


def _entity_ids(value: object) -> object:
    if isinstance(value, str):
        return [name.strip() for name in value.split(",")]
    return list(value) if isinstance(value, dict) else value


def _boolean(value: object) -> bool:
    if isinstance(value, str) and value.lower().strip() in _BOOLEANS:
        return True  # it is not used
    if isinstance(value, int | float):
        return True
    raise ValueError("must be true or false")


def _whole_number(value: object) -> int:
    if isinstance(value, str | int | float):
        try:
            return int(value)
        except (ValueError, OverflowError):
            pass
    raise ValueError("must be a whole number")


def _retries(value: object) -> int:
    number = _whole_number(value)
    if number < 0:
        raise ValueError("must not be negative")
    return number


def _port(value: object) -> int:
    fraction = isinstance(value, float) and not value.is_integer()
    if isinstance(value, bool) or fraction or not 1 <= _whole_number(value) <= _MAX_PORT:
        raise ValueError(f"must be a port, 1 to {_MAX_PORT}")
    return _whole_number(value)


def _api_version(value: object) -> str:
    if str(value) not in {"1", "2"}:
        raise ValueError("must be 1 or 2")
    return str(value)


_Text: TypeAlias = Annotated[str, BeforeValidator(_text)]
_Texts: TypeAlias = Annotated[list[_Text], BeforeValidator(_listed)]
_EntityId: TypeAlias = Annotated[str, BeforeValidator(_entity_id)]
_EntityIds: TypeAlias = Annotated[list[_EntityId], BeforeValidator(_entity_ids)]
_Boolean: TypeAlias = Annotated[bool, BeforeValidator(_boolean)]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FilterRules(_Block):
    """`include` or `exclude`."""

    domains: _Texts = []
    entity_globs: _Texts = []
    entities: _EntityIds = []


class Customization(_Block):
    """What `component_config` and its two relatives say of some entities."""

    override_measurement: _Text = ""
    ignore_attributes: _Texts = []


class Options(_Block):
    """The options that decide what is written."""

    measurement_attr: Literal["unit_of_measurement", "domain__device_class", "entity_id"] = (
        "unit_of_measurement"
    )
    default_measurement: _Text = ""
    override_measurement: _Text = ""
    tags: dict[_Text, _Text] = {}
    tags_attributes: _Texts = []
    ignore_attributes: _Texts = []
    component_config: dict[_EntityId, Customization] = {}
    component_config_domain: dict[_Text, Customization] = {}
    component_config_glob: dict[_Text, Customization] = {}
    include: FilterRules = FilterRules()
    exclude: FilterRules = FilterRules()
    precision: Annotated[Precision | None, BeforeValidator(_given)] = None

    def with_instance(self, name: str | None) -> Options:
        """Return the options with a static tag `instance`, unless `tags` has one."""
        tags = {"instance": name, **self.tags} if name else self.tags
        return self.model_copy(update={"tags": tags})


class _Connection(_Block):
    """The options that say where and how Home Assistant sends; nothing here uses them."""

    api_version: Annotated[str, BeforeValidator(_api_version)] = "1"
    host: _Text = ""
    path: _Text = ""
    port: Annotated[int, BeforeValidator(_port)] = 1
    ssl: _Boolean = True
    verify_ssl: _Boolean = True
    ssl_ca_cert: object = None
    """A file of Home Assistant's machine."""
    username: _Text = ""
    password: _Text = ""
    database: _Text = ""
    token: _Text = ""
    organization: _Text = ""
    bucket: _Text = ""
    max_retries: Annotated[int, BeforeValidator(_retries)] = 0


CONNECTION_KEYS = frozenset(_Connection.model_fields)
"""Options that are checked and not used: this service has its own settings for them."""


def read_options(block: Mapping[Any, object], *, unread: frozenset[str]) -> Options:
    """Return the options in what stands below `influxdb:`.

    `unread`: connection keys whose values are not known, such as secrets.

    Raises:
        OptionsInvalid: Home Assistant would refuse them.
    """
    connection = {key: value for key, value in block.items() if key in CONNECTION_KEYS - unread}
    others = {key: value for key, value in block.items() if key not in CONNECTION_KEYS}
    problems = [*_problems(_Connection, connection), *_problems(Options, others)]
    if not problems:
        problems = [*_contradictions(block, unread=unread)]
    if problems:
        raise OptionsInvalid(problems)
    return Options.model_validate(others)


def _problems(model: type[_Block], values: object) -> Iterator[RefusedOption]:
    try:
        model.model_validate(values)
    except ValidationError as exc:
        for error in exc.errors(include_url=False):
            path = tuple(part for part in error["loc"] if part != "[key]")
            yield RefusedOption(path, _sentence(error["type"], error["msg"]))


def _sentence(kind: str, message: str) -> str:
    match kind:
        case "extra_forbidden" | "invalid_key":
            return "is not an option of Home Assistant's influxdb integration"
        case "dict_type" | "model_type" | "model_attributes_type":
            return "must be a mapping"
        case "list_type":
            return "must be text or a list"
        case _:
            return message.removeprefix("Value error, ").replace("Input should be", "must be")


def _contradictions(
    block: Mapping[Any, object], *, unread: frozenset[str]
) -> Iterator[RefusedOption]:
    keys = block.keys() | unread
    for pair in (("username", "password"), ("token", "organization")):
        for key, other in (pair, pair[::-1]):
            if key in keys and other not in keys:
                yield RefusedOption((key,), f"needs {other} as well")
    if "api_version" in unread:
        return
    if str(block.get("api_version", "1")) == "1":
        if "token" in keys:
            yield RefusedOption(("token",), "is only allowed when api_version is 2")
    elif "token" not in keys:
        yield RefusedOption(("api_version",), "needs token and bucket when it is 2")
    elif "username" in keys:
        yield RefusedOption(("username",), "is only allowed when api_version is 1")


class EntityOptions(NamedTuple):
    """What the options say of one entity."""

    override_measurement: str
    """Empty without one."""
    ignored: frozenset[str]
    """Names of attributes."""


def entity_options(options: Options) -> Callable[[str], EntityOptions]:
    """Return a function from entity id to what applies to it.

    A later level replaces whole keys of an earlier one: domain, globs in their order, entity.
    """
    globs = [(glob_matcher([glob]), level) for glob, level in options.component_config_glob.items()]

    def of(entity_id: str) -> EntityOptions:
        levels = [
            options.component_config_domain.get(entity_id.partition(".")[0]),
            *(level for matches, level in globs if matches(entity_id)),
            options.component_config.get(entity_id),
        ]
        found: dict[str, object] = {}
        for level in levels:
            if level is not None:
                found.update(level.model_dump(exclude_unset=True))
        merged = Customization.model_validate(found)
        return EntityOptions(
            merged.override_measurement or options.override_measurement,
            frozenset((*merged.ignore_attributes, *options.ignore_attributes)),
        )

    return of


class _Side:
    """One side of the filter, compiled."""

    def __init__(self, rules: FilterRules) -> None:
        self.entities = frozenset(rules.entities)
        self.domains = frozenset(rules.domains)
        self.matches_glob = glob_matcher(rules.entity_globs) if rules.entity_globs else _never
        self.is_wide = bool(rules.domains or rules.entity_globs)
        """Whether it names more than single entities."""
        self.is_empty = not (self.is_wide or self.entities)

    def has(self, entity_id: str) -> bool:
        """Return whether any rule matches."""
        return (
            entity_id in self.entities
            or entity_id.partition(".")[0] in self.domains
            or bool(self.matches_glob(entity_id))
        )


def _never(_: str) -> None:
    return None


def selection(options: Options) -> Callable[[str], bool]:
    """Return a function that says whether an entity is written."""
    include, exclude = _Side(options.include), _Side(options.exclude)

    def selects_widely(entity_id: str) -> bool:
        # Excluded domains play no part: an included entity or glob is more specific, and an
        # included domain is as specific.
        if entity_id in include.entities:
            return True
        if entity_id in exclude.entities:
            return False
        if include.matches_glob(entity_id):
            return True
        is_in_domain = entity_id.partition(".")[0] in include.domains
        return is_in_domain and not exclude.matches_glob(entity_id)

    if include.is_empty:
        return lambda entity_id: not exclude.has(entity_id)
    if exclude.is_empty:
        return include.has
    if include.is_wide:
        return selects_widely
    if exclude.is_wide:
        return lambda entity_id: entity_id in include.entities or not exclude.has(entity_id)
    return lambda entity_id: entity_id in include.entities
