"""generate(): image to video, video continuation or text to video, frame by frame, with a cache (arXiv 2506.14168, section 3.3).

Called by whatever wants videos of a trained model; owns no state but the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from model.cache import KVCache
from model.reveal import reveal_schedule
from model.rope3d import grid_positions
from model.videomar import VideoMAR
from model.visibility import Part, Visibility, frame_causal

Temperature = Callable[[int], float]
GuidanceSchedule = Callable[[float, int, int], float]


def progressive_temperature(generated: int) -> float:
    """tau of the t-th generated frame (from 0): 0.9 + 10^-(t+1), so 1.0, 0.91, 0.901, ... Early frames set the motion."""
    return 0.9 + 10.0 ** -(generated + 1)


def constant_temperature(value: float) -> Temperature:
    """The same tau for every frame."""
    return lambda generated: value


def linear_guidance(final: float, masked: int, tokens: int) -> float:
    """w_k = 1 + (w - 1) (S - masked) / S, with the tokens still masked after the iteration: little while most is unknown."""
    return 1.0 + (final - 1.0) * (tokens - masked) / tokens


def constant_guidance(final: float, masked: int, tokens: int) -> float:
    """The final weight in every iteration."""
    return final


@dataclass(frozen=True)
class SamplingConfig:
    """How to sample. Raises ValueError for values that cannot be.

    iterations: reveals per frame; head_steps: denoising steps per token; guidance: the final weight, 1 switches the second branch off;
    away_from: what the second branch lacks (text | history | both); sink, window: latent frames that stay visible, the first ones and
    the newest (window 0: all); context_noise: standard deviation of noise added to every context frame, for models trained with it.
    """

    iterations: int = 64
    head_steps: int = 100
    guidance: float = 3.0
    guidance_schedule: GuidanceSchedule = linear_guidance
    away_from: str = "text"
    temperature: Temperature = progressive_temperature
    sink: int = 1
    window: int = 0
    context_noise: float = 0.0

    def __post_init__(self) -> None:
        if min(self.iterations, self.head_steps) < 1:
            raise ValueError("iterations and head_steps must be at least 1")
        if self.away_from not in ("text", "history", "both"):
            raise ValueError(f"away_from is {self.away_from!r}: choose text, history or both")


class Branch:
    """One way to see the same videos: with its text or the null text, with its history or without."""

    def __init__(self, model: VideoMAR, text_BKE: Tensor, length_B: Tensor, null_text: bool, cache: KVCache | None) -> None:
        self.model, self.cache = model, cache
        drop = torch.full((len(text_BKE),), null_text, device=text_BKE.device)
        self.text, self.text_mask = model.text_keys(text_BKE, length_B, drop)

    def hidden(self, latents_BLC: Tensor, masked_BL: Tensor, positions_L3: Tensor, visibility: Visibility | None = None) -> Tensor:
        """Hidden states [B, L, D] of the current tokens."""
        return self.model.trunk(latents_BLC, masked_BL, positions_L3, self.text, self.text_mask, visibility, self.cache)


class FrameSampler:
    """Videos in the making: the branches with what they keep of finished frames, and how many there are."""

    def __init__(
        self, model: VideoMAR, text_BKE: Tensor, length_B: Tensor, grid: tuple[int, int], frames: int, given: int, config: SamplingConfig
    ) -> None:
        self.model, self.grid, self.config, self.done = model, grid, config, 0
        self.tokens = math.prod(grid)
        kept = frames - 1 if not config.window else min(frames - 1, config.sink + config.window - 1)
        if given > kept and frames > given:
            raise ValueError(f"{given} given frames do not fit a window of {config.sink} + {config.window - 1} frames")
        shape = (len(text_BKE), model.config.heads, model.config.head_dim)
        sizes = (min(config.sink, kept) * self.tokens, kept * self.tokens, max(given, 1) * self.tokens)
        cached = partial(KVCache.allocate, model.config.depth, shape, *sizes, text_BKE)
        branch = partial(Branch, model, text_BKE, length_B)
        self.branches = [branch(False, cached())]
        if config.guidance != 1.0:
            self.branches.append(branch(config.away_from != "history", cached() if config.away_from == "text" else None))

    def positions(self, frames: int) -> Tensor:
        """Of the next `frames` frames."""
        return grid_positions(range(self.done, self.done + frames), *self.grid, device=self.branches[0].text_mask.device)

    def keep(self, video_BTSC: Tensor) -> None:
        """One pass over clean frames writes their keys and values for good; exactly what training's forward computes for them."""
        frames = video_BTSC.shape[1]
        latents = video_BTSC.flatten(1, 2)
        clean = torch.zeros(latents.shape[:2], dtype=torch.bool, device=latents.device)
        seen = Visibility(frame_causal, tuple(Part(frame, 0, self.tokens) for frame in range(frames))) if frames > 1 else None
        for branch in self.branches:
            if branch.cache is not None:
                branch.hidden(latents, clean, self.positions(frames), seen)
                branch.cache.keep(frames * self.tokens)
        self.done += frames

    def next_frame(self, rngs: Sequence[np.random.Generator], temperature: float) -> Tensor:
        """Draw one frame [B, S, C]: every iteration sees the whole frame and fixes more of its tokens, in a random order per sample."""
        config, device = self.config, self.branches[0].text_mask.device
        order = torch.from_numpy(np.stack([rng.permutation(self.tokens) for rng in rngs])).to(device)
        latents = self.model.null_text.new_zeros(len(rngs), self.tokens, self.model.config.latent_channels)
        masked = torch.ones(len(rngs), self.tokens, dtype=torch.bool, device=device)
        positions = self.positions(1)
        for start, stop in reveal_schedule(config.iterations, self.tokens):
            chosen = order[:, start:stop]
            rows = chosen[..., None].expand(-1, -1, self.model.config.width)
            hidden = [branch.hidden(latents, masked, positions).gather(1, rows).flatten(0, 1) for branch in self.branches]
            weight = config.guidance_schedule(config.guidance, self.tokens - stop, self.tokens)
            drawn = self.model.head.sample(hidden[0], hidden[1] if len(hidden) > 1 else None, weight, config.head_steps, temperature, rngs)
            latents.scatter_(1, chosen[..., None].expand(-1, -1, latents.shape[-1]), drawn.view(len(rngs), stop - start, -1))
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
    """Continue the given latent frames (none: from text alone) to `frames` frames: [B, frames, H, W, C].

    One generator per sample; on_frame gets the index and [B, H, W, C] of each frame as it is done. Raises ValueError when the videos do
    not fit the model or the window.
    """
    _, given, height, width, channels = given_BTHWC.shape
    if channels != model.config.latent_channels:
        raise ValueError(
            f"the given frames have {channels} latent channels, the model {model.config.latent_channels}: another tokenizer made them"
        )
    if config.guidance != 1.0 and config.away_from != "history" and not model.config.text_dropout:
        raise ValueError("guidance away from text needs a null branch, and this model was trained with text_dropout 0")
    sampler = FrameSampler(model, text_BKE, length_B, (height, width), frames, given, config)
    video = list(given_BTHWC.flatten(2, 3).unbind(1))
    if video and len(video) < frames:
        sampler.keep(noisy(torch.stack(video, dim=1), config.context_noise, rngs))
    for generated in range(frames - given):
        video.append(sampler.next_frame(rngs, config.temperature(generated)))
        if on_frame is not None:
            on_frame(len(video) - 1, video[-1].view(-1, height, width, channels))
        if len(video) < frames:
            sampler.keep(noisy(video[-1][:, None], config.context_noise, rngs))
    return torch.stack(video, dim=1).view(len(text_BKE), frames, height, width, channels)


def noisy(video: Tensor, level: float, rngs: Sequence[np.random.Generator]) -> Tensor:
    """The frames with noise of standard deviation `level`, each sample's from its own generator."""
    if not level:
        return video
    noise = np.stack([rng.standard_normal(video.shape[1:], dtype=np.float32) for rng in rngs])
    return video + level * torch.from_numpy(noise).to(video)
