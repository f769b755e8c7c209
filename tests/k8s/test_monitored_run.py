"""The rendered RayJob's own command on a local Ray, under a real Prometheus and Alertmanager: trained, stalled, killed, continued."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.generate import alerts
from k8s.generate.boards import BOARDS
from k8s.generate.panels import Panel
from tests.e2e.job import REPOSITORY, SMALL, lines
from trainer.config import load
from trainer.metrics import METRICS

from .matrix import RELEASE, objects
from .pictures import draw
from .services import Prometheus, RayHead, free_port, prometheus, ray_head, wait_for

TOKEN = "canary-9f4c1e7b62d84a35"  # of Ray
SECRETS = {"AWS_SECRET_ACCESS_KEY": "canary-77b0e2d1c95a"}
SPEED = 1 / 40  # of the alerts' durations
STAGES = [
    {"name": "short", "frames": 5, "height": 32, "width": 32, "tokens_per_step": 256, "promotion": {"max_steps": 60}},
    {"name": "longer", "frames": 9, "height": 32, "width": 32, "tokens_per_step": 384, "promotion": {"max_steps": 12}},
]
STEPS = 72
PANELS = [(board.name, panel) for board in BOARDS for panel in board.panels]


@dataclass(frozen=True)
class Story:
    """What happened, and where it can be looked up while the fixture lives."""

    folder: Path
    run: Path
    prometheus: Prometheus
    start: float
    end: float
    refused: str  # the log of the job that was submitted while the run lived
    refused_status: str
    alerted: set[str]
    status: str  # of the job that continued
    log: str


def values(folder: Path, port: int) -> dict[str, Any]:
    """The chart's values for this machine: only places differ from a cluster's."""
    recipe = load([*SMALL, f"curriculum.stages={json.dumps(STAGES)}", "train.commit_every=4"]).model_dump(mode="json")
    content = {key: recipe[key] for key in ("data", "train", "curriculum", "sample")}
    content["data"].pop("root")
    return {
        "image": {"home": str(REPOSITORY)},
        "run": {"content": content, "recipeFolder": str(folder / "recipe")},
        "storage": {"path": str(folder)},
        "pools": {"train": {"cpu": 1}},
        "monitoring": {"port": port},
    }


@pytest.fixture(scope="module")
def story(chart: Any, program: Callable[[str], str]) -> Iterator[Story]:
    programs = (program("prometheus"), program("prometheus-alertmanager"))
    folder = Path(tempfile.mkdtemp(prefix="vm-", dir="/tmp"))  # short: Ray's sockets allow 107 bytes
    port = free_port()
    rendered = objects(chart, values(folder, port))
    job = next(thing for thing in rendered if thing["kind"] == "RayJob")["spec"]
    recipe = next(thing for thing in rendered if thing["kind"] == "ConfigMap")["data"]["recipe.yaml"]
    (folder / "recipe").mkdir()
    (folder / "recipe" / "recipe.yaml").write_text(recipe)
    (folder / "ray").mkdir()
    run = folder / "runs" / RELEASE
    rules = alerts.rules(SPEED)
    with (
        ray_head(folder / "ray", TOKEN, SECRETS) as ray,
        prometheus(programs, folder, {"run": port, "ray": ray.metrics_port}, rules) as watching,
    ):
        start = time.time()
        yield play(job, ray, watching, folder, run, start)
    shutil.rmtree(folder, ignore_errors=True)


def play(job: dict[str, Any], ray: RayHead, watching: Prometheus, folder: Path, run: Path, start: float) -> Story:
    environment = yaml.safe_load(job["runtimeEnvYAML"])
    ray.submit(job["entrypoint"], environment, "first")
    wait_for(lambda: reached(run, 6), f"step 6: {ray.logs('first')}", 180)
    stopped = trainer_of(run, rank=1)
    os.kill(stopped, signal.SIGSTOP)  # a hung rank: its peer waits in a collective, nobody makes a step
    try:
        ray.submit(job["entrypoint"], environment, "second")
        wait_for(lambda: ended(ray, "second"), "the second job's refusal")
        wait_for(lambda: "VideomarNoProgress" in watching.firing(), "the alert")
        alerted = watching.firing()
    finally:
        os.kill(stopped, signal.SIGCONT)
    stalled_at = len(lines(run / "metrics.jsonl"))
    wait_for(lambda: reached(run, stalled_at + 3), "steps after the stall")
    os.kill(owner(run), signal.SIGKILL)  # the head's process that steers the run
    wait_for(lambda: ended(ray, "first"), "the first job's end")
    ray.submit(job["entrypoint"], environment, "third")
    wait_for(lambda: ended(ray, "third"), f"the third job's end: {run}", 240)
    log = ray.logs("third")
    return Story(
        folder,
        run,
        watching,
        start,
        time.time(),
        ray.logs("second"),
        ray.status("second"),
        alerted,
        ray.status("third"),
        ray.logs("first") + log,
    )


def reached(run: Path, step: int) -> bool:
    return any(line["step"] >= step for line in lines(run / "metrics.jsonl"))


def ended(ray: RayHead, submission: str) -> bool:
    return ray.status(submission) in ("SUCCEEDED", "FAILED", "STOPPED")


def owner(run: Path) -> int:
    """The process that steers the run."""
    newest = max((run / "lease").glob("[0-9]*.json"))
    return json.loads(newest.read_text())["pid"]


def trainer_of(run: Path, rank: int) -> int:
    """The process whose output is the newest log of a rank."""
    log = max((run / "logs").glob(f"generation-*-rank-{rank:05d}.log"))
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "fd" / "1").readlink() == log:
                return int(folder.name)
    raise AssertionError(f"nobody writes {log}")


def expressions(panel: Panel) -> list[str]:
    """A panel's queries with the dashboard's variables filled in."""
    filled = [("$__rate_interval", "10s"), ("$namespace", "local"), ("$run", RELEASE), ("$rank", ".*")]
    found = [expression for expression, _ in panel.queries]
    for variable, value in filled:
        found = [expression.replace(variable, value) for expression in found]
    return found


def test_the_jobs_own_command_trains_and_after_a_kill_continues(story: Story) -> None:
    assert story.status == "SUCCEEDED", story.log
    assert [line["step"] for line in lines(story.run / "metrics.jsonl")] == list(range(1, STEPS + 1))
    layouts = [event for event in lines(story.run / "events.jsonl") if event["event"] == "layout"]
    assert 0 < layouts[1]["step"] < STEPS  # it went on from a commit, not from the beginning


def test_a_job_submitted_while_the_run_lives_leaves_it_alone_and_says_why(story: Story) -> None:
    assert story.refused_status == "FAILED"
    assert re.search(r"is live in process \d+", story.refused)


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
    assert canary not in story.log + story.refused
    scraped = story.prometheus.range('{__name__=~"videomar_.*"}', story.start, story.end, 10)
    assert scraped
    assert canary not in json.dumps(scraped)
