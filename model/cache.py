"""KVCache: the keys and values a cached sampler keeps, as an explicit object.

Created by sampling.py, written by block.py, owned by no module.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class KVCache:
    """Self-attention keys and values of finished frames, one [B, N, capacity, head_dim] pair per block (keys are stored rotated).

    Every forward writes its tokens after the kept ones; only `keep` makes them stay. So a frame's many reveal iterations overwrite
    each other, and the clean pass that ends the frame is kept. With a window, the first `sink` tokens and the newest ones stay: a full
    cache overwrites its oldest frame in place. Attention does not depend on the order of keys, so nothing is moved.
    """

    keys: list[Tensor]
    values: list[Tensor]
    sink: int  # tokens that are never overwritten
    room: int  # tokens that can be kept; the rest of the capacity takes the current ones
    length: int = 0  # tokens kept
    oldest: int = 0  # where the next frame goes once the room is full

    @classmethod
    def allocate(cls, depth: int, shape: tuple[int, int, int], sink: int, room: int, current: int, like: Tensor) -> KVCache:
        """Caches of `depth` blocks for `shape` [B, N, head_dim], `room` kept tokens and `current` new ones at a time."""
        batch, heads, channels = shape
        tensors = [torch.empty(batch, heads, room + current, channels, dtype=like.dtype, device=like.device) for _ in range(2 * depth)]
        return cls(tensors[:depth], tensors[depth:], sink, room, oldest=sink)

    def write(self, block: int, k_BNLd: Tensor, v_BNLd: Tensor) -> tuple[Tensor, Tensor]:
        """Place the current tokens behind the kept ones and return both together, as views."""
        stop = self.length + k_BNLd.shape[2]
        self.keys[block][:, :, self.length : stop] = k_BNLd
        self.values[block][:, :, self.length : stop] = v_BNLd
        return self.keys[block][:, :, :stop], self.values[block][:, :, :stop]

    def keep(self, frames: int, tokens: int) -> None:
        """Keep the last written `frames` frames of `tokens` tokens each: in free room, or each in the place of the oldest."""
        written = self.length
        for start in range(written, written + frames * tokens, tokens):
            if self.length + tokens <= self.room:
                self.length += tokens
                continue
            for tensor in (*self.keys, *self.values):
                tensor[:, :, self.oldest : self.oldest + tokens] = tensor[:, :, start : start + tokens]
            self.oldest += tokens
            if self.oldest + tokens > self.room:
                self.oldest = self.sink
