"""A tiny VideoMAR without blind spots: every layer that starts at zero gets N(0, 0.02), so that every path matters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import ModelConfig
from model.supervision import OneFrame, Supervision, TrainingBatch, masks_and_rows
from model.videomar import VideoMAR
from model.visibility import Part, Rule

CONFIG = ModelConfig(
    width=32,
    depth=3,
    heads=2,
    latent_channels=4,
    text_width=6,
    text_tokens=5,
    conditions=("fps", "motion"),
    head_width=16,
    head_depth=2,
    head_repeats=2,
)

ONE_FRAME = OneFrame()


def awake(model: VideoMAR, std: float = 0.02) -> VideoMAR:
    """The model with its zero-initialised weights drawn from N(0, std)."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model


def stand_in(network: Any, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Put a function (x, t, condition) known in closed form in a head's network's place; t comes one per row."""
    network.time_features = lambda t, dtype: t[..., None].to(dtype)
    network.modulations = torch.broadcast_tensors
    network.forward = lambda x, told: function(x, told[0][..., 0].expand(x.shape[:-1]), told[1])


def windowed(rule: Rule, sink: int, window: int) -> Rule:
    """The rule, but of the earlier units only the first `sink` and the last `window` (the query's own included) are seen: what the
    sampler's cache does by leaving keys out."""

    def within(query: Part, key: Part) -> bool:
        return rule(query, key) and (key.unit < sink or query.unit - key.unit < window)

    return within


@pytest.fixture
def config() -> ModelConfig:
    """The model's; a test that parametrizes `config` gets another head."""
    return CONFIG


@pytest.fixture
def model(config: ModelConfig) -> VideoMAR:
    torch.manual_seed(0)
    return awake(VideoMAR(config)).double()


@pytest.fixture
def make_batch(model: VideoMAR) -> Callable[..., TrainingBatch]:
    """make_batch(samples, frames, height, width): a batch whose rows depend only on their own index."""

    def make(samples: int = 3, frames: int = 4, height: int = 2, width: int = 3, supervision: Supervision = ONE_FRAME) -> TrainingBatch:
        rngs = [np.random.default_rng(row) for row in range(samples)]
        targets = [supervision.draw(rng, frames, height * width, CONFIG) for rng in rngs]
        sequence = supervision.sequence(targets, frames, height * width)
        masked, rows = masks_and_rows(targets, sequence)
        drawn = [model.head.draw(rng, target.supervised) for rng, target in zip(rngs, targets, strict=True)]
        times, noise = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*drawn, strict=True))
        latents = np.stack([rng.standard_normal((frames, height, width, CONFIG.latent_channels)) for rng in rngs])
        text = np.stack([rng.standard_normal((CONFIG.text_tokens, CONFIG.text_width)) for rng in rngs])
        return TrainingBatch(
            latents=torch.from_numpy(latents[:, : 1 + max(sequence.frame_order)]),
            sequence=sequence,
            masked=masked,
            rows=rows,
            head_draws=(times, noise.double()),
            text=torch.from_numpy(text),
            text_length=torch.tensor([2 + row % 3 for row in range(samples)]),
            drop_text=torch.tensor([row == 1 for row in range(samples)]),
            conditions=torch.tensor([[8.0 + row, math.nan if row == 2 else 0.02] for row in range(samples)]),
        )

    return make
