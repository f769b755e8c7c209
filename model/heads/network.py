"""The small adaLN MLP inside every head (MAR 2406.11838, section 3.3): noisy latent, time and condition in, one or two vectors out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig

FREQUENCIES = 256
AHEAD = 1 << 24  # numbers of modulation that a sampler computes at once


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

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale, gate = modulation.chunk(3, dim=-1)
        return torch.addcmul(x, gate, self.down(F.silu(self.up(torch.addcmul(shift, self.norm(x), 1 + scale)))))


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

    def modulations(self, time: Tensor, condition: Tensor) -> list[Tensor]:
        """What time features and the projected condition, which broadcast, do to each block [..., 3 width] and output [..., 2 width]."""
        both = F.silu(time + condition)
        return [*(block.get_submodule("modulation")(both) for block in self.blocks), self.final_modulation(both)]

    def forward(self, x: Tensor, modulations: Sequence[Tensor]) -> Tensor:
        """Output [..., outputs] for noisy latents x [..., C]."""
        h = self.embed(x)
        for block, modulation in zip(self.blocks, modulations, strict=False):
            h = block(h, modulation)
        shift, scale = modulations[-1].chunk(2, dim=-1)
        return self.final(torch.addcmul(shift, self.final_norm(h), 1 + scale))


class GuidedSteps:
    """The network's output for every row of x at each of a sampler's times.

    With twice as many conditions as rows, the second half is the null branch to move away from. Only the first C channels are
    extrapolated; what stands behind them (a variance) is the conditional branch's. What time and condition do is known before the
    first step: it is computed for many steps at once, as a step of a few rows costs the calls and not the numbers.
    """

    def __init__(self, network: HeadNetwork, features_KH: Tensor, conditions_MH: Tensor, guidance: float) -> None:
        self.network, self.features, self.conditions, self.guidance = network, features_KH, conditions_MH, guidance
        self.at_once = max(1, AHEAD // (conditions_MH.numel() * (3 * len(network.blocks) + 2)))
        self.modulations: tuple[int, list[Tensor]] = (-1, [])

    def __call__(self, x_MC: Tensor, step: int) -> Tensor:
        part, place = divmod(step, self.at_once)
        if part != self.modulations[0]:
            features = self.features[part * self.at_once : (part + 1) * self.at_once, None]
            self.modulations = part, self.network.modulations(features, self.conditions)
        here = [modulation[place] for modulation in self.modulations[1]]
        if len(self.conditions) == len(x_MC):
            return self.network(x_MC, here)
        output, null = self.network(torch.cat([x_MC, x_MC]), here).chunk(2)
        channels = x_MC.shape[-1]
        extrapolated = torch.lerp(null[:, :channels], output[:, :channels], self.guidance)
        return torch.cat([extrapolated, output[:, channels:]], dim=-1)
