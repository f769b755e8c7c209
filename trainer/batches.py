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
from model.supervision import AllFrames, OneFrame, Supervision, Target, TokenSequence, TrainingBatch, masks_and_rows, supervised_by_frame
from trainer.config import TrainSection
from trainer.planner import Layout
from trainer.units import Unit, deal


def supervision_of(train: TrainSection) -> Supervision:
    """The supervision that a recipe names."""
    return OneFrame() if train.supervision == "one_frame" else AllFrames(masks=train.masks_per_frame)


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
        return sum(target.supervised for target in self.targets)


@dataclass(frozen=True)
class MicroBatch:
    """One pass of one rank: the model's input, and every row's weight [B]."""

    inputs: TrainingBatch
    weights: Tensor


class Draws:
    """The keyed randomness of one set of samples."""

    def __init__(
        self, seed: int, shape: Shape, samples: int, config: ModelConfig, supervision: Supervision, purpose: str = "train"
    ) -> None:
        self.seed, self.shape, self.samples, self.config = seed, shape, samples, config
        self.supervision, self.purpose = supervision, purpose

    def generator(self, position: int, purpose: str) -> np.random.Generator:
        epoch, index = wrap(position, self.samples)
        return keyed_generator(self.seed, self.purpose, self.shape.bucket, epoch, index, purpose)

    def target(self, position: int) -> Target:
        return self.supervision.draw(self.generator(position, "target"), self.shape.frames, self.shape.tokens, self.config)

    def drops_text(self, position: int) -> bool:
        return bool(self.generator(position, "text").random() < self.config.text_dropout)

    def plan(self, positions: Sequence[int], layout: Layout) -> StepPlan:
        """Targets of a step and its micro-batches, sorted by target so that each is cut after its own last one."""
        targets = tuple(self.target(position) for position in positions)
        return StepPlan(tuple(positions), targets, deal([target.frames for target in targets], layout.dp, layout.micro_batch))

    def sequence(self, targets: Sequence[Target]) -> TokenSequence:
        """The token sequence of these targets."""
        return self.supervision.sequence(targets, self.shape.frames, self.shape.tokens)

    def supervised_by_frame(self, plan: StepPlan) -> list[int]:
        """Supervised tokens per latent frame of a step."""
        shape = self.shape
        return supervised_by_frame(plan.targets, self.sequence(plan.targets), shape.frames, shape.tokens).tolist()


def micro_batch(plan: StepPlan, unit: Unit, draws: Draws, data: SampleSet, head: Head) -> MicroBatch:
    """Read a unit's samples and make the model's input of them; runs ahead of the step in the loader's thread."""
    positions = [plan.positions[sample] for sample in unit.samples]
    targets = [plan.targets[sample] for sample in unit.samples]
    batch = data.fetch(positions)
    sequence = draws.sequence(targets)
    masked, rows = masks_and_rows(targets, sequence)
    drawn = [head.draw(draws.generator(position, "head"), target.supervised) for position, target in zip(positions, targets, strict=True)]
    times, noise = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*drawn, strict=True))
    inputs = TrainingBatch(
        latents=torch.from_numpy(np.ascontiguousarray(batch.latents[:, : 1 + max(sequence.frame_order)])),
        sequence=sequence,
        masked=masked,
        rows=rows,
        head_draws=(times, noise),
        text=torch.from_numpy(batch.text),
        text_length=torch.from_numpy(batch.text_length),
        drop_text=torch.tensor([draws.drops_text(position) for position in positions]),
    )
    return MicroBatch(inputs, torch.tensor(unit.weights))
