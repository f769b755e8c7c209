"""The planner's promises for any model, stage and cluster: what it plans fits, adds up, and never gets worse by more memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.errors import UserError
from model.config import SIZES
from trainer.planner import Layout
from trainer.planning.cost import DEVICES, Cluster, step_cost
from trainer.planning.memory import Numerics, estimate
from trainer.planning.search import RESERVE, SHORTEST, Plan, Planner, largest_useful
from trainer.planning.workload import Workload, all_frames, one_frame
from trainer.units import MAX_PADDING, padding

GB = 1e9


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    frames, tokens = draw(st.integers(2, 13)), draw(st.sampled_from([64, 256, 1024, 1440]))
    if draw(st.booleans()):
        sequences = tuple(one_frame(kept, tokens) for kept in range(2, frames + 1))
    else:
        sequences = (all_frames(frames, tokens, draw(st.integers(1, 4))),)
    model = SIZES[draw(st.sampled_from(["small", "videomar-0.4b", "videomar-1.4b"]))]
    return Workload("stage", model, draw(st.integers(1, 600)), frames * tokens, sequences)


@st.composite
def planners(draw: st.DrawFn) -> Planner:
    memory = draw(st.sampled_from([16, 40, 80, 141])) * GB
    cluster = Cluster(draw(st.integers(1, 16_384)), draw(st.sampled_from([1, 4, 8])), memory, DEVICES["H100"], 0.4)
    return Planner(cluster, Numerics(draw(st.sampled_from(["bf16", "fp32"]))), draw(st.sampled_from([1, 8, 64])))


def plan_or_none(planner: Planner, work: Workload) -> Plan | None:
    try:
        return planner.choose(work)
    except UserError:
        return None


@settings(max_examples=150, deadline=None)
@given(planners(), workloads())
def test_every_plan_fits_its_constraints(planner: Planner, work: Workload) -> None:
    plan, cluster = plan_or_none(planner, work), planner.cluster
    if plan is None:
        return
    layout = plan.layout
    assert estimate(work, layout, planner.numerics).total <= cluster.memory * (1 - RESERVE)
    assert plan.used == layout.dp * layout.tp * layout.sp <= cluster.world
    assert layout.tp <= cluster.per_node
    assert cluster.per_node % layout.tp == 0
    assert work.model.heads % (layout.tp * layout.sp) == 0
    assert all(sequence.tokens % (layout.sp * (layout.tp if layout.megatron_sp else 1)) == 0 for sequence in work.sequences)
    assert layout.sp == 1 or work.longest.tokens >= layout.sp * SHORTEST
    assert padding(work.samples, layout.dp, layout.micro_batch) <= MAX_PADDING
    assert layout.dp * layout.micro_batch * layout.accumulation >= work.samples
    assert layout.micro_batch <= planner.largest_micro_batch


PADDED_IF_LARGE = Workload("stage", SIZES["videomar-0.4b"], 34, 512, (all_frames(2, 256, 2),))
SMALL_DEVICE = Planner(Cluster(1, 1, 16 * GB, DEVICES["H100"], 0.4), Numerics("bf16"), 8)


@settings(max_examples=60, deadline=None)
@given(planners(), workloads(), st.floats(1.0, 4.0))
@example(SMALL_DEVICE, PADDED_IF_LARGE, 2.0)
def test_more_memory_never_refuses_what_less_accepted_and_is_never_slower(planner: Planner, work: Workload, factor: float) -> None:
    roomier = replace(planner, cluster=replace(planner.cluster, memory=planner.cluster.memory * factor))
    plan, with_more = plan_or_none(planner, work), plan_or_none(roomier, work)
    if plan is not None:
        assert with_more is not None
        assert with_more.cost.seconds <= plan.cost.seconds * 1.02


@settings(max_examples=60, deadline=None)
@given(planners(), workloads())
def test_memory_grows_with_the_micro_batch_and_shrinks_with_checkpointing_and_zero(planner: Planner, work: Workload) -> None:
    def held(**changes: object) -> int:
        return estimate(work, replace(Layout(8, 1, 1, 1, 2, 2), **changes), planner.numerics).total

    assert held(micro_batch=1) < held() < held(micro_batch=3)
    assert held(checkpointing="full") < held(checkpointing="selective") < held()
    assert held(zero=2) <= held() <= held(zero=0) + 10 * 50_000_000
    assert held(tp=2) < held()
    assert held(tp=2, megatron_sp=True) <= held(tp=2)


@pytest.mark.parametrize(("frames", "tokens", "binding"), [(2, 64, "optimizer"), (13, 1440, "activations")])
def test_the_impossible_is_refused_with_the_constraint_that_binds(frames: int, tokens: int, binding: str) -> None:
    work = Workload("long", SIZES["videomar-1.4b"], 8, frames * tokens, (all_frames(frames, tokens, 4),))
    planner = Planner(Cluster(1, 1, 16 * GB, DEVICES["H100"], 0.4), Numerics(), 64)
    with pytest.raises(
        UserError, match=rf"stage long: its leanest layout on 1 devices .* needs .* GB of it {binding}, but 14.4 GB"
    ) as refused:
        planner.choose(work)
    assert "\n" not in str(refused.value)


def test_sequence_parallelism_comes_when_samples_run_out_and_tensor_parallelism_stays_in_a_node() -> None:
    work = Workload("long", SIZES["videomar-1.4b"], 16, 7 * 1440, (all_frames(7, 1440, 1),))
    cluster = Cluster(16, 8, 80 * GB, DEVICES["H100"], 0.4)
    few, many = (Planner(replace(cluster, world=world), Numerics(), 64).choose(work).layout for world in (16, 128))
    assert (few.dp, few.tp, few.sp) == (16, 1, 1)
    assert many.dp == 16
    assert many.sp > 1


def test_the_largest_useful_world_is_bound_by_samples_or_by_what_is_sent() -> None:
    work = Workload("long", SIZES["videomar-1.4b"], 16, 7 * 1440, (all_frames(7, 1440, 1),))
    planner = Planner(Cluster(8, 8, 80 * GB, DEVICES["H100"], 0.4), Numerics(), 64)
    devices, bound = largest_useful(planner, work)
    assert devices == 128
    assert bound.startswith(("16 samples per step", "communication"))
    slow = replace(planner, cluster=replace(planner.cluster, device=replace(DEVICES["H100"], between=1e9)))
    assert largest_useful(slow, work)[0] < devices
    assert largest_useful(slow, work)[1].startswith("communication")


def test_the_cost_is_the_flops_of_the_model_and_halves_with_twice_the_replicas() -> None:
    work = Workload("long", SIZES["videomar-1.4b"], 64, 7 * 1440, (all_frames(7, 1440, 1),))
    cluster = Cluster(64, 8, 80 * GB, DEVICES["H100"], 0.4)
    one, two = (step_cost(work, Layout(dp, 1, 1, 1, 1, 64 // dp), cluster, Numerics()) for dp in (8, 16))
    assert one.flops == two.flops
    assert one.compute == pytest.approx(2 * two.compute)
    assert one.compute == pytest.approx(one.flops / (8 * 989e12 * 0.4))
