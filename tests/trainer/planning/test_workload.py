"""The planner's arithmetic of sequences against the model's own sequences and visibility."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.config import named_size
from model.reveal import mask_ratio
from model.supervision import AllFrames, OneFrame, Target, TokenSequence
from model.videomar import VideoMAR
from trainer.planning.memory import parameters
from trainer.planning.workload import Sequence, all_frames, mean_mask_ratio, one_frame

FRAMES, TOKENS, MASKS = st.integers(2, 9), st.integers(1, 6), st.integers(1, 4)


def kept(sequence: TokenSequence) -> int:
    """Keys that chunked attention keeps: the clean ones laid end to end, and a copy of what a part sees in more than one piece."""
    seen, sizes = sequence.visibility, [part.tokens for part in sequence.parts]
    copies = [
        sum(stop - start for start, stop in runs) + sum(sizes[place] for place in masked) for runs, masked in seen.chunks if runs and masked
    ]
    return sum(copies) + sum(sizes[place] for place in seen.clean or range(len(sizes)))


def assert_alike(planned: Sequence, real: TokenSequence) -> None:
    seen = real.visibility
    keys = sum(real.parts[key].tokens for place in range(len(real.parts)) for key in seen.seen(place))
    assert (planned.tokens, planned.pairs, planned.seen_keys, planned.kept_keys) == (seen.starts[-1], seen.pairs(), keys, kept(real))


@given(FRAMES, TOKENS, MASKS, st.integers(1, 4))
def test_all_frames_is_as_the_model_lays_it_out(frames: int, tokens: int, masks: int, block: int) -> None:
    real = AllFrames(block, masks).sequence([], frames, tokens)
    planned = all_frames(frames, tokens, masks, block)
    assert_alike(planned, real)
    assert planned.masked == tuple(part.copy > 0 for part, unit in zip(real.parts, real.frames, strict=True) for _ in unit)


@given(FRAMES, TOKENS)
def test_one_frame_is_as_the_model_lays_it_out(frames: int, tokens: int) -> None:
    assert_alike(one_frame(frames, tokens), OneFrame().sequence([Target(frames, {})], frames, tokens))


@given(FRAMES, st.integers(1, 4), MASKS, st.sampled_from([1, 2, 3, 4, 6]))
def test_the_fullest_piece_is_the_one_with_most_masked_tokens(frames: int, unit: int, masks: int, shards: int) -> None:
    planned = all_frames(frames, unit * shards, masks)
    supervised = np.repeat(planned.masked, planned.frame_tokens).reshape(shards, -1).sum(1)
    assert planned.most_supervised(shards) == supervised.max()


@pytest.mark.parametrize("head", ["ddpm", "flow"])
@pytest.mark.parametrize("size", ["toy", "videomar-0.4b", "videomar-1.4b"])
def test_parameters_are_those_of_the_model(size: str, head: str) -> None:
    config = named_size(size, head=head)
    with torch.device("meta"):
        model = VideoMAR(config)
    assert parameters(config) == sum(parameter.numel() for parameter in model.parameters())


def test_tensor_parallel_ranks_share_the_matrices_of_the_blocks() -> None:
    counts = [parameters(named_size("videomar-1.4b"), tp) for tp in (1, 2, 4, 8)]
    assert all(more > fewer > more / 2 for more, fewer in pairwise(counts))


def test_the_mean_mask_ratio_is_that_of_the_draws() -> None:
    config, rng = named_size("videomar-1.4b"), np.random.default_rng(0)
    assert mean_mask_ratio(config) == pytest.approx(np.mean([mask_ratio(rng, config) for _ in range(4000)]), abs=0.005)
