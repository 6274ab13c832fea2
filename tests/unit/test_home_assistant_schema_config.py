"""INFLUXDB_SCHEMA_CONFIG: what is read, and what is refused with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.runtime.errors import SettingsError
from app.schema.home_assistant_config import load_options
from app.schema.home_assistant_options import Options


def _write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path = path.with_name(f"{path.name}.yaml")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


def _load(source: object) -> Options:
    return load_options(str(source), text="v2")[0]


@pytest.mark.parametrize(
    "source", ["influxdb:\n  tags: {a: 1}", "tags: {a: 1}", "{influxdb: {tags: {a: 1}}}"]
)
def test_yaml_may_have_the_name_of_the_section_or_not(source: str) -> None:
    """The setting itself holds it."""
    assert _load(source).tags == {"a": "1"}


@pytest.mark.parametrize(
    "source", ["[a, b]", "- host: x\n- tags: {}", "influxdb: [a]"], ids=["flow", "block", "section"]
)
def test_a_list_is_refused_as_a_list_and_not_as_a_path(source: str) -> None:
    """The message says what is wrong with it."""
    with pytest.raises(SettingsError, match="influxdb: must be a mapping, and is a list"):
        _load(source)


@pytest.mark.parametrize("source", [None, "influxdb:", "influxdb: {}"])
def test_without_options_home_assistants_defaults_are_used(source: str | None) -> None:
    """An empty section is one."""
    assert load_options(source, text="v1") == (Options(), [])


def test_a_file_and_a_folder_are_read(tmp_path: Path) -> None:
    """Tags outside the section, and what they name, do not matter."""
    _write(
        tmp_path,
        configuration="automation: !include missing.yaml\nx: !foo bar\ninfluxdb: !include i.yaml\n",
        i="precision: s\n",
    )

    found = {_load(tmp_path / name).precision for name in ("", "configuration.yaml", "i.yaml")}

    assert found == {"s"}


def test_includes_and_secrets_are_resolved_as_by_home_assistant(tmp_path: Path) -> None:
    """Hidden files, `secrets.yaml` and empty files are left out of folders."""
    _write(
        tmp_path,
        configuration=(
            "influxdb:\n"
            "  default_measurement: !secret measurement\n"
            "  tags: !include_dir_merge_named tags\n"
            "  tags_attributes: !include_dir_merge_list lists\n"
            "  component_config_domain: !include_dir_named domains\n"
            "  include:\n"
            "    domains: !include_dir_list names\n"
        ),
        secrets="measurement: 5\n",
        tags__a="a: 1\nb: !secret measurement\n",
        tags__b="b: 2\n",
        lists__a="[x, y]",
        lists__b="not: a list",
        domains__light="ignore_attributes: icon",
        domains__sensor="",
        names__a="light",
        names__b="",
        names__secrets="measurement: other",
    )
    (tmp_path / "names/.hidden.yaml").write_text("hidden")

    options = _load(tmp_path)

    assert options.default_measurement == "5"
    assert options.tags == {"a": "1", "b": "2"}
    assert options.tags_attributes == ["x", "y"]
    assert options.component_config_domain["light"].ignore_attributes == ["icon"]
    assert options.component_config_domain["sensor"].ignore_attributes == []
    assert options.include.domains == ["light"]


def test_the_section_may_stand_in_a_package(tmp_path: Path) -> None:
    """Only once: Home Assistant would merge two, and then it is unclear which was meant."""
    main = "homeassistant:\n  packages: !include_dir_named packages\n"
    _write(tmp_path, configuration=main, packages__database="influxdb:\n  precision: ms\n")
    assert _load(tmp_path).precision == "ms"

    _write(tmp_path, packages__other="influxdb:\n  precision: s\n")
    with pytest.raises(SettingsError, match=r"several places: .*database.yaml:2, .*other.yaml:2"):
        _load(tmp_path)


def test_connection_keys_are_listed_and_not_used(tmp_path: Path) -> None:
    """Their secrets need not be there; a value that is there must be one."""
    source = _write(
        tmp_path, i="api_version: 2\nhost: h\ntoken: !secret t\norganization: !secret o\nssl: on\n"
    )

    options, ignored = load_options(str(source / "i.yaml"), text="v2")

    assert options == Options()
    assert ignored == ["api_version", "host", "organization", "ssl", "token"]


_INVALID = [
    ("tags:\n  a:", ":2: influxdb.tags.a must be text"),
    ("tags: [a]", ":1: influxdb.tags must be a mapping"),
    ("tags_attribute: a", ":1: influxdb.tags_attribute is not an option"),
    ("measurement_attr: unit", ":1: influxdb.measurement_attr must be 'unit_of_measurement'"),
    ("override_measurement:", ":1: influxdb.override_measurement must be text"),
    ("ignore_attributes:\n- a\n- [b]", ":3: influxdb.ignore_attributes.1 must be text"),
    ("component_config:\n  a: {}", ":2: influxdb.component_config.a 'a' is not an entity id"),
    ("component_config:\n  Sensor.A:", ":2: influxdb.component_config.Sensor.A must be a mapping"),
    ("component_config_glob:\n  a:\n    override: x", ":3: influxdb.component_config_glob.a.over"),
    ("include:", ":1: influxdb.include must be a mapping"),
    ("include:\n  entities:", ":2: influxdb.include.entities must be text or a list"),
    ("exclude:\n  entities: light.a, light", ":2: influxdb.exclude.entities.1 'light' is not an"),
    ("precision: n", ":1: influxdb.precision must be 'ms', 's', 'us' or 'ns'"),
    ("precision:", ":1: influxdb.precision must be 'ms', 's', 'us' or 'ns'"),
    ("tags:\n  day: 2026-13-45", ":2: is not a valid timestamp; quote it if it is text"),
    ("tags:\n  day: !!timestamp x", ":2: is not a valid timestamp"),
    ("tags: {a: 0b_}", ":1: is not a valid int"),
    ("tags: {a: !!bool maybe}", ":1: is not a valid bool"),
    ("api_version: 3", ":1: influxdb.api_version must be 1 or 2"),
    ("port: 0", ":1: influxdb.port must be a port"),
    ("max_retries: -1", ":1: influxdb.max_retries must not be negative"),
    ("ssl: maybe", ":1: influxdb.ssl must be true or false"),
    ("username: a", ":1: influxdb.username needs password as well"),
    ("token: a\norganization: b", ":1: influxdb.token is only allowed when api_version is 2"),
    ("api_version: 2", ":1: influxdb.api_version needs token and bucket when it is 2"),
    ("tags: [1", ": expected ',' or ']'"),
    ("a: &a [*a]", ":1: contains itself"),
    ("tags: !secret x", ":1: !secret needs a file or a folder"),
    ("tags: !!python/name:os.system", ":1: could not determine a constructor for the tag"),
]


@pytest.mark.parametrize(("source", "sentence"), _INVALID, ids=[case[0] for case in _INVALID])
def test_what_home_assistant_refuses_is_refused_with_its_place(source: str, sentence: str) -> None:
    """The line and the key are named."""
    with pytest.raises(SettingsError) as caught:
        _load(source)

    assert str(caught.value).startswith("INFLUXDB_SCHEMA_CONFIG: INFLUXDB_SCHEMA_CONFIG:")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("influxdb: !include missing.yaml", "configuration.yaml:1: .*missing.yaml cannot be read"),
        ("influxdb: !include configuration.yaml", "nested too deep, or includes itself"),
        ("influxdb:\n  tags: !secret x", "configuration.yaml:2: 'x' is in no secrets.yaml"),
        ("influxdb:\n  tags: !env_var HOME", "configuration.yaml:2: !env_var cannot be used here"),
        ("homeassistant:", "configuration.yaml:1: has no influxdb:"),
        ("influxdb: text", "configuration.yaml:1: influxdb: must be a mapping"),
        ("influxdb:\n  unknown: 1", "configuration.yaml:2: influxdb.unknown is not an option"),
    ],
)
def test_an_unusable_file_is_refused_with_its_place(
    tmp_path: Path, text: str, sentence: str
) -> None:
    """The file with the fault, not the one that includes it."""
    with pytest.raises(SettingsError, match=sentence):
        _load(_write(tmp_path, configuration=text))


def test_a_missing_file_is_named() -> None:
    """A path is no YAML section."""
    with pytest.raises(SettingsError, match=r"/no/such\.yaml cannot be read"):
        _load("/no/such.yaml")


@pytest.mark.parametrize("precision", ["us", "ns"])
def test_a_precision_that_stops_home_assistant_is_refused_for_influxdb_1(precision: str) -> None:
    """There it writes nothing at all."""
    assert _load(f"precision: {precision}").precision == precision

    with pytest.raises(SettingsError, match="writes nothing to InfluxDB 1"):
        load_options(f"precision: {precision}", text="v1")
