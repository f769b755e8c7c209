"""The paper's recipe at 1.4 B on 8, 64 and 512 ranks: planned, built, fragmented and stepped under fake tensors and process groups."""

from __future__ import annotations

from dataclasses import replace

import pytest

from data_pipeline.buckets import Bucket, latent_shape
from tests.distributed.harness import run_ranks
from tests.trainer.planning.fake_step import Case, step
from trainer.commands.plan import planner_of
from trainer.config import load
from trainer.planning.memory import Numerics, estimate, parameters
from trainer.planning.workload import workload
from trainer.sizing import planned_model


@pytest.mark.parametrize("world", [8, 64, 512])
def test_the_last_stage_steps_at_its_planned_layout_and_holds_what_was_estimated(world: int) -> None:
    config = load(["recipe=videomar-1.4b", f"plan.world={world}"])
    stage, model = config.curriculum.stages[-1], planned_model(config)
    work = workload(config, model, stage)
    plan = planner_of(config).choose(work)
    assert plan.used == world
    # Later passes of a step hold what the second one holds.
    layout = replace(plan.layout, accumulation=min(2, plan.layout.accumulation))
    assert stage.stride is not None
    case = Case(model, layout, *latent_shape(Bucket(stage.frames, stage.height, stage.width), stage.stride), precision="bf16")
    (done,) = run_ranks(1, step, case, world - 1, timeout=280)
    replicas, whole = layout.dp * layout.sp, parameters(model, layout.tp)
    assert done.parameters == whole
    assert done.updates > 0
    # Partitions are equal but for the last rank's, which ends in padding.
    assert 0.98 * whole / replicas <= done.fragments <= whole / replicas
    assert estimate(work, layout, Numerics("bf16", cuda=False)).total == pytest.approx(done.peak, rel=0.1)
