"""The small adaLN MLP inside every head (MAR 2406.11838, section 3.3): noisy latent, time and condition in, one or two vectors out."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig

FREQUENCIES = 256


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoidal features [..., width] of times t in [0, 1000)."""
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(width // 2, device=t.device) / (width // 2))
    angles = t[..., None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Linear(nn.Linear):
    """Computes in its input's precision, however its weights are stored: under bf16 the head stays in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class LayerNorm(nn.LayerNorm):
    """As Linear."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class AdaLNBlock(nn.Module):
    """Residual MLP whose LayerNorm is shifted, scaled and gated by the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(width, eps=1e-6)
        self.up, self.down = Linear(width, width), Linear(width, width)
        self.modulation = Linear(width, 3 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(condition).chunk(3, dim=-1)
        return x + gate * self.down(F.silu(self.up(self.norm(x) * (1 + scale) + shift)))


class HeadNetwork(nn.Module):
    """C channels in, `outputs` channels out, modulated by time and trunk output."""

    def __init__(self, config: ModelConfig, outputs: int) -> None:
        super().__init__()
        width = config.head_width
        self.embed = Linear(config.latent_channels, width)
        self.condition = Linear(config.width, width)
        self.time = nn.Sequential(Linear(FREQUENCIES, width), nn.SiLU(), Linear(width, width))
        self.blocks = nn.ModuleList(AdaLNBlock(width) for _ in range(config.head_depth))
        self.final_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.final_modulation = Linear(width, 2 * width)
        self.final = Linear(width, outputs)

    def zero_init(self) -> None:
        """adaLN and output layers start at zero: every block starts as the identity and the prediction as 0."""
        modulations = [module.modulation for module in self.blocks if isinstance(module, AdaLNBlock)]
        for layer in (*modulations, self.final_modulation, self.final):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def time_features(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """[..., head_width] of times t [...]; a sampler computes those of all its steps at once."""
        return self.time(timestep_embedding(t, FREQUENCIES).to(dtype))

    def forward(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Output [..., outputs] for noisy latents x [..., C] under time features and the projected condition, which broadcast."""
        modulation, h = F.silu(time + condition), self.embed(x)
        for block in self.blocks:
            h = block(h, modulation)
        shift, scale = self.final_modulation(modulation).chunk(2, dim=-1)
        return self.final(self.final_norm(h) * (1 + scale) + shift)


def guided(network: HeadNetwork, x: Tensor, time: Tensor, conditions: Tensor, guidance: float) -> Tensor:
    """The network's output for every row of x at one time, given by its features.

    With twice as many conditions as rows, the second half is the null branch to move away from. Only the
    first C channels are extrapolated; what stands behind them (a variance) is the conditional branch's.
    """
    if len(conditions) == len(x):
        return network(x, time, conditions)
    output, null = network(torch.cat([x, x]), time, conditions).chunk(2)
    channels = x.shape[-1]
    extrapolated = null[:, :channels] + guidance * (output[:, :channels] - null[:, :channels])
    return torch.cat([extrapolated, output[:, channels:]], dim=-1)
