"""The training loop: one stage of the curriculum, from a commit to the promotion. Knows no cluster, no ZeRO and no architecture."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.loader import SampleSet, prefetch
from data_pipeline.order import wrap
from model.config import ModelConfig
from model.flops import training_flops
from model.heads import Head
from trainer.batches import Draws, MicroBatch, StepPlan, micro_batch
from trainer.config import TrainSection
from trainer.curriculum import RunState, Stage, promotion_reason
from trainer.engine import Engine
from trainer.metrics import StepMetrics
from trainer.optimizer import learning_rate
from trainer.parallel.places import place_of
from trainer.planner import Layout
from trainer.planning.cost import DEVICES
from trainer.units import Unit


@dataclass(frozen=True)
class StageTask:
    """Everything one rank needs to train a stage; made by process.py."""

    stage: Stage
    train: TrainSection
    layout: Layout
    rank: int
    generation: int
    samples: int  # per optimiser step, over all ranks
    device: torch.device
    model: ModelConfig
    data: SampleSet
    draws: Draws
    held_out: SampleSet
    held_out_draws: Draws

    @property
    def dp_rank(self) -> int:
        """Which data-parallel replica this rank is of; the ranks of one replica work on the same samples."""
        return place_of(self.rank, self.layout).dp_rank


Commit = Callable[[RunState, str], float]  # (state, reason) -> seconds it took
Event = Callable[..., None]
Batches = Iterator[tuple[StepPlan, MicroBatch]]


def run_stage(
    task: StageTask, engine: Engine, state: RunState, commit: Commit, publish: Callable[[StepMetrics], None], event: Event
) -> None:
    """Train until the stage's promotion rule fires; commits on the way and at the end, where the state is already the next stage's."""
    rule, last_commit, saving = task.stage.promotion, state.step, 0.0
    batches = prefetch(passes(task, state), partial(load, task, engine.model.head))
    try:
        while (reason := promotion_reason(rule, state)) is None:
            state, metrics = train_step(task, engine, state, batches)
            if len(task.held_out) and (state.stage_step % task.train.evaluate_every == 0 or state.stage_step == rule.max_steps):
                state = state.evaluated(evaluate(task, engine))
                event("evaluation", stage=task.stage.name, step=state.step, held_out_loss=state.held_out[-1])
            # A step is published before the commit that holds it, so no commit is ever ahead of metrics.jsonl;
            # the seconds that saving took stand in the next step's line.
            publish(StepMetrics(**metrics, checkpoint_seconds=saving))
            saving = 0.0
            if state.step - last_commit >= task.train.commit_every and promotion_reason(rule, state) is None:
                saving, last_commit = commit(state, "periodic"), state.step
    finally:
        batches.close()
    commit(state.promoted(), f"end of stage {task.stage.name}: {reason}")
    event("promotion", stage=task.stage.name, step=state.step, reason=reason)


def passes(task: StageTask, state: RunState) -> Iterator[tuple[StepPlan, Unit]]:
    """This rank's passes from `state` on, for ever, each with the step it belongs to."""
    position = state.samples.get(task.draws.shape.bucket, 0)
    while True:
        plan = task.draws.plan(range(position, position + task.samples), task.layout)
        yield from ((plan, unit) for unit in plan.units[task.dp_rank])
        position += task.samples


def load(task: StageTask, head: Head, request: tuple[StepPlan, Unit]) -> tuple[StepPlan, MicroBatch]:
    """One pass, ready for the device; called ahead of time by the prefetching thread."""
    plan, unit = request
    return plan, micro_batch(plan, unit, task.draws, task.data, head)


