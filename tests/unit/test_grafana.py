"""The dashboards of docker/grafana can be provisioned, and ask for what the schema has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import msgspec
import pytest
import yaml

GRAFANA = Path(__file__).parents[2] / "docker" / "grafana"
SCHEMA = (Path(__file__).parents[2] / "docs" / "SCHEMA.md").read_text()
BOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
HOME = GRAFANA / "dashboards" / "home-overview.json"

_WIDTH = 24
_OF_FLUX = {"_measurement", "_field", "_time", "_value"}
_COLUMN = re.compile(r"\br\.(\w+)")
_LISTED = re.compile(r"(?:columns|rowKey|columnKey): \[([^\]]*)\]")
_FIELD = re.compile(r'r\._field == "([^"]*)"')
_MEASUREMENT = re.compile(r'r\._measurement == "([^"]*)"')


class Place(msgspec.Struct, rename={"left": "x", "top": "y", "width": "w", "height": "h"}):
    """Where a panel lies, in columns and rows."""

    left: int
    top: int
    width: int
    height: int

    def overlaps(self, other: Place) -> bool:
        """Whether the two share a place."""
        return (
            self.left < other.left + other.width
            and other.left < self.left + self.width
            and self.top < other.top + other.height
            and other.top < self.top + self.height
        )


class Source(msgspec.Struct):
    """A data source, by its uid."""

    uid: str
    type: str


class Target(msgspec.Struct, rename={"ref_id": "refId"}):
    """One query of a panel."""

    ref_id: str
    datasource: Source
    query: str = ""
    expr: str = ""


class Panel(msgspec.Struct, rename={"place": "gridPos"}):
    """One panel."""

    id: int
    title: str
    type: str
    datasource: Source
    place: Place
    targets: list[Target]


class Variable(msgspec.Struct):
    """What a person chooses at the top."""

    name: str
    datasource: Source
    query: str | dict[str, str]


class Templating(msgspec.Struct, rename={"variables": "list"}):
    """The variables."""

    variables: list[Variable]


class Dashboard(msgspec.Struct):
    """What is looked at of a dashboard."""

    uid: str
    title: str
    panels: list[Panel]
    templating: Templating


def read(path: Path) -> Dashboard:
    """Return a dashboard."""
    return msgspec.json.decode(path.read_bytes(), type=Dashboard)


def schema_rows(head: str) -> set[str]:
    """Return what is in backquotes in the first column of a table of docs/SCHEMA.md."""
    _, _, rest = SCHEMA.partition(f"\n| {head} |")
    first_cells = (line.split("|")[1] for line in rest.split("\n\n")[0].splitlines()[2:])
    return {name for cell in first_cells for name in re.findall(r"`([^`]+)`", cell)}


def misfits(query: str) -> Iterator[str]:
    """Yield what a Flux query asks for that no point has."""
    tags, fields = schema_rows("tag"), schema_rows("field")
    columns = set(_COLUMN.findall(query))
    for names in _LISTED.findall(query):
        columns |= set(re.findall(r'"([^"]*)"', names))
    yield from sorted(columns - tags - _OF_FLUX)
    yield from sorted(set(_FIELD.findall(query)) - fields)
    if set(_MEASUREMENT.findall(query)) != {"home_assistant_events"}:
        yield "measurement"


def test_there_are_two_dashboards() -> None:
    """The tests below look at both."""
    assert [path.name for path in BOARDS] == ["home-overview.json", "service-health.json"]


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_ids_and_titles_of_panels_are_unique(path: Path) -> None:
    """Grafana would show one of two."""
    board = read(path)

    assert len({panel.id for panel in board.panels}) == len(board.panels)
    assert len({panel.title for panel in board.panels}) == len(board.panels)
    for panel in board.panels:
        assert len({target.ref_id for target in panel.targets}) == len(panel.targets) > 0


def test_dashboards_have_uids_of_their_own() -> None:
    """A link to one stays right when it is renamed."""
    assert len({read(path).uid for path in BOARDS}) == len(BOARDS)


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_panels_neither_overlap_nor_exceed_the_grid(path: Path) -> None:
    """Grafana would move them to an unexpected place."""
    places = [panel.place for panel in read(path).panels]

    assert [pair for pair in combinations(places, 2) if pair[0].overlaps(pair[1])] == []
    assert max(place.left + place.width for place in places) <= _WIDTH


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_the_first_row_of_a_dashboard_has_six_numbers(path: Path) -> None:
    """Six numbers, no curves; the service's first one is the status of /health."""
    first = [panel.type for panel in read(path).panels if panel.place.top == 0]

    assert first == ["stat"] * 6


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_every_data_source_is_provisioned(path: Path) -> None:
    """By uid and type: there is nothing to choose after the start."""
    file = GRAFANA / "provisioning" / "datasources" / "datasources.yaml"
    there = {
        (each["uid"], each["type"]) for each in yaml.safe_load(file.read_text())["datasources"]
    }
    board = read(path)
    asked = [panel.datasource for panel in board.panels]
    asked += [target.datasource for panel in board.panels for target in panel.targets]
    asked += [variable.datasource for variable in board.templating.variables]

    assert {(source.uid, source.type) for source in asked} <= there


