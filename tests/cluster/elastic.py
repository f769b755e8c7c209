"""Runs that meet faults, for the tests and benchmarks of them: started on hosts of their own as a user starts them, and compared with one
that met none."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.hosts import Hosts
from cluster.verdict import Comparison
from cluster.verdict import compare as verdict
from data_pipeline.loader import open_dataset
from tests.e2e.job import MAIN, SMALL
from trainer.config import load
from trainer.events import read_events
from trainer.metrics import read_metrics

PATIENCE = 240.0
LENGTHS = {"short": 40, "longer": 200, "larger": 40}


def recipe(folder: Path, name: str, lengths: dict[str, int] = LENGTHS) -> list[str]:
    """The small toy recipe with stages so many steps long."""
    shapes = {"short": (5, 32, 256), "longer": (9, 32, 384), "larger": (9, 48, 864)}  # frames, pixels, tokens: 8 clips
    stages: list[dict[str, Any]] = [
        {"name": stage, "frames": frames, "height": pixels, "width": pixels, "tokens_per_step": tokens}
        for stage, (frames, pixels, tokens) in shapes.items()
    ]
    for stage in stages:
        stage["promotion"] = {"max_steps": lengths[stage["name"]]}
    # Passes of 4 clips with one worker and with two: the same sums, to the bit, so rounding does not grow into another run.
    own = ["train.micro_batch=4", "train.commit_every=10", "train.evaluate_every=20", f"run.root={folder / 'runs'}", f"run.name={name}"]
    return [*SMALL[:-1], *own, f"curriculum.stages={json.dumps(stages)}"]


def start(arguments: list[str], hosts: Hosts) -> subprocess.Popen[str]:
    """`train` on the hosts' Ray."""
    command = [sys.executable, str(MAIN), "train", f"cluster.address={hosts.address}", *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=hosts.environment, start_new_session=True, **pipes)


def finish(process: subprocess.Popen[str], seconds: float = PATIENCE) -> str:
    """What a run that must succeed, within so long, has printed."""
    out, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, out
    return out


def stepped(run: Path, stage: str, steps: int) -> Callable[[], bool]:
    """Whether so many steps of a stage are done."""
    return lambda: sum(line["stage"] == stage for line in read_metrics(run)) >= steps


def happened(run: Path, kind: str, **fields: Any) -> list[dict[str, Any]]:
    """The events of a kind with these fields."""
    return [event for event in read_events(run) if event["event"] == kind and all(event.get(key) == value for key, value in fields.items())]


def compare(arguments: list[str], run: Path, undisturbed: Path) -> Comparison:
    """Two runs of a recipe: steps, losses, every sample's visits."""
    (folder,) = {event["data_folder"] for event in happened(run, "start")}
    return verdict(read_metrics(run), read_metrics(undisturbed), load(arguments), open_dataset(folder))
