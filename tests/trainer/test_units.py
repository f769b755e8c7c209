"""Dealing a step's samples, and planning its layout: nothing lost, nothing counted twice, padding bounded."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from data_pipeline.errors import UserError
from trainer.planner import global_batch, plan_layout, usable
from trainer.units import MAX_PADDING, deal, padding

LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 5), st.integers(1, 9))
def test_every_sample_counts_once_whatever_the_layout(lengths: list[int], dp: int, micro_batch: int) -> None:
    units = [unit for rank in deal(lengths, dp, micro_batch) for unit in rank]
    counted = sorted(sample for unit in units for sample, weight in zip(unit.samples, unit.weights, strict=True) if weight)
    assert counted == list(range(len(lengths)))
    assert {len(unit.samples) for unit in units} == {micro_batch}


@given(LENGTHS, st.integers(1, 5), st.integers(1, 9))
def test_ranks_have_equally_many_units_and_padding_is_as_announced(lengths: list[int], dp: int, micro_batch: int) -> None:
    ranks = deal(lengths, dp, micro_batch)
    assert len({len(units) for units in ranks}) == 1
    weights = [weight for rank in ranks for unit in rank for weight in unit.weights]
    assert weights.count(0.0) / len(weights) == pytest.approx(padding(len(lengths), dp, micro_batch))


@given(LENGTHS, st.integers(1, 5), st.integers(1, 9))
def test_passes_of_different_ranks_are_alike_in_length(lengths: list[int], dp: int, micro_batch: int) -> None:
    ranks = deal(lengths, dp, micro_batch)
    longest = [[max(lengths[sample] for sample in units[turn].samples) for units in ranks] for turn in range(len(ranks[0]))]
    assert all(max(turn) <= min(later) for turn, later in pairwise(longest))


@given(st.integers(1, 400), st.integers(1, 16), st.integers(1, 32))
def test_a_plan_covers_the_step_within_its_bounds(samples: int, world: int, largest: int) -> None:
    assume(samples >= world)
    try:
        layout = plan_layout("s", samples, world, largest, 1)
    except UserError:
        return
    rows = layout.dp * layout.micro_batch * layout.accumulation
    assert samples <= rows
    assert (rows - samples) / rows <= MAX_PADDING
    assert layout.micro_batch <= largest


@given(st.integers(1, 400), st.integers(1, 16))
def test_the_usable_world_can_be_planned(samples: int, world: int) -> None:
    assert plan_layout("s", samples, usable(world, [samples]), 400, 1).dp == usable(world, [samples])


def test_a_stage_fixes_tokens_so_longer_clips_mean_fewer_samples() -> None:
    assert [global_batch(4096, frames, 64) for frames in (2, 4, 8)] == [32, 16, 8]


def test_too_few_samples_for_the_workers_are_refused_with_the_remedy() -> None:
    with pytest.raises(UserError, match="3 samples per step cannot be spread over 4 workers; raise its tokens_per_step"):
        plan_layout("long", 3, 4, 8, 1)


@pytest.mark.parametrize(("tp", "sp", "cut", "dp"), [(2, 1, False, 4), (2, 2, True, 2), (1, 8, False, 1), (1, 1, True, 8)])
def test_ranks_that_share_a_sample_are_one_replica(tp: int, sp: int, cut: bool, dp: int) -> None:
    layout = plan_layout("s", 64, 8, 8, 2, tp, sp, cut)
    assert (layout.dp, layout.tp, layout.sp, layout.zero) == (dp, tp, sp, 2)
    assert layout.megatron_sp == (cut and tp > 1), "one rank has nobody to cut the tokens with"
    assert usable(9, [64], tp * sp) == 8


def test_workers_that_do_not_fill_their_replicas_are_refused() -> None:
    with pytest.raises(UserError, match=r"6 workers are not a multiple of parallel\.tp=2 x parallel\.sp=2"):
        plan_layout("s", 64, 6, 8, 1, 2, 2)
