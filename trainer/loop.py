"""The training loop: one stage of the curriculum, from a commit to the promotion. Knows no cluster, no ZeRO and no architecture."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from data_pipeline.loader import prefetch
from model.heads import Head
from trainer import guard
from trainer.batches import MicroBatch, Step, micro_batch, plan_step
from trainer.checkpoint.keeper import Keeper
from trainer.curriculum import RunState, promotion_reason
from trainer.engine import Engine
from trainer.heartbeat import Heartbeat
from trainer.journal import Journal, Silence
from trainer.leave import Leave
from trainer.measure import step_metrics
from trainer.metrics import StepMetrics
from trainer.optimizer import learning_rate
from trainer.skips import roll_back, tell_skip
from trainer.task import StageTask
from trainer.trace import StepTrace
from trainer.units import Unit

Batches = Iterator[tuple[Step, int, MicroBatch]]  # the step, which of its sources, one pass


def run_stage(
    task: StageTask,
    engine: Engine,
    state: RunState,
    keeper: Keeper,
    journal: Journal | Silence,
    beat: Heartbeat,
    trace: StepTrace,
    leave: Leave,
) -> None:
    """Train until the stage's promotion rule fires; commits on the way and at the end, where the state is already the next stage's.

    Ends early with a commit where less is mixed in from then on, and without one when the guard takes the run back: the next
    generation goes on from the last commit. Exits, after a commit, when a rank was told to leave.
    """
    rule, committed, change = task.stage.promotion, state, task.stage.next_change(state.stage_step)
    batches = prefetch(passes(task, state), partial(load, task, engine.model.head))
    try:
        while (reason := promotion_reason(rule, state, task.bucket)) is None and state.stage_step != change:
            beat.enter("step")
            with trace.step(state.step + 1):
                state, metrics = train_step(task, engine, state, batches, journal)
            if state.step == task.first_step + 1:
                beat.passed("stepped")
            due = state.stage_step % task.train.evaluate_every == 0 or state.stage_step == rule.max_steps
            if due and (measured := task.measured(state.samples)):
                beat.enter("evaluate")
                state = state.evaluated(evaluate(task, engine, measured))
                journal.event("evaluation", stage=task.stage.name, step=state.step, held_out_loss=state.held_out[-1])
            # A step is published before the commit that holds it, so no commit is ever ahead of metrics.jsonl;
            # the seconds that training stands still for it stand in the next step's line.
            journal.step(StepMetrics(**metrics, checkpoint_seconds=keeper.saver.stall()))
            keeper.saver.check()
            if guard.gives_up(task.guard, state.guard):
                keeper.saver.wait()  # it goes back to this commit
                roll_back(task, state, committed, journal)
                return
            ends = state.stage_step == change or promotion_reason(rule, state, task.bucket)
            if leave.agreed() and not ends:
                beat.enter("save")
                keeper.commit(state, "told to leave", permanent=False)
                keeper.saver.wait()
                leave.go()
            if state.step - committed.step >= task.train.commit_every and not ends:
                beat.enter("commit")
                permanent = state.step // task.train.permanent_every > committed.step // task.train.permanent_every
                keeper.commit(state, "periodic", permanent)
                committed = state
    finally:
        batches.close()
        trace.close()
    beat.enter("save")  # unlike a commit on the way it is waited for
    if reason is None:
        keeper.commit(state, "change of mixture", permanent=False)
        keeper.saver.wait()
        journal.event("mixture", stage=task.stage.name, step=state.step, mix=[vars(mix) for mix in task.stage.at(state.stage_step).mix])
        return
    keeper.commit(state.promoted(), f"end of stage {task.stage.name}: {reason}", permanent=True)
    keeper.saver.wait()
    journal.event("promotion", stage=task.stage.name, step=state.step, reason=reason)


def passes(task: StageTask, state: RunState) -> Iterator[tuple[Step, int, Unit]]:
    """This rank's passes from `state` on, for ever, each with the step and the source it belongs to."""
    positions = dict(state.samples)
    while True:
        task.settle(positions)
        step = plan_step(task.sources, positions)
        yield from ((step, place, unit) for place, plan in enumerate(step.plans) for unit in plan.units[task.dp_rank])
        positions |= {bucket: positions.get(bucket, 0) + samples for bucket, samples in task.consumed.items()}


def load(task: StageTask, head: Head, request: tuple[Step, int, Unit]) -> tuple[Step, int, MicroBatch]:
    """One pass, ready for the device; called ahead of time by the prefetching thread."""
    step, place, unit = request
    source = task.sources[place]
    return step, place, micro_batch(step.plans[place], unit, source.draws, source.data, head)


def train_step(
    task: StageTask, engine: Engine, state: RunState, batches: Batches, journal: Journal | Silence
) -> tuple[RunState, dict[str, Any]]:
    """One optimiser step: forward and backward of this rank's micro-batches, one update, one reading of the numbers."""
    before, started, waited = state.guard, time.perf_counter(), 0.0
    lr = learning_rate(task.train, task.stage.lr_scale, state.step)
    engine.set_learning_rate(lr)
    engine.accepts = lambda norm: guard.fault(task.guard, before, norm) is None
    losses: list[Tensor] = []
    sums = torch.zeros(len(task.sources), task.frames, device=task.device)
    for _ in range(task.layout.accumulation):
        asked = time.perf_counter()
        step, place, batch = next(batches)
        waited += time.perf_counter() - asked
        losses_BT = weighted_losses(engine, batch)
        # The step's loss is a weighted mean over all its supervised tokens.
        engine.backward(losses_BT.sum() * (task.sources[place].weight / step.weighted))
        losses.append(losses_BT.detach())
        sums[place, : losses_BT.shape[1]] += losses[-1].sum(0)
    engine.mesh.sum_losses(sums)
    norm, skipped = engine.finish_step()
    state = state.stepped(task.consumed, skipped, before.after(task.guard, norm, skipped), task.epochs)
    if reason := guard.fault(task.guard, before, norm):
        tell_skip(task, step, losses, state, norm, reason, journal)
    seconds = time.perf_counter() - started - waited
    return state, step_metrics(task, step, state, sums.tolist(), norm, lr, seconds, waited)


def weighted_losses(engine: Engine, batch: MicroBatch) -> Tensor:
    """Loss sums per sample and frame [B, T]; a row of weight 0 adds nothing, not even a NaN, but stays in the graph."""
    losses_BT = engine.losses(batch.inputs)
    real_B1 = batch.weights.to(losses_BT.device)[:, None] > 0
    return torch.where(real_B1, losses_BT, torch.zeros_like(losses_BT))


@torch.no_grad()
def evaluate(task: StageTask, engine: Engine, positions: Sequence[int]) -> float:
    """Held-out next-frame loss per supervised token, over these held-out samples with fixed draws, shared out over the ranks."""
    engine.model.eval()
    plan = task.held_out_draws.plan(positions, task.layout)
    total = torch.zeros((), device=task.device)
    for unit in plan.units[task.dp_rank]:
        batch = micro_batch(plan, unit, task.held_out_draws, task.held_out, engine.model.head)
        total += weighted_losses(engine, batch).sum()
    engine.mesh.sum_losses(total)
    engine.model.train()
    return float(total) / plan.supervised
