"""Train = sample (promise 4): the cached sampler computes the training forward's hidden states; schedules follow the paper's formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from model.block import take
from model.reveal import masked_after, reveal_schedule
from model.rope3d import grid_positions
from model.sampling import FrameSampler, SamplingConfig, generate, linear_guidance
from model.supervision import AllFrames, TrainingBatch
from model.videomar import VideoMAR
from model.visibility import Part, Visibility, frame_causal
from tests.model.conftest import CONFIG, windowed

MakeBatch = Callable[..., TrainingBatch]
FRAMES, HEIGHT, WIDTH = 4, 2, 3
TOKENS = HEIGHT * WIDTH


def training_hidden(model: VideoMAR, latents: torch.Tensor, masked: torch.Tensor, batch: TrainingBatch, drop: bool) -> torch.Tensor:
    """Trunk outputs of the whole sequence in one pass, as training computes them."""
    text, mask = model.text_keys(batch.text, batch.text_length, torch.full((len(latents),), drop), batch.conditions)
    positions = grid_positions(range(FRAMES), HEIGHT, WIDTH)
    return model.trunk(
        latents, masked, positions, text, mask, Visibility(frame_causal, tuple(Part(frame, 0, TOKENS) for frame in range(FRAMES)))
    )


def told(batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return batch.text, batch.text_length, batch.conditions


def largest_difference(model: VideoMAR, batch: TrainingBatch, offset: int = 0, prefill: int = 1) -> float:
    """Between the cached sampler's hidden states of a half-masked frame, all or a few of each sample, and training's: over all frames
    and both branches."""
    samples = len(batch.text)
    chosen = torch.stack([torch.randperm(TOKENS, generator=torch.Generator().manual_seed(sample))[:2] for sample in range(samples)])
    latents = torch.randn(samples, FRAMES, TOKENS, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sampler = FrameSampler(model, told(batch), (HEIGHT, WIDTH), FRAMES, prefill, SamplingConfig(guidance=2.0))
    worst = 0.0
    for frame in range(FRAMES):
        if frame == prefill:
            sampler.keep(latents[:, :prefill], [])
        elif frame > prefill:
            sampler.keep(latents[:, frame - 1 : frame], [])
        if frame and frame < prefill:
            continue
        masked = torch.zeros(samples, FRAMES, TOKENS, dtype=torch.bool)
        masked[:, frame, ::2] = True
        positions = grid_positions([frame + offset], HEIGHT, WIDTH)
        for branch, drop in zip(sampler.branches, (False, True), strict=True):
            cached = branch.hidden(latents[:, frame], masked[:, frame], positions)
            few = branch.hidden(latents[:, frame], masked[:, frame], positions, chosen_BR=chosen)
            whole = training_hidden(model, latents.flatten(1, 2), masked.flatten(1), batch, drop)
            here = whole[:, frame * TOKENS : (frame + 1) * TOKENS]
            for difference in (cached - here, few - take(here, chosen)):
                worst = max(worst, difference.detach().abs().max().item())
    return worst


@pytest.mark.parametrize("prefill", [1, 2, 3])
def test_the_cached_sampler_computes_the_training_forward(model: VideoMAR, make_batch: MakeBatch, prefill: int) -> None:
    assert largest_difference(model, make_batch(), prefill=prefill) < 1e-12


def test_a_cache_at_wrong_positions_would_be_noticed(model: VideoMAR, make_batch: MakeBatch) -> None:
    assert largest_difference(model, make_batch(), offset=1) > 1e-4


def test_a_frame_that_is_not_kept_clean_would_be_noticed(model: VideoMAR, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    right = FrameSampler.keep
    monkeypatch.setattr(FrameSampler, "keep", lambda self, video, rngs: right(self, video + 0.5, rngs))
    assert largest_difference(model, make_batch()) > 1e-4


def windowed_hidden(model: VideoMAR, latents: torch.Tensor, batch: TrainingBatch, frame: int, seen: list[int]) -> torch.Tensor:
    """Trunk outputs of one frame that sees only the frames `seen` before it, whose own states were computed under the same window."""
    text, mask = model.text_keys(batch.text, batch.text_length, torch.zeros(len(latents), dtype=torch.bool), batch.conditions)
    rule = windowed(frame_causal, sink=1, window=3)
    visibility = Visibility(rule, tuple(Part(place, 0, TOKENS) for place in range(frame + 1)))
    assert visibility.seen(frame) == [*seen, frame]
    positions = grid_positions(range(frame + 1), HEIGHT, WIDTH)
    clean = torch.zeros(len(latents), (frame + 1) * TOKENS, dtype=torch.bool)
    return model.trunk(latents[:, : frame + 1].flatten(1, 2), clean, positions, text, mask, visibility)[:, -TOKENS:]


def test_a_window_keeps_the_sink_and_the_newest_frames_in_flat_memory(model: VideoMAR, make_batch: MakeBatch) -> None:
    batch, frames = make_batch(), 9
    latents = torch.randn(3, frames, TOKENS, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    config = SamplingConfig(guidance=1.0, sink=1, window=3)
    sampler = FrameSampler(model, told(batch), (HEIGHT, WIDTH), frames, 1, config)
    cache = sampler.branches[0].cache
    assert cache is not None
    assert cache.keys[0].shape[2] == (1 + 2 + 1) * TOKENS
    clean = torch.zeros(3, TOKENS, dtype=torch.bool)
    for frame in range(frames):
        seen = [0, *range(max(1, frame - 2), frame)] if frame else []
        cached = sampler.branches[0].hidden(latents[:, frame], clean, sampler.positions(1))
        torch.testing.assert_close(cached, windowed_hidden(model, latents, batch, frame, seen), rtol=1e-10, atol=1e-10)
        assert cache.length == len(seen) * TOKENS
        sampler.keep(latents[:, frame : frame + 1], [])


def sampled(model: VideoMAR, batch: TrainingBatch, rows: slice, guidance: float = 2.0, **changes: Any) -> torch.Tensor:
    given = torch.randn(3, 1, HEIGHT, WIDTH, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rngs = [np.random.default_rng(row) for row in range(3)][rows]
    config = SamplingConfig(iterations=3, head_steps=4, guidance=guidance, **changes)
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


@pytest.mark.parametrize("config", [replace(CONFIG, block=2)], ids=["block 2"])
@pytest.mark.parametrize("given", [1, 3])
def test_a_block_sampler_computes_the_training_forward(model: VideoMAR, make_batch: MakeBatch, given: int) -> None:
    """Units {0}, {1, 2}, {3, 4}: the masked last block of training's interleaved sequence against the cached sampler's."""
    batch = make_batch(frames=5, supervision=AllFrames(block=2))
    latents, parts = batch.latents.flatten(2, 3), batch.sequence.parts
    text, mask = model.text_keys(batch.text, batch.text_length, torch.zeros(3, dtype=torch.bool), batch.conditions)
    order = batch.sequence.frame_order
    trunk = model.trunk(
        latents[:, order].flatten(1, 2), batch.masked, grid_positions(order, HEIGHT, WIDTH), text, mask, batch.sequence.visibility
    )
    last = next(place for place, part in enumerate(parts) if (part.unit, part.copy) == (2, 1))
    own = slice(batch.sequence.visibility.starts[last], batch.sequence.visibility.starts[last + 1])
    sampler = FrameSampler(model, told(batch), (HEIGHT, WIDTH), 5, given, SamplingConfig(guidance=1.0))
    sampler.keep(latents[:, :given], [])
    if given < 3:
        sampler.keep(latents[:, given:3], [])
    cached = sampler.branches[0].hidden(latents[:, 3:].flatten(1, 2), batch.masked[:, own], sampler.positions(2))
    torch.testing.assert_close(cached, trunk[:, own], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("config", [replace(CONFIG, block=3)], ids=["block 3"])
@pytest.mark.parametrize("window", [0, 3])
def test_blocks_are_sampled_together_announced_one_by_one_and_the_last_may_be_shorter(
    model: VideoMAR, make_batch: MakeBatch, window: int
) -> None:
    batch, seen = make_batch(), []
    rngs = [np.random.default_rng(row) for row in range(3)]
    given = torch.zeros(3, 1, HEIGHT, WIDTH, 4, dtype=torch.float64)
    config = SamplingConfig(2, 2, window=window)
    video = generate(model, given, batch.text, batch.text_length, 9, config, rngs, lambda index, frame: seen.append(index))
    assert seen == list(range(1, 9))
    assert video.isfinite().all()


@pytest.mark.parametrize("changes", [{"context_noise": 0.3}, {"context_masked": 0.5}, {"conditions": {"motion": 0.2}}], ids=str)
def test_what_the_sampler_is_told_about_context_and_motion_changes_the_video(
    model: VideoMAR, make_batch: MakeBatch, changes: dict[str, Any]
) -> None:
    batch = make_batch()
    plain, changed, again = (sampled(model, batch, slice(0, 3), **wish) for wish in ({}, changes, changes))
    assert torch.equal(changed, again)
    assert not torch.allclose(plain, changed)


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
    assert [round(SamplingConfig().tau(frame), 6) for frame in range(3)] == [1.0, 0.91, 0.901]
    assert linear_guidance(3.0, masked=64, tokens=64) == 1.0
    assert linear_guidance(3.0, masked=16, tokens=64) == pytest.approx(1.0 + 2.0 * 48 / 64)


@pytest.mark.parametrize("away_from", ["text", "history", "both"])
def test_guidance_moves_away_from_what_the_second_branch_lacks(model: VideoMAR, make_batch: MakeBatch, away_from: str) -> None:
    batch = make_batch()
    plain, guided = (sampled(model, batch, slice(0, 3), weight, away_from=away_from) for weight in (1.0, 3.0))
    assert guided.isfinite().all()
    assert not torch.allclose(plain, guided)


@pytest.mark.parametrize("given", [0, 1, 3])
def test_any_number_of_given_frames_is_continued(model: VideoMAR, make_batch: MakeBatch, given: int) -> None:
    batch = make_batch()
    start = torch.randn(3, given, HEIGHT, WIDTH, 4, dtype=torch.float64)
    rngs = [np.random.default_rng(row) for row in range(3)]
    video = generate(model, start, batch.text, batch.text_length, FRAMES, SamplingConfig(2, 2), rngs)
    assert video.shape == (3, FRAMES, HEIGHT, WIDTH, 4)
    assert torch.equal(video[:, :given], start)


@pytest.mark.parametrize(
    ("given", "channels", "changes", "message"),
    [
        (1, 5, {}, "5 latent channels, the model 4: another tokenizer"),
        (3, 4, {"window": 2}, "3 given frames do not fit a window of 1 \\+ 1 frames"),
        (1, 4, {"conditions": {"tempo": 1.0}}, "not trained with the condition 'tempo'; it knows fps, motion"),
    ],
)
def test_what_does_not_fit_is_refused(
    model: VideoMAR, make_batch: MakeBatch, given: int, channels: int, changes: dict[str, Any], message: str
) -> None:
    batch = make_batch()
    start = torch.zeros(3, given, HEIGHT, WIDTH, channels, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        generate(model, start, batch.text, batch.text_length, 6, SamplingConfig(2, 2, **changes), [np.random.default_rng(0)] * 3)


def test_guidance_without_a_null_branch_is_refused(make_batch: MakeBatch) -> None:
    batch, model = make_batch(), VideoMAR(replace(CONFIG, text_dropout=0.0)).double()
    with pytest.raises(ValueError, match="trained with text_dropout 0"):
        generate(model, torch.zeros(3, 1, HEIGHT, WIDTH, 4).double(), batch.text, batch.text_length, 2, SamplingConfig(2, 2), [])


def test_a_constant_temperature_is_constant() -> None:
    assert [SamplingConfig(temperature=0.9).tau(frame) for frame in range(3)] == [0.9] * 3
