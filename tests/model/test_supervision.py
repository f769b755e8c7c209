"""All-frames supervision: every unit's trunk output equals what the one-unit layout computes, exactly in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.config import ModelConfig
from model.rope3d import grid_positions
from model.supervision import AllFrames, Disturbance, OneFrame, TokenSequence, TrainingBatch, masks_and_rows, supervised_by_frame, units
from model.videomar import VideoMAR
from model.visibility import Part, frame_causal
from tests.model.conftest import CONFIG

MakeBatch = Callable[..., TrainingBatch]
HEIGHT, WIDTH = 2, 3
TOKENS = HEIGHT * WIDTH


def trunk(model: VideoMAR, batch: TrainingBatch, latents: torch.Tensor, sequence: TokenSequence, masked: torch.Tensor) -> torch.Tensor:
    """Hidden states [B, L, D] of a token sequence over latents [B, T, H, W, C]."""
    order = sequence.frame_order
    text, text_mask = model.text_keys(batch.text, batch.text_length, batch.drop_text, batch.conditions)
    tokens = latents[:, order].flatten(1, 3)
    return model.trunk(tokens, masked, grid_positions(order, HEIGHT, WIDTH), text, text_mask, sequence.visibility)


def largest_difference(model: VideoMAR, batch: TrainingBatch, supervision: AllFrames, frames: int) -> float:
    """Between every masked part's hidden states and those of the clean units before it followed by that part alone."""
    together = trunk(model, batch, batch.latents, batch.sequence, batch.masked)
    starts, together_of, worst = batch.sequence.visibility.starts, units(frames, supervision.block), 0.0
    for place, part in enumerate(batch.sequence.parts):
        if not part.copy:
            continue
        own = slice(starts[place], starts[place + 1])
        before = together_of[: part.unit + 1]
        alone = TokenSequence(
            frame_causal, tuple(Part(unit, 0, len(unit_frames) * TOKENS) for unit, unit_frames in enumerate(before)), tuple(before)
        )
        masked = torch.zeros(len(batch.latents), alone.visibility.starts[-1], dtype=torch.bool)
        masked[:, alone.visibility.starts[-2] :] = batch.masked[:, own]
        hidden = trunk(model, batch, batch.latents, alone, masked)[:, alone.visibility.starts[-2] :]
        worst = max(worst, (together[:, own] - hidden).detach().abs().max().item())
    return worst


@pytest.mark.parametrize(("block", "masks", "frames"), [(1, 1, 4), (1, 3, 4), (2, 1, 6), (3, 2, 6), (4, 1, 3), (1, 2, 1)])
def test_every_unit_equals_the_one_unit_layout(model: VideoMAR, make_batch: MakeBatch, block: int, masks: int, frames: int) -> None:
    supervision = AllFrames(block, masks)
    assert largest_difference(model, make_batch(frames=frames, supervision=supervision), supervision, frames) < 1e-12


def test_a_masked_copy_that_saw_its_clean_twin_would_be_noticed(model: VideoMAR, make_batch: MakeBatch) -> None:
    batch = make_batch(supervision=AllFrames())
    seeing = replace(batch, sequence=replace(batch.sequence, rule=frame_causal))
    assert largest_difference(model, seeing, AllFrames(), 4) > 1e-4


def test_clean_and_masked_copies_are_interleaved_and_the_last_clean_one_is_left_out() -> None:
    sequence = AllFrames(masks=2).sequence([], 3, TOKENS)
    assert [(part.unit, part.copy) for part in sequence.parts] == [(0, 0), (1, 1), (1, 2), (1, 0), (2, 1), (2, 2)]
    assert AllFrames().sequence([], 5, TOKENS).visibility.starts[-1] == 2 * (5 - 1) * TOKENS


def test_a_still_supervises_its_only_frame() -> None:
    sequence = AllFrames().sequence([], 1, TOKENS)
    assert [(part.unit, part.copy) for part in sequence.parts] == [(0, 1)]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.integers(1, 5), st.integers(0, 9))
def test_every_frame_but_the_given_one_is_supervised_within_its_ratio(block: int, masks: int, frames: int, tokens: int, seed: int) -> None:
    supervision = AllFrames(block, masks)
    target = supervision.draw(np.random.default_rng(seed), frames, tokens, CONFIG)
    sequence = supervision.sequence([target], frames, tokens)
    for place, masked in target.masked.items():
        assert 0.7 * sequence.parts[place].tokens <= len(masked) <= sequence.parts[place].tokens
    counts = supervised_by_frame([target], sequence, frames, tokens)
    assert counts.sum() == target.supervised
    assert counts[0] == 0 or frames == 1
    masked_BL, rows = masks_and_rows([target], sequence)
    assert int(masked_BL.sum()) == len(rows) == target.supervised


def test_the_mask_ratio_follows_the_truncated_normal() -> None:
    rng, ratios = np.random.default_rng(0), []
    for _ in range(4000):
        target = OneFrame().draw(rng, 2, 1000, ModelConfig())
        ratios.append(target.supervised / 1000)
    assert np.mean(ratios) == pytest.approx(0.867, abs=0.005)
    assert (min(ratios), max(ratios)) >= (0.7, 0.99)


def test_losses_of_all_frames_are_reported_by_frame(model: VideoMAR, make_batch: MakeBatch) -> None:
    losses = model(make_batch(supervision=AllFrames()))
    assert losses.shape == (3, 4)
    assert (losses[:, 0] == 0).all()
    assert (losses[:, 1:] > 0).all()


@pytest.mark.parametrize("supervision", [OneFrame(), AllFrames(block=2, masks=2)], ids=str)
def test_training_disturbs_the_context_and_nothing_that_is_to_be_predicted(supervision: OneFrame | AllFrames) -> None:
    rng = np.random.default_rng(0)
    target = supervision.draw(rng, 5, TOKENS, CONFIG)
    sequence = supervision.sequence([target], 5, TOKENS)
    level, noise, masked = Disturbance(noise=0.5, masked=0.5).draw(rng, target, sequence, channels=4)
    part = sequence.visibility.part_of_token().numpy()
    context = ~np.isin(part, list(target.masked))
    assert 0 < level < 0.5
    assert np.array_equal(noise.any(axis=1), context)
    assert masked[context].any()
    assert not masked[context].all()
    assert not masked[~context].any()
    assert 0.5 * level < noise[context].std() < 1.5 * level
