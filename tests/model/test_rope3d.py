"""3-D rotary embedding against its closed form: relative, split over the axes, valid for any set of positions."""

from __future__ import annotations

import math

import torch

from model.rope3d import grid_positions, rotary_table, rotate

HEAD, BASE, SPLIT = 16, 1e4, (2, 1, 1)


def turned(x: torch.Tensor, position: list[int]) -> torch.Tensor:
    table = rotary_table(torch.tensor([position]), HEAD, BASE, SPLIT, torch.float64)
    return rotate(x.view(1, 1, 1, HEAD), table).flatten()


def test_positions_run_frame_by_frame_and_row_by_row() -> None:
    assert grid_positions([3, 5], 1, 2).tolist() == [[3, 0, 0], [3, 0, 1], [5, 0, 0], [5, 0, 1]]


def test_scores_depend_on_the_difference_of_positions_on_every_axis() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(HEAD, dtype=torch.float64, generator=generator) for _ in range(2))
    here, there = turned(q, [1, 2, 3]) @ turned(k, [4, 1, 7]), turned(q, [11, 22, 33]) @ turned(k, [14, 21, 37])
    torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-9)
    for axis in range(3):
        moved = [4, 1, 7]
        moved[axis] += 1
        assert not torch.isclose(here, turned(q, [1, 2, 3]) @ turned(k, moved), rtol=1e-6)


def test_pairs_are_split_two_to_one_to_one_with_the_paper_frequencies() -> None:
    cos, sin = rotary_table(torch.tensor([[1, 2, 3]]), HEAD, BASE, SPLIT, torch.float64)
    angles = [BASE ** -(i / 4) for i in range(4)] + [2 * BASE ** -(i / 2) for i in range(2)] + [3 * BASE ** -(i / 2) for i in range(2)]
    torch.testing.assert_close(cos[0], torch.tensor([math.cos(angle) for angle in angles], dtype=torch.float64))
    torch.testing.assert_close(sin[0], torch.tensor([math.sin(angle) for angle in angles], dtype=torch.float64))


def test_rotation_keeps_length_and_position_zero_keeps_all() -> None:
    x = torch.randn(HEAD, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(turned(x, [9, 4, 2]).norm(), x.norm())
    assert torch.equal(turned(x, [0, 0, 0]), x)
