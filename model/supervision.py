"""How videos become a training sequence. `one_frame` is the paper's: one target frame per video. `all_frames` supervises every frame
in one pass: a clean copy and masked copies of each, under the skip-causal rule (the idea of ACDiT and FAR, applied to masked frames).

Called by the trainer, which owns the generators: a sample's draws depend on its own generator and on nothing else in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from model.config import ModelConfig
from model.reveal import masked_tokens
from model.visibility import Part, Rule, Visibility, frame_causal, skip_causal


@dataclass(frozen=True)
class TokenSequence:
    """A sequence of parts: `frames` names the latent frames of each part, whose tokens keep their own 3-D positions."""

    rule: Rule
    parts: tuple[Part, ...]
    frames: tuple[tuple[int, ...], ...]

    @cached_property
    def visibility(self) -> Visibility:
        return Visibility(self.rule, self.parts)

    @cached_property
    def frame_order(self) -> list[int]:
        """The latent frame at every place of the sequence, frame by frame."""
        return [frame for part in self.frames for frame in part]


@dataclass(frozen=True)
class Target:
    """What one sample is asked to predict: per masked part of its sequence the part's place and its masked tokens (sorted)."""

    frames: int  # latent frames the sample needs; later ones cannot influence its loss
    masked: dict[int, np.ndarray]

    @property
    def supervised(self) -> int:
        """Supervised tokens."""
        return sum(len(tokens) for tokens in self.masked.values())


