"""What happens to a run, put on its meter: the controller tells steps, events and progress; a seat its rank's pulse.

Pure translation: knows no endpoint, no sink, no Ray and no file.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.curriculum import Stage, tokens_to_go
from trainer.goodput import Goodput
from trainer.meter import Meter
from trainer.metrics import BOTTLENECKS, CAUSES, DIMENSIONS, POOLS, QUEUES, RUN_STATES, STORAGE_FAULTS

PULSE = ("rank_step_seconds", "rank_forward_seconds", "rank_reduction_seconds", "rank_data_wait_seconds", "rank_memory_bytes")


def pulse(meter: Meter, message: Mapping[str, Any]) -> None:
    """A rank's last step, from its own process, which may not know all of it."""
    for name in PULSE:
        if name in message:
            meter.set(name, message[name], rank=str(message["rank"]))


class RunInstruments:
    """A run's meter, kept up to date by the one process that steers it. tell: called with the step the run is at after each message, once
    there is one."""

    def __init__(
        self,
        meter: Meter,
        stages: Sequence[Stage],
        now: Callable[[], float] = time.time,
        tell: Callable[[int], None] = lambda step: None,
    ) -> None:
        self.meter = meter
        self._stages, self._now, self._tell = stages, now, tell
        self._step = 0
        self._told = now()  # until when the wall time is accounted for
        self._rest = "encode"  # what the time that no message explains is spent on
        self._furthest = 0  # the last step ever reached
        self._clips = 0
        meter.set("run_stages", len(stages))
        meter.set("last_commit_timestamp_seconds", now())
        self._state("encoding")
        self.pool({}, {}, "none")
        self.storage(dict.fromkeys(STORAGE_FAULTS, 0))

    def message(self, told: Mapping[str, Any], stage_step: int) -> None:
        """What a process of a generation reports; a step is the `stage_step`-th of its stage."""
        kind = told["kind"]
        if kind == "step":
            self.step(told, stage_step)
        elif kind == "event":
            self.event(told["event"], told)
        elif kind == "samples":
            self.samples(told)
        elif kind == "storage":
            self.storage(told["faults"])
        elif kind == "rank":  # where no seat has taken it
            pulse(self.meter, told)
        if told.get("event") != "evaluation":  # it comes before the step that it is of
            self._publish()

    def encoding(self, done: int, total: int, clips: int) -> None:
        """Progress of the encode pool: sources done, sources in all, clips so far, of the data set that it is at."""
        self.meter.set("encode_sources", total)
        self.meter.set("encode_sources_done", done)
        self.meter.add("encode_clips_total", max(clips - self._clips, 0))
        self._clips = clips
        self._account({})

    def pool(self, queues: Mapping[str, int], actors: Mapping[str, int], bottleneck: str) -> None:
        """The encode pool right now: what is in its queues, how many actors it has, what they wait for."""
        for queue in QUEUES:
            self.meter.set("encode_queue_items", queues.get(queue, 0), queue=queue)
        for kind in POOLS:
            self.meter.set("encode_actors", actors.get(kind, 0), pool=kind)
        for part in BOTTLENECKS:
            self.meter.set("encode_bottleneck", part == bottleneck, bottleneck=part)

    def readiness(self, stages: Mapping[str, tuple[float, float]]) -> None:
        """How far the stages' data are: the fraction that is encoded and the seconds to go, infinite while they are unknown."""
        self.meter.forget("stage_ready_seconds")
        for stage, (fraction, seconds) in stages.items():
            self.meter.set("stage_readiness_ratio", fraction, stage=stage)
            if math.isfinite(seconds):
                self.meter.set("stage_ready_seconds", seconds, stage=stage)

    def storage(self, faults: Mapping[str, int]) -> None:
        """What requests to S3 have met, by kind."""
        for kind, count in faults.items():
            self.meter.add("storage_errors_total", count, fault=kind)

    def dataset(self, outcomes: Mapping[str, int], rejected: Mapping[str, int], clips: Mapping[str, int]) -> None:
        """The finished data set: sources by outcome, rejected ones by reason, clips by split."""
        for name, label, counts in (
            ("dataset_sources", "outcome", outcomes),
            ("dataset_rejected_sources", "reason", rejected),
            ("dataset_clips", "split", clips),
        ):
            for key, count in counts.items():
                self.meter.set(name, count, **{label: key})
        for name in ("encode_sources", "encode_sources_done"):
            self.meter.set(name, sum(outcomes.values()))
        self.meter.add("encode_clips_total", 0)
        self._account({})

    def generation(self, number: int, seats: int, state: str) -> None:
        """A process group starts, to train or to sample."""
        self._account({})
        self._rest = "start" if state == "training" else "sample"
        self._state(state)
        self.meter.set("run_generation", number)
        self.meter.set("run_seats", seats)
        self.meter.add("generations_total", 1)
        for cause in CAUSES:  # a counter that exists before its first failure has an increase when it comes
            self.meter.add("failures_total", 0, cause=cause)

    def failure(self, cause: str) -> None:
        """A generation ended before its stage."""
        self.meter.add("failures_total", 1, cause=cause)

    def step(self, told: Mapping[str, Any], stage_step: int) -> None:
        """One optimiser step (a line of metrics.jsonl), the `stage_step`-th of its stage."""
        meter, index = self.meter, next(i for i, stage in enumerate(self._stages) if stage.name == told["stage"])
        self._step = told["step"]
        meter.set("run_stage", index + 1)
        meter.set("run_step", told["step"])
        meter.set("run_samples", told["samples_consumed"])
        meter.set("run_epoch", told["epoch"])
        meter.set("run_remaining_tokens", tokens_to_go(self._stages, index, stage_step))
        for dimension in DIMENSIONS:
            if dimension in told:
                meter.set("run_layout", told[dimension], dimension=dimension)
        meter.set("run_layout", told["world_size"], dimension="world")
        if told["loss"] is not None:
            meter.only("loss", told["loss"], stage=told["stage"])
        meter.forget("frame_loss", "source_loss")
        for frame, loss in enumerate(told["loss_by_frame"]):
            if loss is not None:
                meter.set("frame_loss", loss, frame=str(frame))
        for source, loss in told["loss_by_source"].items():
            if loss is not None:
                meter.set("source_loss", loss, source=source)
        meter.set("learning_rate", told["lr"])
        if told["grad_norm"] is not None:
            meter.set("gradient_norm", told["grad_norm"])
        meter.set("model_flops_utilization_ratio", told["mfu"])
        meter.set("attention_recompiles", told["recompiles"])
        meter.add("steps_total", 1)
        meter.add("skipped_steps_total", told["skipped"])
        meter.add("tokens_total", told["tokens"])
        meter.add("supervised_tokens_total", told["supervised_tokens"])
        again = told["step"] <= self._furthest
        self._furthest = max(self._furthest, told["step"])
        parts = {"recompute" if again else "step": told["step_seconds"], "data": told["data_seconds"]}
        self._account(parts | {"checkpoint": told["checkpoint_seconds"]})
        self._rest = "other"

    def event(self, kind: str, told: Mapping[str, Any]) -> None:
        """What rank 0 has written to events.jsonl: layout, evaluation, commit, promotion, roll_back; others are not counted."""
        meter = self.meter
        if kind == "layout":
            self._furthest = max(self._furthest, told["step"] + told["recomputed"])
            meter.add("recomputed_steps_total", told["recomputed"])
            meter.set("run_layout", told["accumulation"], dimension="accumulation")
            meter.add("commits_total", 0)
            meter.add("promotions_total", 0)
            meter.add("roll_backs_total", 0)
        elif kind == "evaluation":
            meter.only("held_out_loss", told["held_out_loss"], stage=told["stage"])
            self._rest = "evaluate"
        elif kind == "commit":
            meter.add("commits_total", 1)
            meter.set("commit_seconds", told["seconds"])
            meter.set("commit_bytes", told["bytes"])
            meter.set("last_commit_timestamp_seconds", self._now())
        elif kind == "promotion":
            meter.add("promotions_total", 1)
        elif kind == "roll_back":
            meter.add("roll_backs_total", 1)

    def samples(self, told: Mapping[str, Any]) -> None:
        """What the samples are worth; see showcase.figures."""
        self.meter.set("sample_psnr_decibels", told["psnr"], video="generated")
        self.meter.set("sample_psnr_decibels", told["psnr_copy_last_frame"], video="copy_last_frame")
        self.meter.set("sample_dynamic_degree_ratio", told["dynamic_degree"], video="generated")
        self.meter.set("sample_dynamic_degree_ratio", told["dynamic_degree_truth"], video="truth")

    def goodput(self, account: Goodput) -> None:
        """Where the wall time went since the run began."""
        self.meter.set("goodput_ratio", account.ratio)
        for cause, seconds in account.lost.items():
            self.meter.set("lost_seconds", seconds, loss=cause)
        self._publish()

    def _publish(self) -> None:
        if self._step:
            self._tell(self._step)

    def _state(self, state: str) -> None:
        """What the run is doing from now on: one of RUN_STATES."""
        for name in RUN_STATES:
            self.meter.set("run_state", name == state, state=name)

    def _account(self, parts: Mapping[str, float]) -> None:
        """Share out the wall time since the last call: the parts as told, what is left to the rest."""
        now = self._now()
        left, self._told = max(now - self._told, 0.0), now
        for activity, seconds in parts.items():
            spent = min(seconds, left)
            left -= spent
            self.meter.add("time_seconds_total", spent, activity=activity)
        self.meter.add("time_seconds_total", left, activity=self._rest)
