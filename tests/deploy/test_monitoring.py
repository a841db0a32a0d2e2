"""The alert rules and the board are well formed, and name only metrics that a worker has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
from ruamel.yaml import YAML

from stepfleet.embedded.memory import memory_fleet
from stepfleet.telemetry.metrics import Metrics

WORKERS = Path(__file__).parents[2] / "workers"
RULES = WORKERS / "prometheus" / "rules.yml"
BOARD = WORKERS / "grafana" / "stepfleet.json"

#: Labels that Prometheus itself adds, and those of histograms.
OTHERS = {"instance", "job", "le", "version"}
LABELS = {"namespace", "workflow", "step"} | OTHERS
DURATION = re.compile(r"\d+(s|m|h)")


def series() -> set[str]:
    """Returns the names under which a worker's figures are stored."""
    found: set[str] = set()
    for metric in Metrics(memory_fleet()).registry.collect():
        match metric.type:
            case "counter":
                found.add(f"{metric.name}_total")
            case "histogram":
                found |= {f"{metric.name}_{end}" for end in ("bucket", "count", "sum")}
            case _:
                found.add(metric.name)
    return found


def rules() -> list[dict[str, Any]]:
    (group,) = YAML(typ="safe").load(RULES)["groups"]
    return group["rules"]


def board() -> dict[str, Any]:
    return json.loads(BOARD.read_text())


def expressions() -> list[str]:
    of_panels = [target["expr"] for panel in board()["panels"] for target in panel["targets"]]
    return [rule["expr"] for rule in rules()] + of_panels


def check_expression(text: str) -> set[str]:
    """Returns the metrics of a PromQL expression; every metric and label in it is one that there is."""
    metrics: set[str] = set()
    labels: set[str] = set()

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.MatrixSelector):
            node = node.vector_selector
        if isinstance(node, promql_parser.VectorSelector):
            metrics.add(node.name or "")
            labels.update(matcher.name for matcher in node.matchers.matchers)
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            labels.update(node.modifier.labels)

    promql_parser.walk(promql_parser.parse(text), visit)
    assert metrics, text
    unknown = (metrics - series()) | (labels - LABELS)
    assert not unknown, f"{unknown} in {text}"
    return metrics


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_names_metrics_and_labels_that_are_there(expression: str) -> None:
    check_expression(expression)


@pytest.mark.parametrize(
    "wrong",
    [
        "max(workflow_queue_dept) > 1",
        "sum(rate(workflow_steps_failed_total[5x]))",
        "max by (run_id) (workflow_queue_depth)",
        "max(workflow_queue_depth",
        "max(workflow_queue_depth) by workflow",
        "sum(rate(workflow_steps_failed_total))",
        "rat(workflow_steps_failed_total[5m])",
    ],
)
def test_a_wrong_expression_is_found(wrong: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check_expression(wrong)


def test_promtool_takes_the_rules() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:  # Debian: prometheus
        assert all(promql_parser.parse(rule["expr"]) for rule in rules())
        return
    done = subprocess.run(
        [promtool, "check", "rules", RULES], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert f"SUCCESS: {len(rules())} rules found" in done.stdout


def test_rules_have_what_prometheus_wants() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) > 5
    for rule in rules():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}, rule
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert DURATION.fullmatch(rule.get("for", "1m"))
        used = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        grouped = re.search(r"by \(([^)]*)\)", rule["expr"])
        kept = set(grouped[1].split(", ")) if grouped else LABELS
        assert used <= kept, f"{rule['alert']} shows labels that its expression drops"


def test_the_board_has_what_grafana_wants() -> None:
    panels = board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert [target["refId"] for target in panel["targets"]]
    variables = {one["name"] for one in board()["templating"]["list"]}
    used = set(re.findall(r"\$(\w+)", " ".join(expressions()))) - {"labels", "value"}
    assert used <= variables


def test_every_metric_is_on_the_board_or_in_a_rule() -> None:
    shown = set[str]().union(*map(check_expression, expressions()))
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in series()}
    assert not {name for name in families if not any(s.startswith(name) for s in shown)}
