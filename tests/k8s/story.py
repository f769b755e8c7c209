"""A run's life under a real Prometheus and Alertmanager, started by the rendered RayJob's own command through Ray's Jobs API.

It trains, stalls, is submitted a second time, loses the process that steers it, goes on by itself and ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from k8s.generate import alerts
from k8s.generate.panels import Panel
from tests.e2e.job import REPOSITORY, SMALL, lines
from tests.ports import free_port
from trainer.config import load

from .matrix import RELEASE, objects
from .services import Prometheus, RayHead, prometheus, ray_head, wait_for

TOKEN = "canary-9f4c1e7b62d84a35"  # of Ray
SECRETS = {"AWS_SECRET_ACCESS_KEY": "canary-77b0e2d1c95a"}
SPEED = 1 / 40  # of the alerts' durations
STAGES = [
    {"name": "short", "frames": 5, "height": 32, "width": 32, "tokens_per_step": 256, "promotion": {"max_steps": 60}},
    {"name": "longer", "frames": 9, "height": 32, "width": 32, "tokens_per_step": 384, "promotion": {"max_steps": 12}},
]
STEPS = 72


@dataclass(frozen=True)
class Story:
    """What happened, and where it can be looked up while the fixture lives."""

    folder: Path
    run: Path
    prometheus: Prometheus
    start: float
    end: float
    attached: str  # the log of the job that was submitted while the run lived
    attached_status: str
    alerted: set[str]
    status: str  # of the job that started it
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


@contextlib.contextmanager
def story(chart: Any, programs: tuple[str, str]) -> Iterator[Story]:
    """The whole story; its services live until the block ends. programs: paths of prometheus and alertmanager."""
    folder = Path(tempfile.mkdtemp(prefix="vm-", dir="/tmp"))  # short: Ray's sockets allow 107 bytes
    port, start = free_port(), time.time()
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
        yield play(job, ray, watching, folder, run, start)
    shutil.rmtree(folder, ignore_errors=True)


def play(job: dict[str, Any], ray: RayHead, watching: Prometheus, folder: Path, run: Path, start: float) -> Story:
    environment = yaml.safe_load(job["runtimeEnvYAML"])
    ray.submit(job["entrypoint"], environment, "first")
    wait_for(lambda: reached(run, 6), "step 6", 300)
    stopped = trainer_of(run, rank=1)
    os.kill(stopped, signal.SIGSTOP)  # a hung rank: its peer waits in a collective, nobody makes a step
    try:
        ray.submit(job["entrypoint"], environment, "second")
        wait_for(lambda: "attached" in ray.logs("second"), "the second job's word")
        wait_for(lambda: "VideomarNoProgress" in watching.firing(), "the alert")
        alerted = watching.firing()
    finally:
        with contextlib.suppress(ProcessLookupError):  # the run has ended it itself
            os.kill(stopped, signal.SIGCONT)
    stalled_at = len(lines(run / "metrics.jsonl"))
    wait_for(lambda: reached(run, stalled_at + 3), "steps after the stall")
    os.kill(owner(run), signal.SIGKILL)  # the run's controller
    for name in ("first", "second"):
        wait_for(lambda name=name: ended(ray, name), f"the {name} job's end", 300)
    log, attached = ray.logs("first"), ray.logs("second")
    return Story(folder, run, watching, start, time.time(), attached, ray.status("second"), alerted, ray.status("first"), log)


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
