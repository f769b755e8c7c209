"""The tensor-parallel plan speaks of every parameter of the real model, and of the right ones."""

from __future__ import annotations

import pytest

from model.config import ModelConfig
from model.videomar import VideoMAR
from trainer.parallel.tensor import is_partial, kind_of, partition_dim

CONFIG = ModelConfig(width=32, depth=2, heads=4, latent_channels=4, text_width=6, text_tokens=5, head_width=16, head_depth=2)
NAMES = [name for name, _ in VideoMAR(CONFIG).named_parameters()]


def test_all_matrices_of_the_blocks_are_cut_and_nothing_else() -> None:
    cut = {name for name in NAMES if partition_dim(name) is not None}
    assert cut == {name for name in NAMES if name.startswith("blocks.") and name.endswith(".weight") and "norm" not in name}


@pytest.mark.parametrize(
    ("name", "dim"),
    [
        ("blocks.0.attention.q.weight", 0),
        ("blocks.11.cross_attention.v.weight", 0),
        ("blocks.0.attention.out.weight", 1),
        ("blocks.0.attention.out.bias", None),
        ("blocks.1.ffn.up.weight", 0),
        ("blocks.1.ffn.up.bias", 0),
        ("blocks.1.ffn.down.weight", 1),
        ("blocks.0.attention.q_norm.weight", None),
        ("head.network.blocks.0.up.weight", None),
        ("text_embed.weight", None),
    ],
)
def test_the_cut_dimension_follows_from_the_name(name: str, dim: int | None) -> None:
    assert partition_dim(name) == dim


def test_only_linears_of_the_blocks_have_a_kind() -> None:
    assert kind_of("blocks.3.cross_attention.out") == "row"
    assert kind_of("head.network.blocks.0.up") is None
    assert kind_of("") is None


def test_norms_of_heads_and_the_null_text_are_always_sums_over_the_group() -> None:
    partial = {name for name in NAMES if is_partial(name, megatron_sp=False)}
    assert partial == {name for name in NAMES if "q_norm" in name or "k_norm" in name} | {"null_text"}


def test_under_megatron_sp_everything_whole_is_a_sum_but_the_text_projection() -> None:
    partial = {name for name in NAMES if is_partial(name, megatron_sp=True)}
    whole = {name for name in NAMES if partition_dim(name) is None}
    assert whole - partial == {"text_embed.weight", "text_embed.bias"}
    assert {"embed.weight", "mask_token", "norm.bias", "blocks.0.attention.out.bias", "head.network.final.weight"} <= partial <= whole
