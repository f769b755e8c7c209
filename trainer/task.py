"""StageTask: everything one rank needs to train a stage. Made by process.py, read by the loop and what it calls."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from data_pipeline.epochs import Epochs
from data_pipeline.loader import SampleSet
from model.config import ModelConfig
from trainer.batches import Draws, Source
from trainer.curriculum import Stage
from trainer.epochs import Book
from trainer.guard import GuardRule
from trainer.parallel.places import place_of
from trainer.planner import Layout
from trainer.sections import TrainSection


@dataclass(frozen=True)
class StageTask:
    """A stage under a layout, as one rank of one generation sees it."""

    stage: Stage
    train: TrainSection
    guard: GuardRule
    first_step: int  # of this generation: the step of the commit it goes on from
    roll_backs: int  # how often the run has gone back to that commit
    layout: Layout
    rank: int
    generation: int
    device: torch.device
    model: ModelConfig
    sources: tuple[Source, ...]  # the stage's own bucket first
    held_out: SampleSet
    held_out_draws: Draws
    book: Book

    @property
    def frames(self) -> int:
        """Latent frames of the longest source."""
        return max(source.draws.shape.frames for source in self.sources)

    @property
    def dp_rank(self) -> int:
        """Which data-parallel replica this rank is of; the ranks of one replica work on the same samples."""
        return place_of(self.rank, self.layout).dp_rank

    @property
    def consumed(self) -> dict[str, int]:
        """Samples per bucket of one optimiser step."""
        return {source.draws.shape.bucket: source.samples for source in self.sources}

    @property
    def bucket(self) -> str:
        """The stage's own."""
        return self.sources[0].draws.shape.bucket

    @property
    def epochs(self) -> dict[str, Epochs]:
        """What each bucket's epochs read, as far as it is decided."""
        return {source.draws.shape.bucket: source.data.epochs for source in self.sources}

    def measured(self, samples: dict[str, int]) -> list[int]:
        """Which held-out samples to evaluate on after so many training samples per bucket: the first ones, without what the data that is
        trained on by then excludes, for that may look like it. The others keep their places, and so their draws."""
        trained_on = self.sources[0].data.epochs.place(samples[self.bucket] - 1)
        return self.held_out.still_read(trained_on.generation, self.train.evaluate_samples)

    def settle(self, positions: dict[str, int]) -> None:
        """Decide which epochs there are for the step that comes after so many samples per bucket. All ranks call it."""
        for source in self.sources:
            bucket = source.draws.shape.bucket
            self.book.settle(bucket, source.data, positions.get(bucket, 0) + source.samples)
