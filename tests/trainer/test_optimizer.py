"""Which parameters decay, how an update rounds, and what the learning rate is at every step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from model.config import ModelConfig
from model.videomar import VideoMAR
from trainer.optimizer import GatedAdamW, adamw, learning_rate, parameter_groups
from trainer.sections import TrainSection

CONFIG = ModelConfig(width=32, depth=2, heads=2, latent_channels=4, text_width=6, text_tokens=5, head_width=16, head_depth=2)


def section(**values: Any) -> TrainSection:
    return TrainSection.model_validate(values)


@pytest.fixture(scope="module")
def model() -> VideoMAR:
    return VideoMAR(CONFIG)


def names(model: nn.Module, group: dict[str, Any]) -> list[str]:
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return [by_id[id(parameter)] for parameter in group["params"]]


def test_every_parameter_is_in_one_group_once(model: VideoMAR) -> None:
    groups = parameter_groups(model, 0.02)
    listed = [name for group in groups for name in names(model, group)]
    assert sorted(listed) == sorted(name for name, _ in model.named_parameters())
    assert [group["weight_decay"] for group in groups] == [0.02, 0.0]


def test_the_matrices_of_the_trunk_decay_and_nothing_else(model: VideoMAR) -> None:
    decayed, plain = (names(model, group) for group in parameter_groups(model, 0.02))
    projections = [f"{attention}.{part}" for attention in ("attention", "cross_attention") for part in ("q", "k", "v", "out")]
    expected = [f"blocks.{block}.{layer}.weight" for block in range(CONFIG.depth) for layer in (*projections, "ffn.up", "ffn.down")]
    assert sorted(decayed) == sorted(["embed.weight", "text_embed.weight", *expected])
    head_and_vectors = {
        "mask_token",
        "null_text",
        "norm.weight",
        "embed.bias",
        "head.network.final.weight",
        "blocks.0.attention.q_norm.weight",
    }
    assert head_and_vectors <= set(plain)


def test_the_same_model_always_gives_the_same_order(model: VideoMAR) -> None:
    order = [names(model, group) for group in parameter_groups(model, 0.02)]
    torch.manual_seed(5)
    other = VideoMAR(CONFIG)
    assert [names(other, group) for group in parameter_groups(other, 0.02)] == order


def test_adamw_is_built_from_the_recipe(model: VideoMAR) -> None:
    optimizer = adamw(model, section(lr=3e-3, weight_decay=0.1, betas=(0.8, 0.9)))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert {(group["lr"], group["betas"], group["eps"]) for group in optimizer.param_groups} == {(3e-3, (0.8, 0.9), 1e-8)}


def test_without_gradients_only_decayed_parameters_move() -> None:
    model = VideoMAR(CONFIG)
    nn.init.ones_(model.get_parameter("head.network.final.weight"))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    adamw(model, section(lr=0.1, weight_decay=0.5)).step()
    decayed, _ = (names(model, group) for group in parameter_groups(model, 0.5))
    assert {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])} == set(decayed)
    torch.testing.assert_close(model.embed.weight.detach(), before["embed.weight"] * (1 - 0.1 * 0.5))


def test_the_warm_up_is_linear_and_reaches_the_full_rate_at_its_last_step() -> None:
    train = section(lr=1e-2, warmup_steps=4)
    assert [learning_rate(train, 1.0, step) for step in range(6)] == pytest.approx([2.5e-3, 5e-3, 7.5e-3, 1e-2, 1e-2, 1e-2])


def test_without_a_warm_up_the_first_step_has_the_full_rate() -> None:
    assert learning_rate(section(lr=1e-2, warmup_steps=0), 1.0, 0) == 1e-2


@given(st.integers(0, 1000), st.integers(0, 2000), st.floats(0.01, 10.0))
def test_the_rate_never_falls_and_a_stage_scales_it(warmup: int, step: int, scale: float) -> None:
    train = section(lr=2e-3, warmup_steps=warmup)
    here, later = (learning_rate(train, scale, at) for at in (step, step + 1))
    assert 0 < here <= later <= train.lr * scale
    assert here == pytest.approx(scale * learning_rate(train, 1.0, step))


def test_an_update_rounds_alike_wherever_a_tensor_is_cut() -> None:
    draw = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(1000, generator=draw), torch.randn(20, 1000, generator=draw) * 1e-3

    def trained(size: int) -> tuple[Tensor, Tensor]:
        parts = [nn.Parameter(part.clone()) for part in start.split(size)]
        optimizer = GatedAdamW([{"params": parts}], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.02, fused=True)
        for gradient in gradients:
            for part, own in zip(parts, gradient.split(size), strict=True):
                part.grad = own.clone()
            optimizer.step()
        return torch.cat([part.detach() for part in parts]), torch.cat([optimizer.state[part]["exp_avg_sq"] for part in parts])

    whole, squares = trained(1000)
    for size in (16, 37, 992):
        weights, others = trained(size)
        assert torch.equal(weights, whole)
        assert torch.equal(others, squares)
