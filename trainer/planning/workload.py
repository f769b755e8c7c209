"""A stage as arithmetic: the training sequences it is made of, without tensors. Pure; called by the rest of this folder and by `plan`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from statistics import NormalDist

from data_pipeline.buckets import Bucket, latent_shape
from data_pipeline.errors import UserError
from model.config import ModelConfig, named_size
from trainer.config import RunConfig
from trainer.curriculum import Stage
from trainer.planner import global_batch


@dataclass(frozen=True)
class Sequence:
    """A training sequence (videomar.md sections 2 and 9): one entry per frame copy in order, True for a masked, supervised one."""

    masked: tuple[bool, ...]
    frame_tokens: int  # S
    pairs: int  # visible (query, key) token pairs
    copied_keys: int  # keys that chunked attention copies, because what a part sees of them is not one run

    @property
    def tokens(self) -> int:
        return len(self.masked) * self.frame_tokens

    @property
    def supervised(self) -> int:
        """Supervised tokens when all of every masked copy is masked: the most there can be."""
        return sum(self.masked) * self.frame_tokens

    def most_supervised(self, shards: int) -> int:
        """The most supervised tokens that one of `shards` equal contiguous pieces holds."""
        return fullest(self.masked, self.frame_tokens, self.tokens // shards)


@lru_cache(maxsize=1024)
def fullest(masked: tuple[bool, ...], frame: int, size: int) -> int:
    """The most tokens of masked frame copies in any of the pieces of `size` tokens that a sequence of such copies is cut into."""
    before = [0, *accumulate(frame * copy for copy in masked)]

    def until(token: int) -> int:
        place, rest = divmod(token, frame)
        return before[place] + (rest if rest and masked[place] else 0)

    return max(until(start + size) - until(start) for start in range(0, len(masked) * frame, size))


def one_frame(kept: int, tokens: int) -> Sequence:
    """The paper's sequence whose target is the last of `kept` frames."""
    return Sequence((False,) * (kept - 1) + (True,), tokens, tokens**2 * kept * (kept + 1) // 2, 0)


def all_frames(frames: int, tokens: int, masks: int) -> Sequence:
    """Every frame after the first clean and in `masks` masked copies; nobody looks at the last one's clean copy, so it is left out."""
    if frames == 1:
        return Sequence((True,) * masks, tokens, masks * tokens**2, 0)
    masked = (False, *((True,) * masks + (False,)) * (frames - 1))[:-1]
    seen = [unit + 1 for unit in range(1, frames) for _ in range(masks)]  # frames that a masked copy sees: earlier clean ones and itself
    pairs = sum(range(1, frames)) + sum(seen)
    copied = sum(seen) if frames > 2 else sum(seen[1:])  # of two frames the first masked copy stands right behind what it sees
    return Sequence(masked, tokens, pairs * tokens**2, copied * tokens)


@dataclass(frozen=True)
class Workload:
    """One stage of one model: what an optimiser step computes, whatever the layout."""

    stage: str
    model: ModelConfig
    samples: int  # per optimiser step
    sample_tokens: int  # T * S latent tokens of one sample
    sequences: tuple[Sequence, ...]  # a sample's is any of these, with equal chance

    @property
    def longest(self) -> Sequence:
        return max(self.sequences, key=lambda sequence: sequence.tokens)

    @property
    def tokens_per_step(self) -> int:
        return self.samples * self.sample_tokens


def workload(config: RunConfig, model: ModelConfig, stage: Stage) -> Workload:
    """A stage of a recipe. Raises UserError when its bucket does not fit the tokenizer's stride."""
    try:
        frames, height, width = latent_shape(Bucket(stage.frames, stage.height, stage.width), stage.stride or config.data.stride)
    except ValueError as error:
        raise UserError(f"stage {stage.name}: {error}") from None
    if frames < 2:
        raise UserError(f"stage {stage.name}: {stage.frames} frames are one latent frame, and the first is given; use more")
    tokens = height * width
    if config.train.supervision == "one_frame":
        sequences: Iterable[Sequence] = (one_frame(kept, tokens) for kept in range(2, frames + 1))
    else:
        sequences = [all_frames(frames, tokens, config.train.masks_per_frame)]
    return Workload(stage.name, model, global_batch(stage.tokens_per_step, frames, tokens), frames * tokens, tuple(sequences))


def planned_model(config: RunConfig) -> ModelConfig:
    """The model of a recipe before any data exists: sizes that data would dictate are the recipe's."""
    data = config.data
    changes = {"latent_channels": data.latent_channels, "text_width": data.text_width, "text_tokens": data.text_tokens}
    heads = {"heads": config.model.heads} if config.model.heads else {}
    try:
        return named_size(config.model.size, head=config.train.head, **changes, **heads)
    except ValueError as error:
        raise UserError(str(error)) from None


def mean_mask_ratio(model: ModelConfig) -> float:
    """The mean of the mask ratio: Normal(mean, std) truncated to [min, 1]."""
    normal, unit = NormalDist(model.mask_ratio_mean, model.mask_ratio_std), NormalDist()
    low, high = ((bound - model.mask_ratio_mean) / model.mask_ratio_std for bound in (model.mask_ratio_min, 1.0))
    mass = normal.cdf(1.0) - normal.cdf(model.mask_ratio_min)
    return model.mask_ratio_mean + model.mask_ratio_std * (unit.pdf(low) - unit.pdf(high)) / mass
