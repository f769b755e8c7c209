"""The training loop: one stage of the curriculum, from a commit to the promotion. Knows no cluster, no ZeRO and no architecture."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.errors import UserError
from data_pipeline.loader import SampleSet, prefetch
from data_pipeline.order import wrap
from model.attention import recompiles
from model.config import ModelConfig
from model.flops import training_flops
from model.heads import Head
from trainer import guard
from trainer.batches import Draws, MicroBatch, Source, Step, micro_batch, plan_step
from trainer.checkpoint.keeper import Keeper
from trainer.config import TrainSection
from trainer.curriculum import RunState, Stage, promotion_reason
from trainer.engine import Engine
from trainer.guard import GuardRule
from trainer.journal import Journal, Silence
from trainer.metrics import StepMetrics
from trainer.optimizer import learning_rate
from trainer.parallel.places import place_of
from trainer.planner import Layout
from trainer.trace import StepTrace
from trainer.units import Unit

# Dense bf16 peaks in FLOP/s by a part of the device's name; an unknown device gives an MFU of 0, not a crash.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}


@dataclass(frozen=True)
class StageTask:
    """Everything one rank needs to train a stage; made by process.py."""

    stage: Stage
    train: TrainSection
    guard: GuardRule
    first_step: int  # of this generation: the step of the commit it goes on from
    roll_backs: int  # how often the run has gone back to that commit
    layout: Layout
    rank: int
    generation: int
    device: torch.device
    model: ModelConfig
    sources: tuple[Source, ...]  # the stage's own bucket first
    held_out: SampleSet
    held_out_draws: Draws

    @property
    def frames(self) -> int:
        """Latent frames of the longest source."""
        return max(source.draws.shape.frames for source in self.sources)

    @property
    def dp_rank(self) -> int:
        """Which data-parallel replica this rank is of; the ranks of one replica work on the same samples."""
        return place_of(self.rank, self.layout).dp_rank


Batches = Iterator[tuple[Step, int, MicroBatch]]  # the step, which of its sources, one pass


def run_stage(task: StageTask, engine: Engine, state: RunState, keeper: Keeper, journal: Journal | Silence, trace: StepTrace) -> None:
    """Train until the stage's promotion rule fires; commits on the way and at the end, where the state is already the next stage's.

    Ends early, with nothing committed, when the guard takes the run back: the next generation goes on from the last commit.
    """
    rule, committed, saving = task.stage.promotion, state, 0.0
    batches = prefetch(passes(task, state), partial(load, task, engine.model.head))
    try:
        while (reason := promotion_reason(rule, state)) is None:
            with trace.step(state.step + 1):
                state, metrics = train_step(task, engine, state, batches, journal)
            if len(task.held_out) and (state.stage_step % task.train.evaluate_every == 0 or state.stage_step == rule.max_steps):
                state = state.evaluated(evaluate(task, engine))
                journal.event("evaluation", stage=task.stage.name, step=state.step, held_out_loss=state.held_out[-1])
            # A step is published before the commit that holds it, so no commit is ever ahead of metrics.jsonl;
            # the seconds that training stood still for it stand in the next step's line.
            journal.step(StepMetrics(**metrics, checkpoint_seconds=saving))
            keeper.saver.check()
            saving = 0.0
            if guard.gives_up(task.guard, state.guard):
                roll_back(task, state, committed, journal)
                return
            if state.step - committed.step >= task.train.commit_every and promotion_reason(rule, state) is None:
                permanent = state.step // task.train.permanent_every > committed.step // task.train.permanent_every
                saving, committed = keeper.commit(state, "periodic", permanent), state
    finally:
        batches.close()
        trace.close()
    keeper.commit(state.promoted(), f"end of stage {task.stage.name}: {reason}", permanent=True)
    keeper.saver.wait()
    journal.event("promotion", stage=task.stage.name, step=state.step, reason=reason)


def roll_back(task: StageTask, state: RunState, committed: RunState, journal: Journal | Silence) -> None:
    """Decide that the run goes on from the last commit with the data behind what it has seen since. Raises UserError when it has come
    to this too often."""
    again = task.roll_backs if committed.step == task.first_step else 0
    if again >= task.guard.roll_backs:
        raise UserError(
            f"stage {task.stage.name}: {state.guard.in_a_row} steps in a row were skipped at step {state.step}, after {again} returns to "
            f"step {committed.step}; events.jsonl names the samples: mend them, lower train.lr, or raise guard.sigma"
        )
    passed_over = {bucket: [committed.samples.get(bucket, 0), state.samples[bucket]] for bucket in consumed(task)}
    journal.promise("roll_back", stage=task.stage.name, step=committed.step, passed_over=passed_over)


def tell_skip(
    task: StageTask, step: Step, passed: list[tuple[int, Tensor]], state: RunState, norm: float, reason: str, journal: Journal | Silence
) -> None:
    """The event of a skipped step: the ids of its samples, and of those whose own loss is not finite. All ranks call it; `passed`: the
    source and the losses [B, T] of each of this rank's passes."""
    units = [unit for plan in step.plans for unit in plan.units[task.dp_rank]]
    sick = {
        (place, step.plans[place].positions[sample])
        for unit, (place, losses_BT) in zip(units, passed, strict=True)
        for sample, loss in zip(unit.samples, losses_BT.sum(1).tolist(), strict=True)
        if not math.isfinite(loss)
    }
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, sick)
    everything = [(place, position) for place, plan in enumerate(step.plans) for position in plan.positions]
    named = {"samples": everything, "not_finite": sorted(set().union(*found))}
    ids = {key: [task.sources[place].data.sample_key(position) for place, position in some] for key, some in named.items()}
    journal.event("skip", stage=task.stage.name, step=state.step, reason=reason, grad_norm=finite(norm), **ids)


