"""Train = sample (promise 4): the cached sampler computes the training forward's hidden states; schedules follow the paper's formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from model.reveal import masked_after, reveal_schedule
from model.rope3d import grid_positions
from model.sampling import FrameSampler, SamplingConfig, generate, guidance_weight, progressive_temperature
from model.supervision import TrainingBatch
from model.videomar import VideoMAR
from model.visibility import Part, Visibility, frame_causal

MakeBatch = Callable[..., TrainingBatch]
FRAMES, HEIGHT, WIDTH = 4, 2, 3
TOKENS = HEIGHT * WIDTH


def training_hidden(model: VideoMAR, latents: torch.Tensor, masked: torch.Tensor, batch: TrainingBatch, drop: bool) -> torch.Tensor:
    """Trunk outputs of the whole sequence in one pass, as training computes them."""
    text, mask = model.text_keys(batch.text, batch.text_length, torch.full((len(latents),), drop))
    positions = grid_positions(range(FRAMES), HEIGHT, WIDTH)
    return model.trunk(
        latents, masked, positions, text, mask, Visibility(frame_causal, tuple(Part(frame, 0, TOKENS) for frame in range(FRAMES)))
    )


def largest_difference(model: VideoMAR, batch: TrainingBatch, offset: int = 0) -> float:
    """Between the cached sampler's hidden states of a half-masked frame and training's, over all frames and both branches."""
    samples = len(batch.text)
    latents = torch.randn(samples, FRAMES, TOKENS, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sampler = FrameSampler(model, batch.text, batch.text_length, (HEIGHT, WIDTH), FRAMES, SamplingConfig(guidance=2.0))
    worst = 0.0
    for frame in range(FRAMES):
        masked = torch.zeros(samples, FRAMES, TOKENS, dtype=torch.bool)
        masked[:, frame, ::2] = True
        sampler.kept += offset
        cached = sampler.hidden(latents[:, frame], masked[:, frame]).chunk(2)
        sampler.kept -= offset
        for branch, drop in enumerate((False, True)):
            whole = training_hidden(model, latents.flatten(1, 2), masked.flatten(1), batch, drop)
            difference = cached[branch] - whole[:, frame * TOKENS : (frame + 1) * TOKENS]
            worst = max(worst, difference.detach().abs().max().item())
        sampler.keep(latents[:, frame])
    return worst


def test_the_cached_sampler_computes_the_training_forward(model: VideoMAR, make_batch: MakeBatch) -> None:
    assert largest_difference(model, make_batch()) < 1e-12


def test_a_cache_at_wrong_positions_would_be_noticed(model: VideoMAR, make_batch: MakeBatch) -> None:
    assert largest_difference(model, make_batch(), offset=1) > 1e-4


def test_a_frame_that_is_not_kept_clean_would_be_noticed(model: VideoMAR, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    def keep_masked(self: FrameSampler, frame: torch.Tensor) -> None:
        self.hidden(frame, torch.ones(frame.shape[:2], dtype=torch.bool))
        self.cache.advance(self.tokens)
        self.kept += 1

    monkeypatch.setattr(FrameSampler, "keep", keep_masked)
    assert largest_difference(model, make_batch()) > 1e-4


def sampled(model: VideoMAR, batch: TrainingBatch, rows: slice, guidance: float = 2.0) -> torch.Tensor:
    given = torch.randn(3, 1, HEIGHT, WIDTH, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rngs = [np.random.default_rng(row) for row in range(3)][rows]
    config = SamplingConfig(iterations=3, head_steps=4, guidance=guidance)
    return generate(model, given[rows], batch.text[rows], batch.text_length[rows], FRAMES, config, rngs)


def test_generation_keeps_what_was_given_and_is_reproducible(model: VideoMAR, make_batch: MakeBatch) -> None:
    batch = make_batch()
    video = sampled(model, batch, slice(0, 3))
    assert video.shape == (3, FRAMES, HEIGHT, WIDTH, 4)
    assert video.isfinite().all()
    assert torch.equal(video, sampled(model, batch, slice(0, 3)))
    given = torch.randn(3, 1, HEIGHT, WIDTH, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.equal(video[:, :1], given)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_video_alone_equals_its_row_in_a_batch(model: VideoMAR, make_batch: MakeBatch, guidance: float) -> None:
    batch = make_batch()
    together, alone = sampled(model, batch, slice(0, 3), guidance), sampled(model, batch, slice(1, 2), guidance)
    torch.testing.assert_close(alone, together[1:2], rtol=1e-10, atol=1e-10)


def test_frames_are_announced_as_they_are_done(model: VideoMAR, make_batch: MakeBatch) -> None:
    batch, seen = make_batch(), []
    given = torch.zeros(3, 1, HEIGHT, WIDTH, 4, dtype=torch.float64)
    rngs = [np.random.default_rng(row) for row in range(3)]
    config = SamplingConfig(iterations=2, head_steps=2)
    video = generate(model, given, batch.text, batch.text_length, 3, config, rngs, lambda index, frame: seen.append((index, frame)))
    assert [index for index, _ in seen] == [1, 2]
    assert all(torch.equal(frame, video[:, index]) for index, frame in seen)


@pytest.mark.parametrize("tokens", [1, 7, 64, 1440])
@pytest.mark.parametrize("iterations", [1, 4, 64])
def test_the_reveal_follows_the_cosine_and_covers_every_token_once(tokens: int, iterations: int) -> None:
    for k in range(iterations - 1):
        assert masked_after(k, iterations, tokens) == max(1, math.floor(tokens * math.cos(math.pi / 2 * (k + 1) / iterations)))
    assert masked_after(iterations - 1, iterations, tokens) == 0
    parts = reveal_schedule(iterations, tokens)
    assert [place for start, stop in parts for place in range(start, stop)] == list(range(tokens))
    assert len(parts) <= min(iterations, tokens)


def test_temperature_and_guidance_follow_the_paper() -> None:
    assert [round(progressive_temperature(frame), 6) for frame in range(3)] == [1.0, 0.91, 0.901]
    assert guidance_weight(3.0, masked=64, tokens=64) == 1.0
    assert guidance_weight(3.0, masked=16, tokens=64) == pytest.approx(1.0 + 2.0 * 48 / 64)
