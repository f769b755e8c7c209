"""What the engine decides before DeepSpeed is asked: its configuration, the stage it runs at, and which part of a tensor a rank holds."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.checkpoint.fragments import Box
from trainer.engine import deepspeed_config, shard_of, zero_stage
from trainer.parallel.mesh import Mesh
from trainer.parallel.places import place_of
from trainer.planner import Layout
from trainer.sections import ParallelSection


def mesh(layout: Layout, rank: int) -> Mesh:
    """A rank's mesh without groups."""
    none: Any = None
    return Mesh(layout, place_of(rank, layout), none, none, none)


@pytest.mark.parametrize(
    ("layout", "settings", "stage"),
    [
        (Layout(1, 4, 1, 3, 1, 1), {}, 0),
        (Layout(1, 1, 2, 3, 1, 1), {}, 3),
        (Layout(2, 1, 1, 1, 1, 1), {}, 1),
        (Layout(1, 1, 1, 2, 1, 1), {"offload": True}, 2),
        (Layout(1, 1, 1, 1, 1, 1), {"precision": "bf16"}, 1),
    ],
)
def test_zero_runs_where_it_has_something_to_share_out_or_to_keep_apart(layout: Layout, settings: dict[str, Any], stage: int) -> None:
    assert zero_stage(layout, ParallelSection(zero=layout.zero, **settings)) == stage


def test_without_zero_deepspeed_clips_nothing() -> None:
    layout = Layout(2, 1, 1, 0, 4, 3)
    made = deepspeed_config(layout, 0, 1.0, ParallelSection(zero=0))
    assert (made["gradient_clipping"], made["zero_optimization"]["stage"]) == (0.0, 0)
    assert (made["train_micro_batch_size_per_gpu"], made["gradient_accumulation_steps"]) == (4, 3)


def test_offload_and_precision_reach_deepspeed() -> None:
    made = deepspeed_config(Layout(2, 1, 1, 2, 4, 3), 2, 0.5, ParallelSection(zero=2, offload=True, precision="bf16"))
    assert made["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert made["bf16"] == {"enabled": True}
    assert made["gradient_clipping"] == 0.5


def test_a_shard_knows_its_place_in_the_logical_tensor() -> None:
    layout = Layout(1, 4, 1, 1, 1, 1)
    column = shard_of("blocks.0.attention.q.weight", (8, 32), mesh(layout, 3))
    row = shard_of("blocks.0.ffn.down.weight", (32, 16), mesh(layout, 1))
    whole = shard_of("blocks.0.attention.out.bias", (32,), mesh(layout, 2))
    assert column == ((32, 32), Box((24, 0), (8, 32)))
    assert row == ((32, 64), Box((0, 16), (32, 16)))
    assert whole == ((32,), Box((0,), (32,)))