def consumed(task: StageTask) -> dict[str, int]:
    """Samples per bucket of one optimiser step."""
    return {source.draws.shape.bucket: source.samples for source in task.sources}


def passes(task: StageTask, state: RunState) -> Iterator[tuple[Step, int, Unit]]:
    """This rank's passes from `state` on, for ever, each with the step and the source it belongs to."""
    while True:
        step = plan_step(task.sources, state.samples)
        yield from ((step, place, unit) for place, plan in enumerate(step.plans) for unit in plan.units[task.dp_rank])
        state = state.stepped(consumed(task), False, state.guard)


def load(task: StageTask, head: Head, request: tuple[Step, int, Unit]) -> tuple[Step, int, MicroBatch]:
    """One pass, ready for the device; called ahead of time by the prefetching thread."""
    step, place, unit = request
    source = task.sources[place]
    return step, place, micro_batch(step.plans[place], unit, source.draws, source.data, head)


def train_step(
    task: StageTask, engine: Engine, state: RunState, batches: Batches, journal: Journal | Silence
) -> tuple[RunState, dict[str, Any]]:
    """One optimiser step: forward and backward of this rank's micro-batches, one update, one reading of the numbers."""
    layout, before, started, waited = task.layout, state.guard, time.perf_counter(), 0.0
    lr = learning_rate(task.train, task.stage.lr_scale, state.step)
    engine.set_learning_rate(lr)
    engine.accepts = lambda norm: guard.fault(task.guard, before, norm) is None
    passed: list[tuple[int, Tensor]] = []
    sums = torch.zeros(len(task.sources), task.frames, device=task.device)
    for _ in range(layout.accumulation):
        asked = time.perf_counter()
        step, place, batch = next(batches)
        waited += time.perf_counter() - asked
        losses_BT = weighted_losses(engine, batch)
        # DeepSpeed averages over dp and accumulation; the step's loss is a weighted mean over all its supervised tokens.
        engine.backward(losses_BT.sum() * (task.sources[place].weight * layout.dp * layout.accumulation / step.weighted))
        passed.append((place, losses_BT.detach()))
        sums[place, : losses_BT.shape[1]] += losses_BT.detach().sum(0)
    dist.all_reduce(sums, group=engine.mesh.loss_group)
    norm, skipped = engine.finish_step()
    state = state.stepped(consumed(task), skipped, before.after(task.guard, norm, skipped))
    if reason := guard.fault(task.guard, before, norm):
        tell_skip(task, step, passed, state, norm, reason, journal)
    seconds = time.perf_counter() - started - waited
    return state, step_metrics(task, step, state, sums.tolist(), norm, lr, seconds, waited)


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
    task: StageTask, step: Step, state: RunState, sums: list[list[float]], norm: float, lr: float, seconds: float, waited: float
) -> dict[str, Any]:
    """The fields of StepMetrics, but for the checkpoint's."""
    own, layout, world = task.sources[0], task.layout, dist.get_world_size()
    counts, consumed = own.draws.supervised_by_frame(step.plans[0]), state.samples[own.draws.shape.bucket]
    shapes, supervised = [source.draws.shape for source in task.sources], [plan.supervised for plan in step.plans]
    tokens = sum(len(plan.positions) * shape.frames * shape.tokens for plan, shape in zip(step.plans, shapes, strict=True))
    by_source = [sum(row) for row in sums]
    return {
        "step": state.step,
        "stage": task.stage.name,
        "loss": finite(sum(source.weight * total for source, total in zip(task.sources, by_source, strict=True)) / step.weighted),
        "loss_by_frame": [finite(total / count) if count else None for total, count in zip(sums[0], counts, strict=False)],
        "loss_by_source": {shape.bucket: finite(total / count) for shape, total, count in zip(shapes, by_source, supervised, strict=True)},
        "grad_norm": finite(norm),
        "lr": lr,
        "samples_consumed": consumed,
        "epoch": wrap(consumed, len(own.data))[0],
        "tokens": tokens,
        "supervised_tokens": sum(supervised),
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
        "supervised_tokens_per_second": sum(supervised) / (seconds + waited),
        "mfu": step_flops(task, step) / (seconds * world * peak) if (peak := peak_flops(task.device)) else 0.0,
        "memory_bytes": peak_memory(task.device),
        "skipped": bool(state.skipped) and state.skipped[-1] == state.step - 1,
        "recompiles": recompiles(),
    }


def finite(value: float) -> float | None:
    """The value, or None where it is not a number that JSON can hold."""
    return value if math.isfinite(value) else None


def step_flops(task: StageTask, step: Step) -> int:
    """FLOPs the objective needs for a step: every sample's own sequence, nothing for padding."""
    pairs = [(source.draws, target) for source, plan in zip(task.sources, step.plans, strict=True) for target in plan.targets]
    return sum(training_flops(task.model, draws.sequence([target]).visibility, target.supervised) for draws, target in pairs)


def peak_flops(device: torch.device) -> float:
    """The device's dense bf16 peak in FLOP/s, 0 where it is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), 0.0)


def peak_memory(device: torch.device) -> int:
    """Peak bytes allocated on the device, or the process's peak resident size on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
