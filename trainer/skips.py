"""What is told when a step does not count, and what is decided when too many do not. Called by the loop; the rule itself is guard.py's."""

from __future__ import annotations

import math
from typing import Any

import torch.distributed as dist
from torch import Tensor

from data_pipeline.errors import UserError
from trainer.batches import Step
from trainer.curriculum import RunState
from trainer.journal import Journal, Silence
from trainer.measure import finite
from trainer.task import StageTask


def tell_skip(
    task: StageTask, step: Step, losses: list[Tensor], state: RunState, norm: float, reason: str, journal: Journal | Silence
) -> None:
    """The event of a skipped step: the ids of its samples, and of those whose own loss is not finite. All ranks call it.

    losses: per pass of this rank, per sample and frame [B, T].
    """
    every = [(place, position) for place, plan in enumerate(step.plans) for position in plan.positions]
    units = [(place, unit) for place, plan in enumerate(step.plans) for unit in plan.units[task.dp_rank]]
    sick = {
        (place, step.plans[place].positions[sample])
        for (place, unit), losses_BT in zip(units, losses, strict=True)
        for sample, row in zip(unit.samples, losses_BT.sum(1).tolist(), strict=True)
        if not math.isfinite(row)
    }
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, sick)
    named = {"samples": every, "not_finite": sorted(set().union(*found))}
    ids = {key: [task.sources[place].data.sample_key(position) for place, position in listed] for key, listed in named.items()}
    journal.event("skip", stage=task.stage.name, step=state.step, reason=reason, grad_norm=finite(norm), **ids)


def roll_back(task: StageTask, state: RunState, committed: RunState, journal: Journal | Silence) -> None:
    """Decide that the run goes on from the last commit with the data behind what it has seen since. Raises UserError when it has come
    to this too often."""
    again = task.roll_backs if committed.step == task.first_step else 0
    if again >= task.guard.roll_backs:
        raise UserError(
            f"stage {task.stage.name}: {state.guard.in_a_row} steps in a row were skipped at step {state.step}, after {again} returns to "
            f"step {committed.step}; events.jsonl names the samples: mend them, lower train.lr, or raise guard.sigma"
        )
    positions = {bucket: (committed.samples.get(bucket, 0), state.samples[bucket]) for bucket in task.consumed}
    journal.promise(
        "roll_back",
        stage=task.stage.name,
        step=committed.step,
        start={bucket: start for bucket, (start, _) in positions.items()},
        samples={bucket: stop for bucket, (_, stop) in positions.items()},
        skipped=state.skipped,
    )
