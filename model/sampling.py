"""generate(): image to video, video continuation or text to video, frame by frame, with a cache (arXiv 2506.14168, section 3.3).

Called by whatever wants videos of a trained model; owns no state but the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from model.cache import KVCache
from model.config import ModelConfig
from model.heads import full_precision
from model.reveal import reveal_schedule
from model.rope3d import grid_positions
from model.supervision import units
from model.videomar import VideoMAR
from model.visibility import Part, Visibility, frame_causal

GuidanceSchedule = Callable[[float, int, int], float]


def progressive_temperature(generated: int) -> float:
    """tau of the t-th generated frame (from 0): 0.9 + 10^-(t+1), so 1.0, 0.91, 0.901, ... Early frames set the motion."""
    return 0.9 + 10.0 ** -(generated + 1)


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
    away_from: what the second branch lacks (text | history | both); temperature: of every frame, None for the paper's, which falls;
    sink, window: latent frames that stay visible, the first ones and the newest (window 0: all); context_noise, context_masked: standard
    deviation of noise added to finished frames and fraction of their tokens masked again, for models trained with it; conditions: values
    of the model's conditions, by name.
    """

    iterations: int = 64
    head_steps: int = 100
    guidance: float = 3.0
    guidance_schedule: GuidanceSchedule = linear_guidance
    away_from: str = "text"
    temperature: float | None = None
    sink: int = 1
    window: int = 0
    context_noise: float = 0.0
    context_masked: float = 0.0
    conditions: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if min(self.iterations, self.head_steps) < 1:
            raise ValueError("iterations and head_steps must be at least 1")
        if self.away_from not in ("text", "history", "both"):
            raise ValueError(f"away_from is {self.away_from!r}: choose text, history or both")

    def tau(self, generated: int) -> float:
        """The temperature of the t-th generated frame (from 0)."""
        return progressive_temperature(generated) if self.temperature is None else self.temperature


