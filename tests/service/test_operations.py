"""docs/OPERATIONS.md, the alerts and the dashboards match the exported metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from simulator.fake_home_assistant import FakeHomeAssistant
from tests.fakes.still_house import StillHouse
from tests.service.process import ROOT, service

DOCUMENT = (ROOT / "docs/OPERATIONS.md").read_text()
ALERTS = ROOT / "docker/prometheus/alerts.yml"
HEALTH_DASHBOARD = ROOT / "docker/grafana/dashboards/service-health.json"
SCRAPED = frozenset({"instance", "job"})
"""Labels that Prometheus itself adds."""

_SELECTOR = re.compile(r"\b((?:ingest|http)_\w+|up)\b(?:\{([^}]*)\})?")
_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_GROUPING = re.compile(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)")
_SHOWN_LABEL = re.compile(r"\$labels\.(\w+)|\{\{\s*(\w+)\s*\}\}")


@dataclass(frozen=True, slots=True)
class Exported:
    """The type and the labels of an exported metric."""

    kind: str
    labels: frozenset[str]


def exported(text: str) -> dict[str, Exported]:
    """Return the metrics of an exposition by the name used in queries."""
    found = {}
    for family in text_string_to_metric_families(text):
        if family.name.endswith("_created"):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[name] = Exported(family.type, frozenset(labels))
    return found


def rows(head: str) -> list[list[str]]:
    """Return the cells of the document's table whose header begins with `head`."""
    _, _, rest = DOCUMENT.partition(f"\n| {head}")
    lines = rest.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def codes(cell: str) -> list[str]:
    """Return the texts in backquotes."""
    return re.findall(r"`([^`]+)`", cell)


def unknown(expression: str, known: Mapping[str, Exported]) -> Iterator[str]:
    """Yield the metrics and labels of a query that are not exported."""
    queried: set[str] = set()
    labels = set(SCRAPED)
    for name, matchers in _SELECTOR.findall(expression):
        metric = known.get(re.sub(r"_(bucket|sum|count)$", "", name)) or known.get(name)
        if metric is None and name != "up":
            yield name
            continue
        of_metric = SCRAPED | (metric.labels | {"le"} if metric else set())
        labels |= of_metric
        queried |= {f"{name}{{{label}}}" for label in _LABEL.findall(matchers)} - {
            f"{name}{{{label}}}" for label in of_metric
        }
    grouped = {
        label.strip() for group in _GROUPING.findall(expression) for label in group.split(",")
    }
    yield from queried | (grouped - labels - {""})


@pytest.fixture
async def known(
    tmp_path: Path,
    environment: dict[str, str],
    home_assistant: FakeHomeAssistant,
    house: StillHouse,
) -> dict[str, Exported]:
    """Return the metrics of a service with every problem that adds a metric."""
    assert home_assistant.url
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/broken_transform.py").write_text(
        "def fails(event):\n    raise ValueError\n"
    )
    degraded = {
        **environment,
        "DATA_API_URL": "http://127.0.0.1:9",
        "HOMEIQ_SHARED_PATH": str(tmp_path / "shared"),
        "INGEST_TRANSFORMS": "broken_transform:fails",
        "BATCH_TIMEOUT": "0.05",
    }
    async with service(tmp_path, degraded) as running:
        await running.until("/health", lambda health: health["subscription"]["is_subscribed"])
        house.set_state("sensor.a", "1")
        await running.until("/health", lambda health: health["sinks"][0]["points_written"] == 1)
        await running.until("/health", lambda health: health["discovery"]["last_refresh"])
        text = await running.text("/metrics")
    return exported(text)


async def test_every_metric_is_documented_and_every_documented_one_is_exported(
    known: dict[str, Exported],
) -> None:
    """With the same type and labels."""
    documented = {
        codes(name)[0]: Exported(kind, frozenset(codes(labels)))
        for name, kind, _, labels, *_ in rows("name | type")
    }

    assert documented == known


def test_every_documented_metric_has_a_unit_and_a_meaning() -> None:
    """In the table of docs/OPERATIONS.md."""
    assert [row[0] for row in rows("name | type") if not (row[2] and row[4])] == []


def test_every_alert_is_documented_with_its_severity_and_what_to_do() -> None:
    """In the order of the file."""
    documented = [
        (codes(name)[0], severity) for name, severity, advice in rows("alert") if len(advice) > 20
    ]

    assert documented == [(rule.alert, rule.labels["severity"]) for rule in alert_rules()]


async def test_alerts_and_panels_query_only_exported_metrics(known: dict[str, Exported]) -> None:
    """A misspelt metric or label never fires an alert and draws an empty panel."""
    expressions = {f"alert {rule.alert}": rule.expr for rule in alert_rules()}
    expressions |= panel_expressions()

    wrong = {
        where: found for where, expr in expressions.items() if (found := [*unknown(expr, known)])
    }
    assert len(expressions) > 40
    assert wrong == {}


async def test_alert_texts_use_only_labels_of_their_metrics(known: dict[str, Exported]) -> None:
    """A missing label leaves a hole in the sentence."""
    wrong = []
    for rule in alert_rules():
        names = [name for name, _ in _SELECTOR.findall(rule.expr)]
        available = SCRAPED.union(*(known[name].labels for name in names if name in known))
        texts = " ".join(rule.annotations.values())
        shown = {label for label, _ in _SHOWN_LABEL.findall(texts) if label}
        wrong += [(rule.alert, label) for label in shown - available]

    assert wrong == []


def test_a_misspelt_query_is_detected() -> None:
    """Otherwise the tests above could not fail."""
    known = {"ingest_gaps": Exported("gauge", frozenset({"state"}))}

    assert [*unknown('sum by (instance) (ingest_gaps{state="open",job="x"})', known)] == []
    assert [*unknown("ingest_gap", known)] == ["ingest_gap"]
    assert [*unknown('ingest_gaps{stat="open"}', known)] == ["ingest_gaps{stat}"]
    assert [*unknown("sum by (sink) (ingest_gaps)", known)] == ["sink"]


class Rule(msgspec.Struct):
    """One alert of alerts.yml."""

    alert: str
    expr: str
    labels: dict[str, str]
    annotations: dict[str, str]


def alert_rules() -> list[Rule]:
    """Return the rules of alerts.yml."""
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return msgspec.convert(group["rules"], list[Rule])


def panel_expressions() -> dict[str, str]:
    """Return every Prometheus query of the dashboard, by its panel."""
    dashboard = json.loads(HEALTH_DASHBOARD.read_text())
    return {
        f"panel {panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    }
