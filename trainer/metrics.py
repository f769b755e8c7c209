"""Every number a run publishes, declared once; and metrics.jsonl, one object per optimiser step.

The report, the exporters and the sinks read this list; so do the generators of dashboards and alerts, which import nothing else.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from trainer.checkpoint.files import fsync

TAIL_BYTES = 1 << 16  # which hold a line of metrics.jsonl
PREFIX = "videomar_"
RUN_STATES = ("encoding", "training", "sampling")
DIMENSIONS = ("world", "dp", "tp", "sp", "zero", "micro_batch", "accumulation")
# What brought a generation down; the last four say only how its first process ended.
CAUSES = ("hang", "out_of_memory", "communication", "data", "hardware", "preempted", "node", "exception", "exit", "signal", "seat")
# Where a run's wall time goes; all but "step" is lost. "start": a generation's, up to its first step; "other": between two steps.
ACTIVITIES = ("encode", "start", "step", "recompute", "data", "checkpoint", "evaluate", "sample", "other")
# What wall time is lost to (trainer/goodput.py). "replan": from the end of a generation to the start of the next; "other": not told.
LOSSES = ("detect", "start", "load", "data", "checkpoint", "recompute", "replan", "other")
QUEUES = ("waiting", "decoding", "decoded", "encoding", "committing")  # of the encode pool, in the order in which a video passes them
POOLS = ("decoders", "encoders")
BOTTLENECKS = ("none", "decode", "encode", "storage")
STORAGE_FAULTS = ("transient", "denied", "no bucket", "refused")  # of data_pipeline.s3.Fault, those that are no answer
# How many values a label may have at one endpoint; series beyond are dropped and counted.
LABEL_VALUES = {
    "state": len(RUN_STATES),
    "dimension": len(DIMENSIONS),
    "cause": len(CAUSES),
    "activity": len(ACTIVITIES),
    "loss": len(LOSSES),
    "stage": 32,
    "frame": 64,  # latent frames of a clip
    "source": 16,  # buckets of a mixture
    "rank": 16,  # devices of a pod
    "reason": 32,
    "outcome": 3,
    "split": 2,
    "video": 3,
    "queue": len(QUEUES),
    "pool": len(POOLS),
    "bottleneck": len(BOTTLENECKS),
    "fault": len(STORAGE_FAULTS),
}


@dataclass(frozen=True)
class Metric:
    """A family of series. The name ends in its base unit; every series has the label `run` besides its own `labels`."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()


def gauge(name: str, help: str, *labels: str) -> Metric:
    return Metric(PREFIX + name, "gauge", help, labels)


def counter(name: str, help: str, *labels: str) -> Metric:
    return Metric(PREFIX + name, "counter", help, labels)