class Branch:
    """One way to see the same videos: with what they are told (caption, conditions) or the null text, with their history or without."""

    def __init__(self, model: VideoMAR, told: tuple[Tensor, Tensor, Tensor], null: bool, cache: KVCache | None) -> None:
        text_BKE, length_B, conditions_BQ = told
        drop = torch.full((len(text_BKE),), null, device=text_BKE.device)
        self.model, self.cache = model, cache
        self.text, self.text_mask = model.text_keys(text_BKE, length_B, drop, conditions_BQ)

    def hidden(
        self,
        latents_BLC: Tensor,
        masked_BL: Tensor,
        positions_L3: Tensor,
        visibility: Visibility | None = None,
        chosen_BR: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of the current tokens [B, L, D], or of the chosen ones among them [B, R, D]."""
        return self.model.trunk(latents_BLC, masked_BL, positions_L3, self.text, self.text_mask, visibility, self.cache, chosen_BR)


class FrameSampler:
    """Videos in the making: the branches with what they keep of finished frames, and how many there are."""

    def __init__(
        self, model: VideoMAR, told: tuple[Tensor, Tensor, Tensor], grid: tuple[int, int], frames: int, given: int, config: SamplingConfig
    ) -> None:
        self.model, self.grid, self.config, self.done = model, grid, config, 0
        self.tokens, self.device = math.prod(grid), told[0].device
        kept = frames - 1 if not config.window else min(frames - 1, config.sink + config.window - 1)
        if given > kept and frames > given:
            raise ValueError(f"{given} given frames do not fit a window of {config.sink} + {config.window - 1} frames")
        shape = (len(told[0]), model.config.heads, model.config.head_dim)
        current = max(given, model.config.block) * self.tokens
        cached = partial(KVCache.allocate, model.config.depth, shape, min(config.sink, kept) * self.tokens, kept * self.tokens, current)
        branch = partial(Branch, model, told)
        self.branches = [branch(False, cached(told[0]))]
        if config.guidance != 1.0:
            self.branches.append(branch(config.away_from != "history", cached(told[0]) if config.away_from == "text" else None))

    def positions(self, frames: int) -> Tensor:
        """Of the next `frames` frames."""
        return grid_positions(range(self.done, self.done + frames), *self.grid, device=self.device)

    def keep(self, video_BTSC: Tensor, rngs: Sequence[np.random.Generator]) -> None:
        """One pass over finished frames writes their keys and values for good; exactly what training's forward computes for them."""
        frames = video_BTSC.shape[1]
        latents, masked = disturbed(video_BTSC.flatten(1, 2), self.config, rngs)
        together = units(frames, self.model.config.block) if not self.done else [tuple(range(frames))]
        parts = tuple(Part(unit, 0, len(members) * self.tokens) for unit, members in enumerate(together))
        for branch in self.branches:
            if branch.cache is not None:
                branch.hidden(latents, masked, self.positions(frames), Visibility(frame_causal, parts) if len(parts) > 1 else None)
                branch.cache.keep(frames, self.tokens)
        self.done += frames

    def next_frames(self, frames: int, rngs: Sequence[np.random.Generator], temperature: float) -> Tensor:
        """Draw a unit of frames [B, frames, S, C]: every iteration sees all of it and fixes more tokens, in a random order per sample."""
        config, tokens, samples = self.config, frames * self.tokens, len(rngs)
        order = torch.from_numpy(np.stack([rng.permutation(tokens) for rng in rngs])).to(self.device)
        latents = full_precision(self.model.null_text.new_zeros(samples, tokens, self.model.config.latent_channels))
        masked = torch.ones(samples, tokens, dtype=torch.bool, device=self.device)
        positions = self.positions(frames)
        for start, stop in reveal_schedule(config.iterations, tokens):
            chosen = order[:, start:stop]
            seen = [branch.hidden(latents, masked, positions, chosen_BR=chosen) for branch in self.branches]
            hidden = [full_precision(each).flatten(0, 1) for each in seen]
            weight = config.guidance_schedule(config.guidance, tokens - stop, tokens)
            drawn = self.model.head.sample(hidden[0], hidden[1] if len(hidden) > 1 else None, weight, config.head_steps, temperature, rngs)
            latents.scatter_(1, chosen[..., None].expand(-1, -1, latents.shape[-1]), drawn.view(samples, stop - start, -1))
            masked.scatter_(1, chosen, False)
        return latents.view(samples, frames, self.tokens, -1)


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

    One generator per sample; on_frame gets the index and [B, H, W, C] of each frame as soon as it exists. Raises ValueError when the
    videos or the wishes do not fit the model.
    """
    _, given, height, width, channels = given_BTHWC.shape
    check(model.config, channels, config)
    values = [float(config.conditions.get(name, math.nan)) for name in model.config.conditions]
    told = (text_BKE, length_B, torch.tensor(values, device=text_BKE.device).expand(len(text_BKE), -1))
    sampler = FrameSampler(model, told, (height, width), frames, given, config)
    video = list(given_BTHWC.flatten(2, 3).unbind(1))
    if video and len(video) < frames:
        sampler.keep(torch.stack(video, dim=1), rngs)
    while len(video) < frames:
        unit = min(model.config.block if video else 1, frames - len(video))
        drawn = sampler.next_frames(unit, rngs, config.tau(len(video) - given))
        for frame in drawn.unbind(1):
            video.append(frame)
            if on_frame is not None:
                on_frame(len(video) - 1, frame.view(-1, height, width, channels))
        if len(video) < frames:
            sampler.keep(drawn, rngs)
    return torch.stack(video, dim=1).view(len(text_BKE), frames, height, width, channels)


def check(model: ModelConfig, channels: int, config: SamplingConfig) -> None:
    """Raises ValueError, naming what does not fit, when the model cannot sample this way."""
    if channels != model.latent_channels:
        raise ValueError(
            f"the given frames have {channels} latent channels, the model {model.latent_channels}: another tokenizer made them"
        )
    if config.guidance != 1.0 and config.away_from != "history" and not model.text_dropout:
        raise ValueError("guidance away from text needs a null branch, and this model was trained with text_dropout 0")
    if unknown := set(config.conditions) - set(model.conditions):
        known = ", ".join(model.conditions) or "none"
        raise ValueError(f"the model was not trained with the condition {sorted(unknown)[0]!r}; it knows {known}")


def disturbed(latents_BLC: Tensor, config: SamplingConfig, rngs: Sequence[np.random.Generator]) -> tuple[Tensor, Tensor]:
    """Finished frames as the model is to see them, and which tokens are masked again [B, L]; every sample's draws are its generator's."""
    masked = torch.zeros(latents_BLC.shape[:2], dtype=torch.bool, device=latents_BLC.device)
    if config.context_noise:
        noise = np.stack([rng.standard_normal(latents_BLC.shape[1:], dtype=np.float32) for rng in rngs])
        latents_BLC = latents_BLC + config.context_noise * torch.from_numpy(noise).to(latents_BLC)
    if config.context_masked:
        again = np.stack([rng.random(latents_BLC.shape[1]) < config.context_masked for rng in rngs])
        masked = torch.from_numpy(again).to(masked.device)
    return latents_BLC, masked