def test_the_dashboards_are_provisioned_from_a_folder() -> None:
    """The one that the compose file mounts."""
    file = GRAFANA / "provisioning" / "dashboards" / "dashboards.yaml"
    (provider,) = yaml.safe_load(file.read_text())["providers"]

    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"


def test_every_query_of_the_home_dashboard_uses_documented_tags_and_fields() -> None:
    """Its measurement, tags and fields are in docs/SCHEMA.md."""
    queries = {panel.title: target.query for panel in read(HOME).panels for target in panel.targets}

    assert len(queries) > 12
    assert {title: found for title, query in queries.items() if (found := [*misfits(query)])} == {}


def schema_collisions(query: str) -> Iterator[str]:
    """Yield what makes Flux put values of several types into one column.

    Fields have types of their own. A table that holds several of them is an error ("schema
    collision"), so they become columns before series are grouped.
    """
    before, pivot, _ = query.partition("pivot(")
    if pivot and re.search(r"\bgroup\(", before):
        yield "group() before pivot()"
    if not pivot and len(set(_FIELD.findall(query))) != 1 and "group(" in query:
        yield "group() of several fields"


def test_every_query_turns_fields_into_columns_before_it_groups() -> None:
    """In the dashboards and in the documentation."""
    queries = {panel.title: target.query for panel in read(HOME).panels for target in panel.targets}
    examples = re.findall(r"```flux\n(.*?)```", SCHEMA, re.DOTALL)
    queries |= {f"example {number}": text for number, text in enumerate(examples)}

    assert len(examples) > 3
    assert [name for name, query in queries.items() if [*schema_collisions(query)]] == []


def test_the_check_detects_a_query_that_groups_several_fields() -> None:
    """Otherwise the test above could not fail."""
    fields = 'filter(fn: (r) => r._field == "value" or r._field == "state_value")'

    assert [*schema_collisions(f"{fields} |> pivot() |> group()")] == []
    assert [*schema_collisions(f"{fields} |> group() |> pivot()")] == ["group() before pivot()"]
    assert [*schema_collisions(f"{fields} |> group()")] == ["group() of several fields"]


def test_every_variable_in_a_query_is_defined_by_its_dashboard() -> None:
    """Grafana leaves the others as they are."""
    for path in BOARDS:
        board = read(path)
        names = {variable.name for variable in board.templating.variables}
        texts = " ".join(
            text for panel in board.panels for target in panel.targets
            for text in (target.query, target.expr)
        )  # fmt: skip
        used = set(re.findall(r"\$\{?(\w+)", texts)) - {"__rate_interval"}
        assert used == names, path.name


def test_the_check_detects_a_query_for_an_unknown_field() -> None:
    """Otherwise the test above could not fail."""
    good = 'r._measurement == "home_assistant_events" and r._field == "value" and r.area_id == "x"'

    assert [*misfits(good)] == []
    assert [*misfits(good.replace("area_id", "area"))] == ["area"]
    assert [*misfits(good.replace('"value"', '"state"'))] == ["state"]
    assert [*misfits(good.replace("home_assistant", "home"))] == ["measurement"]
    assert [*misfits(good + ' |> group(columns: ["room"])')] == ["room"]


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_dashboard_files_have_the_format_of_grafanas_export(path: Path) -> None:
    """Two spaces, so that a change made in Grafana is a small one here."""
    text = path.read_text()

    assert json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n" == text
