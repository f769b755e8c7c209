"""The rendered RayJob's own command on a local Ray, under a real Prometheus and Alertmanager: trained, stalled, killed, continued."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from k8s.generate.boards import BOARDS
from k8s.generate.panels import Panel
from tests.e2e.job import lines
from trainer.metrics import METRICS

from .matrix import RELEASE
from .pictures import draw
from .story import SECRETS, STEPS, TOKEN, Story, expressions
from .story import story as told

pytestmark = pytest.mark.timeout(600)  # the story counts as the first test's
PANELS = [(board.name, panel) for board in BOARDS for panel in board.panels]


@pytest.fixture(scope="module")
def story(chart: Any, program: Callable[[str], str]) -> Iterator[Story]:
    with told(chart, (program("prometheus"), program("prometheus-alertmanager"))) as happened:
        yield happened


def test_the_jobs_own_command_trains_and_its_run_goes_on_when_its_controller_is_killed(story: Story) -> None:
    assert story.status == "SUCCEEDED", story.log
    assert [line["step"] for line in lines(story.run / "metrics.jsonl")] == list(range(1, STEPS + 1))
    layouts = [event for event in lines(story.run / "events.jsonl") if event["event"] == "layout"]
    assert 0 < layouts[1]["step"] < STEPS  # it went on from a commit, not from the beginning


def test_a_job_submitted_while_the_run_lives_follows_it_to_its_end(story: Story) -> None:
    assert story.attached_status == "SUCCEEDED", story.attached
    assert "the run is live: attached to it" in story.attached
    assert re.search(r"^report +\S+$", story.attached, re.MULTILINE)


def test_a_stalled_run_fires_its_alert_in_the_alertmanager(story: Story) -> None:
    assert "VideomarNoProgress" in story.alerted


@pytest.mark.parametrize(("board", "panel"), PANELS, ids=lambda part: part.title if isinstance(part, Panel) else part)
def test_every_query_parses_and_every_panel_but_a_gpus_has_data(story: Story, board: str, panel: Panel) -> None:
    for expression in expressions(panel):
        assert story.prometheus.formatted(expression)
        found = story.prometheus.range(expression, story.start, story.end)
        assert panel.gpu or any(series["values"] for series in found), expression


def test_every_declared_metric_was_scraped(story: Story) -> None:
    rare = {"videomar_series_dropped_total", "videomar_dataset_rejected_sources"}  # there is nothing to count
    for metric in METRICS:
        found = story.prometheus.range(f'{metric.name}{{run="{RELEASE}"}}', story.start, story.end)
        assert metric.name in rare or found, metric.name


def test_every_dashboard_can_be_drawn_from_what_was_scraped(story: Story, tmp_path: Path) -> None:
    for board in BOARDS:
        path = draw(board, story.prometheus, expressions, (story.start, story.end), tmp_path)
        assert 10_000 < path.stat().st_size < 300_000


@pytest.mark.parametrize("canary", [TOKEN, *SECRETS.values()])
def test_no_secret_of_the_jobs_environment_is_told_anywhere(story: Story, canary: str) -> None:
    files = [path for path in story.run.rglob("*") if path.is_file()]
    assert any(path.name == "config.yaml" for path in files)
    assert [path for path in files if canary.encode() in path.read_bytes()] == []
    assert canary not in story.log + story.attached
    scraped = story.prometheus.range('{__name__=~"videomar_.*"}', story.start, story.end, 10)
    assert scraped
    assert canary not in json.dumps(scraped)
