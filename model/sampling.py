"""generate(): image to video, frame by frame, with a cache (arXiv 2506.14168, section 3.3).

Called by whatever wants videos of a trained model; owns no state but the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.cache import KVCache
from model.reveal import reveal_schedule
from model.rope3d import grid_positions
from model.videomar import VideoMAR


@dataclass(frozen=True)
class SamplingConfig:
    """How to sample: reveal iterations per frame, denoising steps per token, final guidance weight (1 switches the null branch off)."""

    iterations: int = 64
    head_steps: int = 100
    guidance: float = 3.0
    temperature: Callable[[int], float] | None = None


def progressive_temperature(generated: int) -> float:
    """tau of the t-th generated frame (from 0): 0.9 + 10^-(t+1), so 1.0, 0.91, 0.901, ... Early frames set the motion."""
    return 0.9 + 10.0 ** -(generated + 1)


def guidance_weight(final: float, masked: int, tokens: int) -> float:
    """Linear schedule w_k = 1 + (w - 1) (S - masked) / S: little guidance while most of the frame is unknown."""
    return 1.0 + (final - 1.0) * (tokens - masked) / tokens


class FrameSampler:
    """A video in the making: cached finished frames, the conditional rows first and, under guidance, their null-text twins behind them."""

    def __init__(
        self, model: VideoMAR, text_BKE: Tensor, length_B: Tensor, grid: tuple[int, int], frames: int, config: SamplingConfig
    ) -> None:
        self.model, self.grid, self.config = model, grid, config
        self.branches = 1 if config.guidance == 1.0 else 2
        self.tokens = math.prod(grid)
        rows = len(text_BKE) * self.branches
        drop = torch.arange(rows, device=text_BKE.device) >= len(text_BKE)
        self.text, self.text_mask = model.text_keys(text_BKE.repeat(self.branches, 1, 1), length_B.repeat(self.branches), drop)
        shape = (rows, model.config.heads, frames * self.tokens, model.config.head_dim)
        self.cache = KVCache.allocate(model.config.depth, shape, text_BKE.dtype, text_BKE.device)
        self.kept = 0

    def hidden(self, latents_BLC: Tensor, masked_BL: Tensor, frames: int = 1) -> Tensor:
        """Hidden states of the `frames` frames after the kept ones, for every branch: [branches * B, L, D]."""
        places = range(self.kept, self.kept + frames)
        positions = grid_positions(places, *self.grid, device=latents_BLC.device)
        latents, masked = latents_BLC.repeat(self.branches, 1, 1), masked_BL.repeat(self.branches, 1)
        return self.model.trunk(latents, masked, positions, self.text, self.text_mask, cache=self.cache)

    def keep(self, frame_BSC: Tensor) -> None:
        """One pass over a clean frame writes its keys and values for good; exactly what training's forward computes for it."""
        self.hidden(frame_BSC, torch.zeros(frame_BSC.shape[:2], dtype=torch.bool, device=frame_BSC.device))
        self.cache.advance(self.tokens)
        self.kept += 1

    def next_frame(self, rngs: Sequence[np.random.Generator], temperature: float) -> Tensor:
        """Draw one frame [B, S, C]: every iteration sees the whole frame and fixes more of its tokens, in a random order per sample."""
        samples, device = len(rngs), self.text_mask.device
        order = torch.from_numpy(np.stack([rng.permutation(self.tokens) for rng in rngs])).to(device)
        latents = torch.zeros(samples, self.tokens, self.model.config.latent_channels, device=device, dtype=self.cache.keys[0].dtype)
        masked = torch.ones(samples, self.tokens, dtype=torch.bool, device=device)
        for start, stop in reveal_schedule(self.config.iterations, self.tokens):
            chosen = order[:, start:stop]
            hidden = self.hidden(latents, masked).gather(
                1, chosen.repeat(self.branches, 1)[..., None].expand(-1, -1, self.model.config.width)
            )
            conditional, *null = hidden.flatten(0, 1).chunk(self.branches)
            weight = guidance_weight(self.config.guidance, self.tokens - stop, self.tokens)
            drawn = self.model.head.sample(conditional, null[0] if null else None, weight, self.config.head_steps, temperature, rngs)
            latents.scatter_(1, chosen[..., None].expand(-1, -1, latents.shape[-1]), drawn.view(samples, stop - start, -1))
            masked.scatter_(1, chosen, False)
        return latents


@torch.no_grad()
def generate(
    model: VideoMAR,
    given_BTHWC: Tensor,
    text_BKE: Tensor,
    length_B: Tensor,
    frames: int,
    config: SamplingConfig,
    rngs: Sequence[np.random.Generator],
    on_frame: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Continue the given latent frames to `frames` frames: [B, frames, H, W, C].

    One generator per sample; on_frame gets the index and [B, H, W, C] of each frame as it is done.
    """
    height, width, channels = given_BTHWC.shape[2:]
    sampler = FrameSampler(model, text_BKE, length_B, (height, width), frames, config)
    video = [frame.flatten(1, 2) for frame in given_BTHWC.unbind(1)]
    temperature = config.temperature or progressive_temperature
    for frame in video:
        sampler.keep(frame)
    for generated in range(frames - len(video)):
        video.append(sampler.next_frame(rngs, temperature(generated)))
        if on_frame is not None:
            on_frame(len(video) - 1, video[-1].view(-1, height, width, channels))
        if len(video) < frames:
            sampler.keep(video[-1])
    return torch.stack(video, dim=1).view(len(text_BKE), frames, height, width, channels)