METRICS = (
    gauge("run_state", "1 for what the run is doing, 0 for the other states.", "state"),
    gauge("run_stage", "The curriculum's stage being trained, from 1."),
    gauge("run_stages", "Stages of the curriculum."),
    gauge("run_step", "Optimiser steps done; falls back to the commit when a generation starts again."),
    gauge("run_remaining_tokens", "Latent tokens to go if no stage ends before its max_steps."),
    gauge("run_samples", "Samples of the stage's bucket that training has consumed."),
    gauge("run_epoch", "Epoch of the stage's bucket."),
    gauge("run_generation", "Number of the generation that trains."),
    gauge("run_layout", "The layout in use, by dimension.", "dimension"),
    gauge("run_seats", "Seats that the controller holds."),
    gauge("loss", "Training loss per supervised token of the last step.", "stage"),
    gauge("frame_loss", "Training loss of the last step by target latent frame.", "frame"),
    gauge("source_loss", "Training loss of the last step by bucket: the stage's own and those mixed in.", "source"),
    gauge("held_out_loss", "Held-out next-frame loss per supervised token.", "stage"),
    gauge("learning_rate", "Learning rate of the last step."),
    gauge("gradient_norm", "Gradient norm before clipping."),
    counter("steps_total", "Optimiser steps computed, recomputed ones included."),
    counter("skipped_steps_total", "Steps that the guard let change nothing: gradients not finite, or far above the recent ones."),
    counter("roll_backs_total", "Times that the guard took the run back to its last commit, after too many skipped steps in a row."),
    counter("recomputed_steps_total", "Steps after the commit that a new generation starts from; they are computed again."),
    counter("tokens_total", "Latent tokens of the samples trained on."),
    counter("supervised_tokens_total", "Tokens that carried loss."),
    gauge("model_flops_utilization_ratio", "FLOPs the objective needs against the devices' peak; 0 where the peak is unknown."),
    gauge("attention_recompiles", "Attention kernels that the generation has compiled: one per bucket and rule."),
    gauge("rank_step_seconds", "Forward, backward and update of a rank's last step, waiting for its peers included.", "rank"),
    gauge("rank_forward_seconds", "Forward passes of a rank's last step: its own speed, before it waits for its peers.", "rank"),
    gauge(
        "rank_reduction_seconds", "Reduction of a rank's gradients in its last step, waiting for its peers included; ZeRO 0 to 2.", "rank"
    ),
    gauge("rank_data_wait_seconds", "What a rank's last step waited for data.", "rank"),
    gauge("rank_memory_bytes", "Peak memory of a rank's device, or of its process on CPU.", "rank"),
    counter("time_seconds_total", "Wall time of the run by activity; the share of `step` is its goodput.", "activity"),
    gauge("goodput_ratio", "Seconds of the steps that stand / wall seconds, since the run began."),
    gauge("lost_seconds", "Wall seconds since the run began that are in no step that stands, by what they were lost to.", "loss"),
    counter("generations_total", "Process groups started."),
    counter("failures_total", "Generations that ended before their stage, by cause.", "cause"),
    counter("promotions_total", "Stages finished."),
    counter("commits_total", "Checkpoints committed."),
    gauge("commit_seconds", "What the last commit took."),
    gauge("commit_bytes", "Size of the last commit."),
    gauge("last_commit_timestamp_seconds", "Unix time of the last commit, or of the start before the first."),
    gauge("stage_readiness_ratio", "Share of a stage's videos that are encoded.", "stage"),
    gauge("stage_ready_seconds", "Seconds until a stage's videos are all encoded, at the present rate.", "stage"),
    gauge("encode_sources", "Videos to encode."),
    gauge("encode_sources_done", "Videos encoded, rejected or failed so far."),
    counter("encode_clips_total", "Clips written; a video gives several."),
    gauge("encode_queue_items", "What is where in the encode pool: videos waiting, decoding; pieces decoded, encoding; chunks.", "queue"),
    gauge("encode_actors", "Actors of the encode pool.", "pool"),
    gauge("encode_bottleneck", "1 for what the encode pool waits for, 0 for the others.", "bottleneck"),
    counter("storage_errors_total", "Requests to S3 that met a fault; transient ones are repeated, others end what asked.", "fault"),
    gauge("dataset_sources", "Videos of the data set by outcome: ok, rejected, failed.", "outcome"),
    gauge("dataset_rejected_sources", "Videos that gave no clip, by the filter's reason.", "reason"),
    gauge("dataset_clips", "Clips of the data set in all buckets, by split.", "split"),
    gauge("sample_psnr_decibels", "PSNR of generated frames against the truth, and of repeating the given frame.", "video"),
    gauge("sample_dynamic_degree_ratio", "Share of the samples that move, by VBench's rule on optical flow, and of the truth.", "video"),
    gauge("exporter_processes", "Processes of the pod that share this endpoint."),
    counter("series_dropped_total", "Updates refused because a label had too many values."),
)


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


def cut_back(run: Path, step: int, check_owner: Callable[[], None]) -> tuple[int, float]:
    """Drop the lines after `step`, which a restart will compute again, and a torn last line. Returns how many steps were dropped, and the
    seconds that they had taken. check_owner raises when the run is no longer the caller's."""
    path = metrics_path(run)
    if not path.exists():
        return 0, 0.0
    kept, dropped, seconds = [], 0, 0.0
    for line in path.read_text().splitlines():
        try:
            told = json.loads(line)
        except ValueError:
            told = {}
        if told and told["step"] <= step:
            kept.append(line + "\n")
        else:
            dropped += 1
            seconds += sum(told.get(part, 0.0) for part in ("step_seconds", "data_seconds", "checkpoint_seconds"))
    temporary = path.with_suffix(f".{os.getpid()}.part")
    temporary.write_text("".join(kept))
    fsync(temporary)
    check_owner()  # at the last moment: a newer generation may be writing to the file already
    temporary.replace(path)
    return dropped, seconds


def last_line(run: Path) -> dict[str, Any]:
    """The last whole line of metrics.jsonl, {} before the first; only the end is read."""
    if not metrics_path(run).exists():
        return {}
    with metrics_path(run).open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
        lines = file.read().split(b"\n")[:-1]
    return dict(json.loads(lines[-1])) if lines else {}


def last_step(run: Path) -> int:
    """The last step that metrics.jsonl holds, 0 before the first."""
    return int(last_line(run).get("step", 0))


class MetricsLog:
    """metrics.jsonl, open for appending."""

    def __init__(self, run: Path) -> None:
        self._path = metrics_path(run)
        self._file: TextIO = self._path.open("a")

    def write(self, metrics: StepMetrics) -> None:
        self._file.write(json.dumps(asdict(metrics)) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until all lines are on the disk; a commit must not be ahead of them. Raises OSError when they went to a file that another
        process has put aside."""
        os.fsync(self._file.fileno())
        if not os.path.samestat(os.fstat(self._file.fileno()), self._path.stat()):
            raise OSError(errno.ESTALE, "another process has replaced the file", str(self._path))


def read_metrics(run: Path) -> list[dict[str, object]]:
    """All steps written so far; a line that is just being written is left out."""
    path = metrics_path(run)
    lines = path.read_text().split("\n") if path.exists() else []
    return [json.loads(line) for line in lines[:-1]]