@dataclass(frozen=True)
class TrainingBatch:
    """One micro-batch, ready for the model. A dropped caption is replaced by the learned null text inside the model."""

    latents: Tensor  # [B, T, H, W, C] clean latents, cut to the frames the sequence uses
    sequence: TokenSequence
    masked: Tensor  # [B, L] bool, True where the mask token stands in for the latent
    rows: Tensor  # [M] places in the flattened [B * L] tokens of the supervised ones
    head_draws: tuple[Tensor, Tensor]  # the head's own randomness per supervised token: times [M, R], noise [M, R, C]
    text: Tensor  # [B, K, E]
    text_length: Tensor  # [B]
    drop_text: Tensor  # [B] bool
    conditions: Tensor  # [B, Q] values of config.conditions, NaN where the model is not told
    context_noise: Tensor | None = None  # [B, L, C] added to what the trunk sees, never to what it is to predict

    def to(self, device: torch.device) -> TrainingBatch:
        """The same batch on `device`, without waiting for the copies."""
        times, noise = (x.to(device, non_blocking=True) for x in self.head_draws)
        tensors = {name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return TrainingBatch(sequence=self.sequence, head_draws=(times, noise), **tensors)


class Supervision(Protocol):
    """What the trainer asks of a way to supervise: draw a sample's target, lay out the sequence that serves a batch of targets."""

    def draw(self, rng: np.random.Generator, frames: int, tokens: int, config: ModelConfig) -> Target:
        """The target of one sample of T latent frames of S tokens."""
        ...

    def sequence(self, targets: Sequence[Target], frames: int, tokens: int) -> TokenSequence:
        """The sequence that serves all these targets."""
        ...


def supervised_by_frame(targets: Sequence[Target], sequence: TokenSequence, frames: int, tokens: int) -> np.ndarray:
    """Supervised tokens per latent frame [T] of all targets together."""
    counts = np.zeros(frames, dtype=np.int64)
    for target in targets:
        for place, masked in target.masked.items():
            np.add.at(counts, np.asarray(sequence.frames[place])[masked // tokens], 1)
    return counts


@dataclass(frozen=True)
class OneFrame:
    """The paper's: a target frame uniform in 1..T-1 (frame 0 is the given image), partly masked, clean frames before it.

    Frames after the target cannot influence the loss: a batch is cut after its last target.
    """

    def draw(self, rng: np.random.Generator, frames: int, tokens: int, config: ModelConfig) -> Target:
        frame = int(rng.integers(1, frames)) if frames > 1 else 0
        return Target(frame + 1, {frame: masked_tokens(rng, tokens, config)})

    def sequence(self, targets: Sequence[Target], frames: int, tokens: int) -> TokenSequence:
        kept = range(max(target.frames for target in targets))
        return TokenSequence(frame_causal, tuple(Part(frame, 0, tokens) for frame in kept), tuple((frame,) for frame in kept))


def units(frames: int, block: int) -> list[tuple[int, ...]]:
    """Latent frames of every unit of T frames: frame 0 alone, then blocks, of which the last may be shorter."""
    return [(0,), *(tuple(range(start, min(start + block, frames))) for start in range(1, frames, block))]


@dataclass(frozen=True)
class AllFrames:
    """Every unit after frame 0 is supervised, each with its own masks: c_0 m_1 c_1 m_2 ... c_{n-1} m_n.

    block: latent frames per unit (the last may be shorter). masks: masked copies of a unit that share its one clean copy. In this
    order a contiguous split over sequence-parallel ranks is balanced.
    """

    block: int = 1
    masks: int = 1

    def draw(self, rng: np.random.Generator, frames: int, tokens: int, config: ModelConfig) -> Target:
        sequence = self.sequence([], frames, tokens)
        masked = {place: masked_tokens(rng, part.tokens, config) for place, part in enumerate(sequence.parts) if part.copy}
        return Target(frames, masked)

    def sequence(self, targets: Sequence[Target], frames: int, tokens: int) -> TokenSequence:
        return interleaved(tuple(units(frames, self.block)), self.masks, tokens)


@lru_cache(maxsize=64)
def interleaved(frames_of: tuple[tuple[int, ...], ...], masks: int, tokens: int) -> TokenSequence:
    """Clean and masked copies of all units in the order of time, masked ones first; S tokens per frame."""
    parts: list[Part] = []
    for unit, frames in enumerate(frames_of):
        copies = range(1, masks + 1) if unit or len(frames_of) == 1 else []  # a still has only frame 0 to predict
        clean = [0] if unit + 1 < len(frames_of) else []  # nobody looks at the last unit's
        parts += [Part(unit, copy, len(frames) * tokens) for copy in (*copies, *clean)]
    return TokenSequence(skip_causal, tuple(parts), tuple(frames_of[part.unit] for part in parts))


def masks_and_rows(targets: Sequence[Target], sequence: TokenSequence) -> tuple[Tensor, Tensor]:
    """masked [B, L] and rows [M] of a batch of targets in one sequence."""
    starts = sequence.visibility.starts
    masked = np.zeros((len(targets), starts[-1]), dtype=bool)
    for row, target in enumerate(targets):
        for place, tokens in target.masked.items():
            masked[row, starts[place] + tokens] = True
    return torch.from_numpy(masked), torch.from_numpy(np.flatnonzero(masked))


@dataclass(frozen=True)
class Disturbance:
    """What training does to clean context, because at sampling the context is the model's own and not clean (exposure bias).

    Both are the largest of a uniform draw per sample. noise: standard deviation added to the latents; masked: fraction of tokens that
    are masked again, without being supervised.
    """

    noise: float = 0.0
    masked: float = 0.0

    def draw(
        self, rng: np.random.Generator, target: Target, sequence: TokenSequence, channels: int
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """(noise level, noise [L, C], tokens masked again [L]) of one sample; the parts it is to predict are left alone."""
        starts = sequence.visibility.starts
        context = np.ones(starts[-1], dtype=bool)
        for place in target.masked:
            context[starts[place] : starts[place + 1]] = False
        level, fraction = self.noise * rng.random(), self.masked * rng.random()
        noise = level * rng.standard_normal((len(context), channels), dtype=np.float32) * context[:, None]
        return level, noise, context & (rng.random(len(context)) < fraction)
