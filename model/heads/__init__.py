"""Generative heads: given a token's trunk output, the distribution of its latent.

One protocol, so that trunk and sampler know none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor


class Head(Protocol):
    """What the model, the trainer and the sampler ask of a head."""

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
