"""A stage as arithmetic: the training sequences it is made of, without tensors. Pure; called by the rest of this folder and by `plan`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from statistics import NormalDist

from data_pipeline.errors import UserError
from model.config import ModelConfig
from trainer.config import RunConfig
from trainer.curriculum import Stage
from trainer.mixture import ingredients
from trainer.sections import TrainSection


@dataclass(frozen=True)
class Sequence:
    """A training sequence (videomar.md sections 2 and 9): one entry per frame copy in order, True for a masked, supervised one."""

    masked: tuple[bool, ...]
    frame_tokens: int  # S
    pairs: int  # visible (query, key) token pairs
    seen_keys: int  # keys that parts see, counted once per part
    kept_keys: int  # keys that chunked attention keeps: clean ones once, and for every masked copy a copy of all that it sees

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
    return Sequence(
        (False,) * (kept - 1) + (True,), tokens, tokens**2 * kept * (kept + 1) // 2, tokens * kept * (kept + 1) // 2, kept * tokens
    )


def all_frames(frames: int, tokens: int, masks: int, block: int = 1) -> Sequence:
    """Every unit after frame 0 (`block` frames, the last maybe fewer) clean and in `masks` masked copies; nobody looks at the last one's
    clean copy, so it is left out."""
    if frames == 1:
        return Sequence((True,) * masks, tokens, masks * tokens**2, masks * tokens, masks * tokens)
    sizes = [min(block, frames - start) for start in range(1, frames, block)]
    masked, pairs, keys, kept, seen = [False], 1, 1, 1, 1  # seen: frames up to and with a unit
    for place, size in enumerate(sizes):
        last, seen = place + 1 == len(sizes), seen + size
        masked += [True] * size * masks + [False] * (0 if last else size)
        pairs += size * seen * (masks + (not last))
        keys += seen * (masks + (not last))
        kept += seen * masks + (0 if last else size)
    return Sequence(tuple(masked), tokens, pairs * tokens**2, keys * tokens, kept * tokens)


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
    """A stage of a recipe, on its own bucket. Raises UserError when that does not fit the tokenizer's stride."""
    try:
        own = ingredients(stage, stage.stride or config.data.stride)[0]
    except ValueError as error:
        raise UserError(f"stage {stage.name}: {error}") from None
    if own.frames < 2:
        raise UserError(f"stage {stage.name}: {stage.frames} frames are one latent frame, and the first is given; use more")
    return Workload(stage.name, model, own.samples, own.frames * own.tokens, sequences_of(config.train, own.frames, own.tokens))


def sequences_of(train: TrainSection, frames: int, tokens: int) -> tuple[Sequence, ...]:
    """Those that a sample of T latent frames of S tokens is trained on, with equal chance; a still supervises its only frame."""
    if train.supervision == "one_frame":
        return tuple(one_frame(kept, tokens) for kept in range(min(frames, 2), frames + 1))
    return (all_frames(frames, tokens, train.masks_per_frame, train.block),)


def mean_mask_ratio(model: ModelConfig) -> float:
    """The mean of the mask ratio: Normal(mean, std) truncated to [min, 1]."""
    normal, unit = NormalDist(model.mask_ratio_mean, model.mask_ratio_std), NormalDist()
    low, high = ((bound - model.mask_ratio_mean) / model.mask_ratio_std for bound in (model.mask_ratio_min, 1.0))
    mass = normal.cdf(1.0) - normal.cdf(model.mask_ratio_min)
    return model.mask_ratio_mean + model.mask_ratio_std * (unit.pdf(low) - unit.pdf(high)) / mass
