"""KVCache: the keys and values a cached sampler keeps, as an explicit object.

Created by sampling.py, written by block.py, owned by no module.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class KVCache:
    """Self-attention keys and values of finished frames, one [B, N, capacity, head_dim] pair per block (keys are stored rotated).

    Every forward writes its tokens after the first `length` ones; only `advance` makes them stay. So a frame's many reveal
    iterations overwrite each other, and the clean pass that ends the frame is kept.
    """

    keys: list[Tensor]
    values: list[Tensor]
    length: int = 0
    text: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def allocate(cls, depth: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> KVCache:
        """Room for `depth` blocks of keys and values of `shape` [B, N, capacity, head_dim]."""
        keys, values = ([torch.empty(shape, dtype=dtype, device=device) for _ in range(depth)] for _ in range(2))
        return cls(keys, values)

    def write(self, block: int, k_BNLd: Tensor, v_BNLd: Tensor) -> tuple[Tensor, Tensor]:
        """Place the current tokens behind the kept ones and return both together, as views."""
        stop = self.length + k_BNLd.shape[2]
        self.keys[block][:, :, self.length : stop] = k_BNLd
        self.values[block][:, :, self.length : stop] = v_BNLd
        return self.keys[block][:, :, :stop], self.values[block][:, :, :stop]

    def advance(self, tokens: int) -> None:
        """Keep the last written `tokens` tokens: their frame is finished."""
        self.length += tokens
