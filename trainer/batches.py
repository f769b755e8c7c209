"""From positions in the data order to micro-batches. Everything random about a sample is drawn from a generator keyed by
(seed, bucket, epoch, index, purpose), so neither rank nor batch nor restart can change it. Called by the loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_pipeline.loader import SampleSet
from data_pipeline.order import keyed_generator
from model.config import ModelConfig
from model.heads import Head
from model.supervision import (
    AllFrames,
    Disturbance,
    OneFrame,
    Supervision,
    Target,
    TokenSequence,
    TrainingBatch,
    masks_and_rows,
    supervised_by_frame,
)
from trainer.planner import Layout
from trainer.sections import TrainSection
from trainer.units import Unit, deal


def supervision_of(train: TrainSection) -> Supervision:
    """The supervision that a recipe names."""
    return OneFrame() if train.supervision == "one_frame" else AllFrames(train.block, train.masks_per_frame)


def disturbance_of(train: TrainSection) -> Disturbance | None:
    """What a recipe does to clean context, None for nothing."""
    return Disturbance(train.context_noise, train.context_masked) if train.context_noise or train.context_masked else None


@dataclass(frozen=True)
class Shape:
    """What a bucket's samples look like to the objective: T latent frames of S tokens."""

    bucket: str
    frames: int
    tokens: int


@dataclass(frozen=True)
class StepPlan:
    """One source's part of an optimiser step, known without any data: global positions, their targets, and who computes what."""

    positions: tuple[int, ...]
    targets: tuple[Target, ...]
    units: list[list[Unit]]  # per data-parallel rank

    @property
    def supervised(self) -> int:
        """Supervised tokens of all its samples."""
        return sum(target.supervised for target in self.targets)


@dataclass(frozen=True)
class MicroBatch:
    """One pass of one rank: the model's input, and every row's weight [B]."""

    inputs: TrainingBatch
    weights: Tensor


class Draws:
    """The keyed randomness of one set of samples; what is held out is seen undisturbed and with all conditions told.

    epoch_of: (epoch, index inside it) of a global position.
    """

    def __init__(
        self,
        seed: int,
        shape: Shape,
        epoch_of: Callable[[int], tuple[int, int]],
        config: ModelConfig,
        supervision: Supervision,
        disturbance: Disturbance | None = None,
        purpose: str = "train",
    ) -> None:
        self.seed, self.shape, self.epoch_of, self.config = seed, shape, epoch_of, config
        self.supervision, self.disturbance, self.purpose = supervision, disturbance, purpose

    def generator(self, position: int, purpose: str) -> np.random.Generator:
        epoch, index = self.epoch_of(position)
        return keyed_generator(self.seed, self.purpose, self.shape.bucket, epoch, index, purpose)

    def target(self, position: int) -> Target:
        return self.supervision.draw(self.generator(position, "target"), self.shape.frames, self.shape.tokens, self.config)

    def drops_text(self, position: int) -> bool:
        return bool(self.generator(position, "text").random() < self.config.text_dropout)

    def told(self, position: int, known: dict[str, float]) -> list[float]:
        """The values of the model's conditions, NaN for those that are dropped."""
        names, dropout = self.config.conditions, self.config.condition_dropout if self.purpose == "train" else 0.0
        drawn = self.generator(position, "conditions").random(len(names))
        return [math.nan if draw < dropout else known[name] for name, draw in zip(names, drawn, strict=True)]

    def disturbed(
        self, positions: Sequence[int], targets: Sequence[Target], sequence: TokenSequence
    ) -> tuple[list[float], Tensor | None, Tensor | None]:
        """(noise level per sample, noise on the context [B, L, C], context tokens masked again [B, L]); None where nothing is disturbed."""
        if self.disturbance is None:
            return [0.0] * len(positions), None, None
        channels = self.config.latent_channels
        drawn = [
            self.disturbance.draw(self.generator(position, "context"), target, sequence, channels)
            for position, target in zip(positions, targets, strict=True)
        ]
        levels, noise, masked = zip(*drawn, strict=True)
        return list(levels), torch.from_numpy(np.stack(noise)), torch.from_numpy(np.stack(masked))

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


@dataclass(frozen=True)
class Source:
    """One bucket that a stage's steps draw from; the first is the stage's own, others are mixed in."""

    draws: Draws
    data: SampleSet
    samples: int  # per optimiser step, over all ranks
    layout: Layout  # of its passes
    weight: float  # of a supervised token in the step's loss

    def plan(self, consumed: int) -> StepPlan:
        """Its part of the step that comes after `consumed` samples."""
        return self.draws.plan(range(consumed, consumed + self.samples), self.layout)


@dataclass(frozen=True)
class Step:
    """One optimiser step: every source's part."""

    plans: tuple[StepPlan, ...]
    weighted: float  # supervised tokens, each times its source's weight: the denominator of the loss


def plan_step(sources: Sequence[Source], consumed: dict[str, int]) -> Step:
    """The step that comes after so many samples per bucket."""
    plans = tuple(source.plan(consumed.get(source.draws.shape.bucket, 0)) for source in sources)
    return Step(plans, sum(source.weight * plan.supervised for source, plan in zip(sources, plans, strict=True)))


def micro_batch(plan: StepPlan, unit: Unit, draws: Draws, data: SampleSet, head: Head) -> MicroBatch:
    """Read a unit's samples and make the model's input of them; runs ahead of the step in the loader's thread."""
    positions = [plan.positions[sample] for sample in unit.samples]
    targets = [plan.targets[sample] for sample in unit.samples]
    batch = data.fetch(positions)
    sequence = draws.sequence(targets)
    masked, rows = masks_and_rows(targets, sequence)
    drawn = [head.draw(draws.generator(position, "head"), target.supervised) for position, target in zip(positions, targets, strict=True)]
    times, noise = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*drawn, strict=True))
    levels, context_noise, masked_again = draws.disturbed(positions, targets, sequence)
    used = 1 + max(sequence.frame_order)
    inputs = TrainingBatch(
        latents=torch.from_numpy(batch.latents if used == batch.latents.shape[1] else batch.latents[:, :used].copy(order="K")),
        sequence=sequence,
        masked=masked if masked_again is None else masked | masked_again,
        rows=rows,
        head_draws=(times, noise),
        text=torch.from_numpy(batch.text),
        text_length=torch.from_numpy(batch.text_length),
        drop_text=torch.tensor([draws.drops_text(position) for position in positions]),
        conditions=torch.tensor(
            [
                draws.told(position, {**known_values(data, position, draws.config), "context_noise": level})
                for position, level in zip(positions, levels, strict=True)
            ]
        ),
        context_noise=context_noise,
    )
    return MicroBatch(inputs, torch.tensor(unit.weights))


def known_values(data: SampleSet, position: int, config: ModelConfig) -> dict[str, float]:
    """What is on record about a sample, of what the model is told; read only where it is told something."""
    if not set(config.conditions) - {"context_noise"}:
        return {}
    meta = data.meta(position)
    return {"fps": float(meta["fps"]), "motion": float(meta["values"].get("motion", math.nan))}  # NaN: it is not known, so not told
