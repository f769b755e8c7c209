"""3-D rotary position embedding for any set of (t, h, w) positions (VideoMAR section 3). Used by the attention layers only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.config import ModelConfig

Rotary = tuple[Tensor, Tensor]


def grid_positions(frames: Sequence[int], height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Positions [L, 3] = (t, h, w) of the tokens of whole latent frames, frame by frame and row by row."""
    axes = [torch.as_tensor(list(frames)), torch.arange(height), torch.arange(width)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3).to(device)


def pair_axes(pairs: int, split: tuple[int, int, int], interleaved: bool) -> list[tuple[int, float]]:
    """(axis, exponent) of every channel pair of a head; its frequency is the axis's base^-exponent.

    Contiguous (the paper): one run of pairs per axis, each with exponents i / n. That leaves an axis's run, but not its neighbours',
    with high frequencies. Interleaved (the idea of Lumos-1's MM-RoPE): axes alternate in small groups, so each covers the whole spectrum.
    """
    if interleaved:
        group = [axis for axis, part in enumerate(split) for _ in range(part)]
        return [(group[pair % len(group)], pair / pairs) for pair in range(pairs)]
    counts = [pairs * part // sum(split) for part in split]
    return [(axis, pair / count) for axis, count in enumerate(counts) for pair in range(count)]


def rotary_table(positions_L3: Tensor, config: ModelConfig, dtype: torch.dtype) -> Rotary:
    """cos and sin, each [L, head_dim / 2], of tokens at (t, h, w); positions are scaled per axis first."""
    axes = pair_axes(config.head_dim // 2, config.rope_split, config.rope_interleaved)
    scaled = positions_L3.double() * torch.tensor(config.rope_scale, dtype=torch.float64, device=positions_L3.device)
    frequencies = torch.tensor([config.rope_base[axis] ** -exponent for axis, exponent in axes], dtype=torch.float64)
    angles_LP = scaled[:, [axis for axis, _ in axes]] * frequencies.to(scaled.device)
    return angles_LP.cos().to(dtype), angles_LP.sin().to(dtype)


def rotate(x_BNLd: Tensor, rotary: Rotary) -> Tensor:
    """Turn channel pair (j, j + head_dim / 2) of every head by its token's angle (rotate-half convention), in the table's precision."""
    cos, sin = rotary
    first, second = x_BNLd.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_BNLd.dtype)
