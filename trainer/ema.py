"""The exponential moving average of the weights, kept where and as the masters are: sharded like them, in fp32, one fused update.

Owned by the engine; sampling and export read it from a commit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Ema:
    """averages[i] follows masters[i]: average += (1 - decay) * (master - average) per counted step."""

    def __init__(self, masters: Sequence[Tensor], decay: float) -> None:
        self.masters, self.decay = [master.detach() for master in masters], decay
        self.averages = [master.clone() for master in self.masters]

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(self.averages, self.masters, 1.0 - self.decay)
