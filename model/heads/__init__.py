"""Generative heads: given a token's trunk output, the distribution of its latent.

One protocol, so that trunk and sampler know none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Head(Protocol):
    """What the model, the trainer and the sampler ask of a head."""

    def zero_init(self) -> None:
        """Set the weights that start at zero, after all others were drawn."""
        ...

    def draw(self, rng: np.random.Generator, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """The head's randomness for `tokens` supervised tokens of one sample: times [M, R] and noise [M, R, C]."""
        ...

    def loss(self, hidden_MD: Tensor, latents_MC: Tensor, draws: tuple[Tensor, Tensor]) -> Tensor:
        """Loss [M] per token, averaged over its R repeats and C channels."""
        ...

    def sample(
        self,
        hidden_MD: Tensor,
        null_MD: Tensor | None,
        guidance: float,
        steps: int,
        temperature: float,
        rngs: Sequence[np.random.Generator],
    ) -> Tensor:
        """Latents [M, C] drawn for every row; rows are dealt to `rngs` in equal consecutive parts, one generator per sample."""
        ...


def full_precision(x: Tensor) -> Tensor:
    """At least fp32: what the head gets of a trunk in bf16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def row_noise(rngs: Sequence[np.random.Generator], draws: int, rows_MD: Tensor, channels: int) -> Tensor:
    """N(0, 1) noise [draws, M, C] like the rows: every sample's part comes from its own generator, so rows do not depend on each other."""
    parts = [rng.standard_normal((draws, len(rows_MD) // len(rngs), channels), dtype=np.float32) for rng in rngs]
    return torch.from_numpy(np.concatenate(parts, axis=1)).to(rows_MD)