def train_step(task: StageTask, engine: Engine, state: RunState, batches: Batches) -> tuple[RunState, dict[str, Any]]:
    """One optimiser step: forward and backward of this rank's micro-batches, one update, one reading of the numbers."""
    layout, started, waited = task.layout, time.perf_counter(), 0.0
    lr = learning_rate(task.train, task.stage.lr_scale, state.step)
    engine.set_learning_rate(lr)
    loss_by_frame = torch.zeros(task.draws.shape.frames, device=task.device)
    for _ in range(layout.accumulation):
        asked = time.perf_counter()
        plan, batch = next(batches)
        waited += time.perf_counter() - asked
        losses_BT = weighted_losses(engine, batch)
        engine.backward(losses_BT.sum() / plan.supervised)  # the step's loss is a mean over all its supervised tokens
        loss_by_frame[: losses_BT.shape[1]] += losses_BT.detach().sum(0)
    dist.all_reduce(loss_by_frame, group=engine.mesh.loss_group)
    norm, skipped = engine.finish_step()
    state = state.stepped(task.draws.shape.bucket, task.samples, skipped)
    seconds = time.perf_counter() - started - waited
    return state, step_metrics(task, plan, state, loss_by_frame.tolist(), norm, lr, seconds, waited)


def weighted_losses(engine: Engine, batch: MicroBatch) -> Tensor:
    """Loss sums per sample and frame [B, T]; a row of weight 0 adds nothing, not even a NaN, but stays in the graph."""
    losses_BT = engine.losses(batch.inputs)
    real_B1 = batch.weights.to(losses_BT.device)[:, None] > 0
    return torch.where(real_B1, losses_BT, torch.zeros_like(losses_BT))


@torch.no_grad()
def evaluate(task: StageTask, engine: Engine) -> float:
    """Held-out next-frame loss per supervised token, over a fixed set of samples with fixed draws, shared out over the ranks."""
    engine.model.eval()
    plan = task.held_out_draws.plan(range(min(task.train.evaluate_samples, len(task.held_out))), task.layout)
    total = torch.zeros((), device=task.device)
    for unit in plan.units[task.dp_rank]:
        batch = micro_batch(plan, unit, task.held_out_draws, task.held_out, engine.model.head)
        total += weighted_losses(engine, batch).sum()
    dist.all_reduce(total, group=engine.mesh.loss_group)
    engine.model.train()
    return float(total) / plan.supervised


def step_metrics(
    task: StageTask, plan: StepPlan, state: RunState, sums: list[float], norm: float, lr: float, seconds: float, waited: float
) -> dict[str, Any]:
    """The fields of StepMetrics, but for the checkpoint's."""
    shape, layout = task.draws.shape, task.layout
    counts = task.draws.supervised_by_frame(plan)
    tokens, world = len(plan.positions) * shape.frames * shape.tokens, dist.get_world_size()
    return {
        "step": state.step,
        "stage": task.stage.name,
        "loss": finite(sum(sums) / plan.supervised),
        "loss_by_frame": [finite(total / count) if count else None for total, count in zip(sums, counts, strict=True)],
        "grad_norm": finite(norm),
        "lr": lr,
        "samples_consumed": state.samples[shape.bucket],
        "epoch": wrap(state.samples[shape.bucket], len(task.data))[0],
        "tokens": tokens,
        "supervised_tokens": plan.supervised,
        "world_size": world,
        "generation": task.generation,
        "dp": layout.dp,
        "tp": layout.tp,
        "sp": layout.sp,
        "zero": layout.zero,
        "micro_batch": layout.micro_batch,
        "step_seconds": seconds,
        "data_seconds": waited,
        "tokens_per_second": tokens / (seconds + waited),
        "supervised_tokens_per_second": plan.supervised / (seconds + waited),
        "mfu": step_flops(task, plan) / (seconds * world * peak) if (peak := peak_flops(task.device)) else 0.0,
        "memory_bytes": peak_memory(task.device),
        "skipped": bool(state.skipped) and state.skipped[-1] == state.step - 1,
    }


def finite(value: float) -> float | None:
    """The value, or None where it is not a number that JSON can hold."""
    return value if math.isfinite(value) else None


def step_flops(task: StageTask, plan: StepPlan) -> int:
    """FLOPs the objective needs for a step: every sample's own sequence, nothing for padding."""
    visible = (task.draws.sequence([target]).visibility for target in plan.targets)
    return sum(training_flops(task.model, seen, target.supervised) for seen, target in zip(visible, plan.targets, strict=True))


def peak_flops(device: torch.device) -> float:
    """The device's dense bf16 peak in FLOP/s, 0 where it is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((known.flops for part, known in DEVICES.items() if part in name), 0.0)


def peak_memory(device: torch.device) -> int:
    """Peak bytes allocated on the device, or the process's peak resident size on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
