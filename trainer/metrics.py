"""Every number a run publishes, declared once; and metrics.jsonl, one object per optimiser step.

The report and the exporters read this list.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO


@dataclass(frozen=True)
class StepMetrics:
    """One line of metrics.jsonl.

    Seconds are wall time on rank 0; sums run over all workers; mfu is 0 where the device's peak is unknown.
    """

    step: int  # optimiser steps done, this one included
    stage: str
    loss: float | None  # per supervised token; None when the step was not finite
    loss_by_frame: list[float | None]  # by target latent frame of the stage's own bucket; None where no sample had that target
    grad_norm: float | None  # before clipping
    lr: float
    samples_consumed: int  # of this stage's bucket, since the run began
    epoch: int
    tokens: int  # latent tokens T * S of the step's samples
    supervised_tokens: int
    world_size: int
    generation: int
    dp: int
    tp: int
    sp: int
    zero: int
    micro_batch: int
    step_seconds: float  # forward, backward, update; the wait for data is not in it
    data_seconds: float  # waiting for data
    checkpoint_seconds: float  # of a commit since the step before
    tokens_per_second: float
    supervised_tokens_per_second: float
    mfu: float
    memory_bytes: int  # peak of rank 0's device, or of its process on CPU
    skipped: bool
    loss_by_source: dict[str, float | None]  # per supervised token, by bucket: the stage's own and those mixed in
    recompiles: int  # attention kernels this generation has compiled: one per bucket and rule, or something is wrong


def metrics_path(run: Path) -> Path:
    return run / "metrics.jsonl"


def cut_back(run: Path, step: int) -> int:
    """Drop the lines after `step`, which a restart will compute again, and a torn last line. Returns how many steps were dropped."""
    path = metrics_path(run)
    if not path.exists():
        return 0
    kept, dropped = [], 0
    for line in path.read_text().splitlines():
        try:
            done = json.loads(line)["step"] <= step
        except ValueError:
            done = False
        if done:
            kept.append(line + "\n")
        else:
            dropped += 1
    temporary = path.with_suffix(".part")
    temporary.write_text("".join(kept))
    temporary.replace(path)
    return dropped


def last_step(run: Path) -> int:
    """The last step that metrics.jsonl holds, 0 before the first."""
    return max((int(str(line["step"])) for line in read_metrics(run)[-1:]), default=0)


class MetricsLog:
    """metrics.jsonl, open for appending."""

    def __init__(self, run: Path) -> None:
        self._file: TextIO = metrics_path(run).open("a")

    def write(self, metrics: StepMetrics) -> None:
        self._file.write(json.dumps(asdict(metrics)) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until all lines are on the disk; a commit must not be ahead of them."""
        os.fsync(self._file.fileno())


def read_metrics(run: Path) -> list[dict[str, object]]:
    """All steps written so far; a line that is just being written is left out."""
    path = metrics_path(run)
    lines = path.read_text().split("\n") if path.exists() else []
    return [json.loads(line) for line in lines[:-1]]
