"""What one optimiser step of a stage is made of: samples of its bucket, and of those mixed in. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.buckets import Bucket, latent_shape
from trainer.curriculum import Stage
from trainer.planner import global_batch


@dataclass(frozen=True)
class Ingredient:
    """Samples of one bucket in every step of a stage."""

    bucket: str
    frames: int  # T
    tokens: int  # S
    samples: int  # per optimiser step
    weight: float  # of a supervised token in the step's loss


def ingredients(stage: Stage, stride: tuple[int, int, int]) -> list[Ingredient]:
    """The stage's own bucket first, with what the others leave of tokens_per_step. Raises ValueError for misfits."""
    own = 1.0 - sum(mix.share for mix in stage.mix)
    shapes = [(Bucket(stage.frames, stage.height, stage.width), own, 1.0)]
    shapes += [(Bucket(mix.frames, mix.height, mix.width), mix.share, mix.weight) for mix in stage.mix]
    made = []
    for bucket, share, weight in shapes:
        frames, height, width = latent_shape(bucket, stride)
        samples = global_batch(round(share * stage.tokens_per_step), frames, height * width)
        made.append(Ingredient(bucket.id, frames, height * width, samples, weight))
    return made
