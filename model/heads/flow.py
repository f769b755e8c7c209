"""A rectified-flow head: straight paths from noise to latent, a velocity to follow, few steps.

2209.03003; logit-normal times from 2403.03206.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.heads import row_noise
from model.heads.network import GuidedSteps, HeadNetwork

TIME_SCALE = 1000.0  # the network's time features expect the range of the DDPM's steps


class FlowHead(nn.Module):
    """x_t = (1 - t) x0 + t noise; the network predicts the velocity noise - x0.

    Temperature scales the noise that a sample starts from: below 1 samples keep to the likelier part of the distribution.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.channels, self.repeats, self.solver = config.latent_channels, config.head_repeats, config.flow_solver
        self.network = HeadNetwork(config, config.latent_channels)

    def zero_init(self) -> None:
        self.network.zero_init()

    def draw(self, rng: np.random.Generator, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        times = 1.0 / (1.0 + np.exp(-rng.standard_normal((tokens, self.repeats), dtype=np.float32)))
        return times, rng.standard_normal((tokens, self.repeats, self.channels), dtype=np.float32)

    def loss(self, hidden_MD: Tensor, latents_MC: Tensor, draws: tuple[Tensor, Tensor]) -> Tensor:
        t, noise = (part.to(latents_MC.dtype) for part in draws)
        x0, at = latents_MC[:, None], t[..., None]
        features, condition = self.network.time_features(t * TIME_SCALE, x0.dtype), self.network.condition(hidden_MD)[:, None]
        velocity = self.network((1 - at) * x0 + at * noise, self.network.modulations(features, condition))
        return (velocity - (noise - x0)).square().mean(dim=(1, 2))

    def sample(
        self,
        hidden_MD: Tensor,
        null_MD: Tensor | None,
        guidance: float,
        steps: int,
        temperature: float,
        rngs: Sequence[np.random.Generator],
    ) -> Tensor:
        """Integrate from t = 1 to 0 in `steps` equal steps, by Euler's or Heun's rule (which evaluates the velocity twice)."""
        conditions = self.network.condition(hidden_MD if null_MD is None else torch.cat([hidden_MD, null_MD]))
        times, length = torch.linspace(1.0, 0.0, steps + 1, device=hidden_MD.device), 1.0 / steps
        features = self.network.time_features(times * TIME_SCALE, hidden_MD.dtype)
        guided = GuidedSteps(self.network, features, conditions, guidance)
        x = row_noise(rngs, 1, hidden_MD, self.channels)[0] * temperature
        for step in range(steps):
            velocity = guided(x, step)
            ahead = x - length * velocity
            if self.solver == "heun" and step + 1 < steps:
                velocity = (velocity + guided(ahead, step + 1)) / 2
                ahead = x - length * velocity
            x = ahead
        return x
