"""Dashboards, alerts and documents agree with the one list of metrics, and the files in the repository with their generators."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import pytest

from k8s.generate.__main__ import main
from k8s.generate.alerts import ALERTS
from k8s.generate.boards import BOARDS
from k8s.generate.dashboards import encode
from k8s.generate.expressions import series
from trainer.metrics import METRICS

K8S = Path(__file__).parents[2] / "k8s"
NAME = re.compile(r"videomar_[a-z_]+")
PANELS = [panel for board in BOARDS for panel in board.panels]
ON_BOARDS = {name for panel in PANELS for expression, _ in panel.queries for name in NAME.findall(expression)}
DECLARED = {metric.name for metric in METRICS}


def test_every_declared_metric_is_on_a_dashboard_and_nothing_else_is() -> None:
    assert ON_BOARDS == DECLARED


def test_every_metric_of_an_alert_is_declared() -> None:
    assert {name for alert in ALERTS for name in NAME.findall(alert.expression)} <= DECLARED
    with pytest.raises(KeyError):
        series("made_up")


def test_every_panel_has_a_description_and_a_unit() -> None:
    for panel in PANELS:
        assert panel.description.endswith("."), panel.title
        assert panel.unit
        assert panel.queries


def test_the_json_is_grafanas_with_its_variables_and_a_grid_without_holes() -> None:
    for board in BOARDS:
        made = json.loads(encode(board))
        assert made["uid"] == f"videomar-{board.name}"
        assert [variable["name"] for variable in made["templating"]["list"]] == ["datasource", "namespace", "run", "rank"]
        places = [panel["gridPos"] for panel in made["panels"]]
        assert all(place["x"] + place["w"] <= 24 for place in places)
        cells = [
            (x, y)
            for place in places
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        assert len(set(cells)) == len(cells)
        assert all(panel["fieldConfig"]["defaults"]["unit"] and panel["description"] for panel in made["panels"])


def test_the_generated_files_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_every_alert_has_its_line_in_the_runbook() -> None:
    readme = (K8S / "README.md").read_text()
    for alert in ALERTS:
        assert f"#### {alert.name}\n" in readme


def test_the_generators_import_nothing_of_the_project_but_the_list_of_metrics() -> None:
    allowed = {"__future__", "k8s", "grafana_foundation_sdk", "yaml"} | sys.stdlib_module_names
    for path in (K8S / "generate").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert all(name == "trainer.metrics" or str(name).partition(".")[0] in allowed for name in names), path.name
