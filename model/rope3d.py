"""3-D rotary position embedding for any set of (t, h, w) positions (VideoMAR section 3). Used by the attention layers only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Rotary = tuple[Tensor, Tensor]


def grid_positions(frames: Sequence[int], height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Positions [L, 3] = (t, h, w) of the tokens of whole latent frames, frame by frame and row by row."""
    axes = [torch.as_tensor(list(frames)), torch.arange(height), torch.arange(width)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3).to(device)


def rotary_table(positions_L3: Tensor, head_dim: int, base: float, split: tuple[int, int, int], dtype: torch.dtype) -> Rotary:
    """cos and sin, each [L, head_dim / 2]: the pairs of a head are split t:h:w in contiguous parts, with frequencies base^(-i/n)."""
    pairs = head_dim // 2
    angles = []
    for axis, part in enumerate(split):
        count = pairs * part // sum(split)
        exponents = torch.arange(count, dtype=torch.float64, device=positions_L3.device) / count
        angles.append(positions_L3[:, axis, None].double() * base**-exponents)
    angles_LP = torch.cat(angles, dim=-1)
    return angles_LP.cos().to(dtype), angles_LP.sin().to(dtype)


def rotate(x_BNLd: Tensor, rotary: Rotary) -> Tensor:
    """Turn channel pair (j, j + head_dim / 2) of every head by its token's angle (rotate-half convention)."""
    cos, sin = rotary
    first, second = x_BNLd.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
