"""How videos become a training sequence. `one_frame` is the paper's: one target frame per video, partly masked, clean frames before it.

Called by the trainer, which owns the generators: a sample's draws depend on its own generator and on nothing else in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.config import ModelConfig
from model.reveal import masked_tokens


@dataclass(frozen=True)
class Target:
    """What one sample is asked to predict: the tokens `masked` (sorted indices in [0, S)) of latent frame `frame`."""

    frame: int
    masked: np.ndarray


@dataclass(frozen=True)
class TrainingBatch:
    """One micro-batch, ready for the model. A dropped caption is replaced by the learned null text inside the model."""

    latents: Tensor  # [B, T, H, W, C] clean latents, cut after the last target frame of the batch
    masked: Tensor  # [B, L] bool, True where the mask token stands in for the latent
    rows: Tensor  # [M] places in the flattened [B * L] tokens of the supervised ones
    head_draws: tuple[Tensor, Tensor]  # the head's own randomness per supervised token: times [M, R], noise [M, R, C]
    text: Tensor  # [B, K, E]
    text_length: Tensor  # [B]
    drop_text: Tensor  # [B] bool

    def to(self, device: torch.device) -> TrainingBatch:
        """The same batch on `device`, without waiting for the copies."""
        times, noise = (x.to(device, non_blocking=True) for x in self.head_draws)
        moved = {name: value.to(device, non_blocking=True) for name, value in vars(self).items() if name != "head_draws"}
        return TrainingBatch(head_draws=(times, noise), **moved)


def draw_target(rng: np.random.Generator, frames: int, tokens: int, config: ModelConfig) -> Target:
    """A target frame uniform in 1..T-1 (frame 0 is the given image; a still has only frame 0) and its masked tokens."""
    frame = int(rng.integers(1, frames)) if frames > 1 else 0
    return Target(frame, masked_tokens(rng, tokens, config))


def one_frame_masks(targets: list[Target], tokens: int) -> tuple[int, Tensor, Tensor]:
    """(frames to keep, masked [B, L], rows [M]) for a batch of targets.

    Frames after the last target cannot influence the loss: they are cut.
    """
    frames = max(target.frame for target in targets) + 1
    masked = np.zeros((len(targets), frames, tokens), dtype=bool)
    for row, target in enumerate(targets):
        masked[row, target.frame, target.masked] = True
    flat = masked.reshape(len(targets), -1)
    return frames, torch.from_numpy(flat), torch.from_numpy(np.flatnonzero(flat))
