"""Scalars that the model is told beside the caption, each as one more token to attend to: how fast, how much motion, how clean a context.

A value that is not told (NaN) is no token at all. Used by videomar.py; the paper has none of them (they answer its weak point, motion).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.heads.network import timestep_embedding

FREQUENCIES = 256

# The value of which each condition is a multiple; features are of its logarithm, so what counts is the ratio between two values.
UNITS = {
    "fps": 1.0,  # video frames per second
    "motion": 0.01,  # mean absolute luma difference of consecutive video frames, luma in 0..1
    "context_noise": 0.01,  # standard deviation of the noise on the clean context, in normalised latents
}


class Conditions(nn.Module):
    """One linear per condition over sinusoidal features of log(1 + value / unit)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.units = [UNITS[name] for name in config.conditions]
        self.embeds = nn.ModuleList(nn.Linear(FREQUENCIES, config.width) for _ in config.conditions)

    def forward(self, values_BQ: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, Q, D] of the values, and which of them are told [B, Q]."""
        told_BQ = ~values_BQ.isnan()
        tokens = []
        for embed, unit, value_B in zip(self.embeds, self.units, values_BQ.nan_to_num().unbind(1), strict=True):
            features = timestep_embedding(100.0 * torch.log1p(value_B / unit), FREQUENCIES)
            tokens.append(embed(features.to(embed.get_parameter("weight").dtype)))
        return torch.stack(tokens, dim=1), told_BQ
