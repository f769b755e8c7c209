"""From positions in the data order to micro-batches. Everything random about a sample is drawn from a generator keyed by
(seed, bucket, epoch, index, purpose), so neither rank nor batch nor restart can change it. Called by the loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_pipeline.loader import SampleSet
from data_pipeline.order import keyed_generator, wrap
from model.config import ModelConfig
from model.heads import Head
from model.supervision import Target, TrainingBatch, draw_target, one_frame_masks
from trainer.planner import Layout
from trainer.units import Unit, deal


@dataclass(frozen=True)
class Shape:
    """What a bucket's samples look like to the objective: T latent frames of S tokens."""

    bucket: str
    frames: int
    tokens: int


@dataclass(frozen=True)
class StepPlan:
    """One optimiser step, known without any data: global positions, their targets, and who computes what."""

    positions: tuple[int, ...]
    targets: tuple[Target, ...]
    units: list[list[Unit]]  # per data-parallel rank

    @property
    def supervised(self) -> int:
        """Supervised tokens of the whole step: the denominator of its loss."""
        return sum(len(target.masked) for target in self.targets)


@dataclass(frozen=True)
class MicroBatch:
    """One pass of one rank: the model's input, and per row its weight and target frame [B]."""

    inputs: TrainingBatch
    weights: Tensor
    frames: Tensor


class Draws:
    """The keyed randomness of one set of samples."""

    def __init__(self, seed: int, shape: Shape, samples: int, config: ModelConfig, purpose: str = "train") -> None:
        self.seed, self.shape, self.samples, self.config, self.purpose = seed, shape, samples, config, purpose

    def generator(self, position: int, purpose: str) -> np.random.Generator:
        epoch, index = wrap(position, self.samples)
        return keyed_generator(self.seed, self.purpose, self.shape.bucket, epoch, index, purpose)

    def target(self, position: int) -> Target:
        return draw_target(self.generator(position, "target"), self.shape.frames, self.shape.tokens, self.config)

    def drops_text(self, position: int) -> bool:
        return bool(self.generator(position, "text").random() < self.config.text_dropout)

    def plan(self, positions: Sequence[int], layout: Layout) -> StepPlan:
        """Targets of a step and its micro-batches, sorted by target so that each is cut after its own last one."""
        targets = tuple(self.target(position) for position in positions)
        return StepPlan(tuple(positions), targets, deal([target.frame for target in targets], layout.dp, layout.micro_batch))


def micro_batch(plan: StepPlan, unit: Unit, draws: Draws, data: SampleSet, head: Head) -> MicroBatch:
    """Read a unit's samples and make the model's input of them; runs ahead of the step in the loader's thread."""
    positions = [plan.positions[sample] for sample in unit.samples]
    targets = [plan.targets[sample] for sample in unit.samples]
    batch = data.fetch(positions)
    frames, masked, rows = one_frame_masks(targets, draws.shape.tokens)
    drawn = [head.draw(draws.generator(position, "head"), len(target.masked)) for position, target in zip(positions, targets, strict=True)]
    times, noise = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*drawn, strict=True))
    inputs = TrainingBatch(
        latents=torch.from_numpy(np.ascontiguousarray(batch.latents[:, :frames])),
        masked=masked,
        rows=rows,
        head_draws=(times, noise),
        text=torch.from_numpy(batch.text),
        text_length=torch.from_numpy(batch.text_length),
        drop_text=torch.tensor([draws.drops_text(position) for position in positions]),
    )
    return MicroBatch(inputs, torch.tensor(unit.weights), torch.tensor([target.frame for target in targets]))
