"""3-D rotary embedding against its closed form: relative, split over the axes, valid for any set of positions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from model.config import ModelConfig
from model.rope3d import grid_positions, pair_axes, rotary_table, rotate

HEAD, BASE = 16, 1e4
CONTIGUOUS = ModelConfig(width=HEAD, heads=1)
INTERLEAVED = replace(CONTIGUOUS, rope_interleaved=True)


def turned(x: torch.Tensor, position: list[int], config: ModelConfig = CONTIGUOUS) -> torch.Tensor:
    table = rotary_table(torch.tensor([position]), config, torch.float64)
    return rotate(x.view(1, 1, 1, HEAD), table).flatten()


def test_positions_run_frame_by_frame_and_row_by_row() -> None:
    assert grid_positions([3, 5], 1, 2).tolist() == [[3, 0, 0], [3, 0, 1], [5, 0, 0], [5, 0, 1]]


@pytest.mark.parametrize("config", [CONTIGUOUS, INTERLEAVED], ids=["contiguous", "interleaved"])
def test_scores_depend_on_the_difference_of_positions_on_every_axis(config: ModelConfig) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(HEAD, dtype=torch.float64, generator=generator) for _ in range(2))
    here, there = (
        turned(q, [1, 2, 3], config) @ turned(k, [4, 1, 7], config),
        turned(q, [11, 22, 33], config) @ turned(k, [14, 21, 37], config),
    )
    torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-9)
    for axis in range(3):
        moved = [4, 1, 7]
        moved[axis] += 1
        assert not torch.isclose(here, turned(q, [1, 2, 3], config) @ turned(k, moved, config), rtol=1e-6)


def test_pairs_are_split_two_to_one_to_one_with_the_paper_frequencies() -> None:
    cos, sin = rotary_table(torch.tensor([[1, 2, 3]]), CONTIGUOUS, torch.float64)
    angles = [BASE ** -(i / 4) for i in range(4)] + [2 * BASE ** -(i / 2) for i in range(2)] + [3 * BASE ** -(i / 2) for i in range(2)]
    torch.testing.assert_close(cos[0], torch.tensor([math.cos(angle) for angle in angles], dtype=torch.float64))
    torch.testing.assert_close(sin[0], torch.tensor([math.sin(angle) for angle in angles], dtype=torch.float64))


def test_rotation_keeps_length_and_position_zero_keeps_all() -> None:
    x = torch.randn(HEAD, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(turned(x, [9, 4, 2]).norm(), x.norm())
    assert torch.equal(turned(x, [0, 0, 0]), x)


def test_interleaved_pairs_give_every_axis_high_and_low_frequencies() -> None:
    axes = pair_axes(32, (2, 1, 1), interleaved=True)
    assert [axis for axis, _ in axes[:8]] == [0, 0, 1, 2, 0, 0, 1, 2]
    for axis in range(3):
        exponents = [exponent for own, exponent in axes if own == axis]
        assert min(exponents) < 0.1
        assert max(exponents) > 0.85
        assert len(exponents) == (16, 8, 8)[axis]


def test_positions_are_scaled_and_bases_chosen_per_axis() -> None:
    scaled = replace(CONTIGUOUS, rope_scale=(1.0, 0.5, 0.5))
    for part in range(2):
        table = rotary_table(torch.tensor([[3, 2, 4]]), scaled, torch.float64)[part]
        torch.testing.assert_close(table, rotary_table(torch.tensor([[3, 1, 2]]), CONTIGUOUS, torch.float64)[part])
    other = replace(CONTIGUOUS, rope_base=(BASE, 50.0, BASE))
    cos, base_cos = (rotary_table(torch.tensor([[3, 2, 4]]), config, torch.float64)[0][0] for config in (other, CONTIGUOUS))
    assert [bool(a == b) for a, b in zip(cos, base_cos, strict=True)] == [True] * 5 + [False] + [True] * 2
