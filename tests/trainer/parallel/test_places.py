"""Ranks and tokens of a layout: nothing is left out, nothing is done twice, and what cannot be dealt out is refused in one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import UserError
from model.supervision import AllFrames, OneFrame, Target
from trainer.parallel.places import check_divisible, gathered_tokens, own_tokens, place_of, sequence_lengths, token_shards
from trainer.planner import Layout

layouts = st.builds(
    lambda dp, tp, sp, cut: Layout(dp, tp, sp, 1, 1, 1, cut and tp > 1),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 4),
    st.booleans(),
)


def ranks(layout: Layout) -> range:
    return range(layout.dp * layout.tp * layout.sp)


@given(layouts)
def test_every_rank_has_a_place_of_its_own_and_tp_is_fastest(layout: Layout) -> None:
    places = [place_of(rank, layout) for rank in ranks(layout)]
    assert len(set(places)) == len(places)
    for rank, place in enumerate(places):
        assert rank == (place.dp_rank * layout.sp + place.sp_rank) * layout.tp + place.tp_rank


@given(layouts, st.integers(1, 5))
def test_a_replica_covers_every_token_once(layout: Layout, times: int) -> None:
    length = times * token_shards(layout)
    for replica in range(layout.dp):
        places = {place_of(rank, layout) for rank in ranks(layout) if place_of(rank, layout).dp_rank == replica}
        counted = [token for place in places for token in range(length)[own_tokens(length, layout, place)]]
        each = 1 if layout.megatron_sp else layout.tp
        assert sorted(counted) == [token for token in range(length) for _ in range(each)]


@given(layouts, st.integers(1, 5))
def test_a_tp_group_gathers_its_tokens_in_the_order_of_its_ranks(layout: Layout, times: int) -> None:
    length = times * token_shards(layout)
    for rank in ranks(layout)[:: layout.tp]:
        group = [place_of(rank + member, layout) for member in range(layout.tp)]
        own = [token for place in group for token in range(length)[own_tokens(length, layout, place)]]
        gathered = list(range(length)[gathered_tokens(length, layout, group[0])])
        assert own == (gathered if layout.megatron_sp else gathered * layout.tp)


@pytest.mark.parametrize("frames", [2, 3, 5])
@pytest.mark.parametrize("masks", [1, 3])
@pytest.mark.parametrize("block", [1, 2, 4])
def test_the_lengths_are_those_of_the_sequences(frames: int, masks: int, block: int) -> None:
    made = AllFrames(block, masks).sequence([], frames, 6)
    assert sequence_lengths("all_frames", masks, block, frames, 6) == [made.visibility.starts[-1]]
    targets = [[Target(kept, {})] for kept in range(2, frames + 1)]
    cut = [OneFrame().sequence(target, frames, 6).visibility.starts[-1] for target in targets]
    assert sequence_lengths("one_frame", masks, block, frames, 6) == cut


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(1, 4, 2, 1, 1, 1), "parallel.tp=4 x parallel.sp=2 does not divide the model's 4 heads"),
        (Layout(1, 1, 4, 1, 1, 1), "stage long: sequences of 30 tokens cannot all be cut into 4 equal parts"),
        (Layout(1, 4, 1, 1, 1, 1, True), r"parallel.megatron_sp=true\): choose degrees that divide 30"),
    ],
)
def test_what_does_not_divide_is_refused_in_one_line(layout: Layout, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_divisible("long", layout, 4, [30])
    assert "\n" not in str(caught.value)


def test_tensor_parallelism_alone_cuts_no_tokens() -> None:
    check_divisible("long", Layout(1, 4, 1, 1, 1, 1), 4, [30])
