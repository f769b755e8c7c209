"""The training forward: sizes, causality, padding, independence of samples, every parameter in the graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.config import SIZES, ModelConfig, named_size
from model.supervision import AllFrames, TokenSequence, TrainingBatch
from model.videomar import VideoMAR
from model.visibility import Part, frame_causal
from tests.model.conftest import CONFIG, awake

MakeBatch = Callable[..., TrainingBatch]


def size_of(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in VideoMAR(config).parameters())


def hidden(model: VideoMAR, batch: TrainingBatch) -> torch.Tensor:
    """Trunk outputs [B, L, D] of the training forward, caught on the way to the head."""
    caught = []
    hook = model.norm.register_forward_hook(lambda module, inputs, output: caught.append(output))
    model(batch)
    hook.remove()
    return caught[0]


def test_the_paper_size_has_1_383_billion_parameters() -> None:
    assert size_of(SIZES["videomar-1.4b"]) == pytest.approx(1.383e9, rel=0.005)


@pytest.mark.parametrize("heads", [4, 8])
def test_the_toy_has_three_to_six_million_parameters(heads: int) -> None:
    assert 3e6 < size_of(named_size("toy", heads=heads)) < 6e6


def test_an_unknown_size_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"model.size 'huge' is unknown: choose one of toy, "):
        named_size("huge")


@pytest.mark.parametrize("changes", [{"width": 100, "heads": 3}, {"width": 24, "heads": 4}, {"depth": 0}, {"mask_ratio_min": 0.0}])
def test_fields_that_do_not_fit_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"model\."):
        ModelConfig(**changes)


def test_a_later_frame_changes_no_earlier_hidden_state(model: VideoMAR, make_batch: MakeBatch) -> None:
    batch = make_batch()
    tokens = batch.latents.shape[2] * batch.latents.shape[3]
    before = hidden(model, batch)
    last = batch.latents.shape[1] - 1
    changed = batch.latents.clone()
    changed[:, last] += 1.0
    after = hidden(model, replace(batch, latents=changed, masked=torch.zeros_like(batch.masked)))
    clean = hidden(model, replace(batch, masked=torch.zeros_like(batch.masked)))
    assert torch.equal(after[:, : last * tokens], clean[:, : last * tokens])
    assert not torch.equal(after[:, last * tokens :], clean[:, last * tokens :])
    assert before.shape == after.shape


def test_a_masked_latent_is_not_seen_by_anything(model: VideoMAR, make_batch: MakeBatch) -> None:
    batch = make_batch()
    latents = batch.latents.clone().flatten(1, 3)
    latents[batch.masked] += 5.0
    assert torch.equal(hidden(model, batch), hidden(model, replace(batch, latents=latents.view_as(batch.latents))))


def test_text_padding_changes_nothing_and_real_text_does(model: VideoMAR, make_batch: MakeBatch) -> None:
    batch = make_batch()
    padded, real = batch.text.clone(), batch.text.clone()
    for row, length in enumerate(batch.text_length.tolist()):
        padded[row, length:] = 9.0
    real[0, 0] += 1.0
    assert torch.equal(model(batch), model(replace(batch, text=padded)))
    assert not torch.equal(model(batch)[0], model(replace(batch, text=real))[0])


def test_a_dropped_caption_is_the_null_text_whatever_it_said(model: VideoMAR, make_batch: MakeBatch) -> None:
    batch = replace(make_batch(), drop_text=torch.ones(3, dtype=torch.bool))
    assert torch.equal(model(batch), model(replace(batch, text=batch.text + 1.0, text_length=batch.text_length - 1)))


def test_conditions_matter_unless_they_are_not_told_or_the_caption_is_dropped(model: VideoMAR, make_batch: MakeBatch) -> None:
    batch = make_batch()  # row 1 has its caption dropped, row 2 is not told its motion
    faster, livelier = batch.conditions.clone(), batch.conditions.clone()
    faster[:, 0] *= 2
    livelier[:2, 1] *= 2
    changed = [
        [bool((a != b).any()) for a, b in zip(model(batch), model(replace(batch, conditions=c)), strict=True)] for c in (faster, livelier)
    ]
    assert changed == [[True, False, True], [True, False, False]]


def test_context_noise_reaches_what_is_seen_and_not_what_is_to_be_predicted(model: VideoMAR, make_batch: MakeBatch) -> None:
    batch = make_batch(supervision=AllFrames())
    noise = torch.randn(*batch.masked.shape, 4, dtype=torch.float64)
    on_masked = replace(batch, context_noise=noise * batch.masked[..., None])
    assert torch.equal(model(batch), model(on_masked)), "a masked token's latent is never seen, and its target stays clean"
    assert not torch.equal(model(batch), model(replace(batch, context_noise=noise)))


def test_a_batch_of_one_equals_its_row_in_a_larger_batch(model: VideoMAR, make_batch: MakeBatch) -> None:
    batch = make_batch()
    length = batch.masked.shape[1]
    for row in range(3):
        mine = batch.rows // length == row
        alone = TrainingBatch(
            latents=batch.latents[row : row + 1],
            sequence=batch.sequence,
            masked=batch.masked[row : row + 1],
            rows=batch.rows[mine] - row * length,
            head_draws=(batch.head_draws[0][mine], batch.head_draws[1][mine]),
            text=batch.text[row : row + 1],
            text_length=batch.text_length[row : row + 1],
            drop_text=batch.drop_text[row : row + 1],
            conditions=batch.conditions[row : row + 1],
        )
        torch.testing.assert_close(model(alone), model(batch)[row : row + 1], rtol=1e-12, atol=1e-12)


def test_cutting_after_the_last_target_does_not_change_the_loss(model: VideoMAR, make_batch: MakeBatch) -> None:
    batch = make_batch(frames=5)
    kept, tokens = batch.latents.shape[1], batch.latents.shape[2] * batch.latents.shape[3]
    longer = torch.cat([batch.latents, torch.randn_like(batch.latents[:, :1])], dim=1)
    masked = torch.cat([batch.masked, torch.zeros(3, tokens, dtype=torch.bool)], dim=1)
    rows = masked.flatten().nonzero().squeeze(1)
    sequence = TokenSequence(frame_causal, tuple(Part(frame, 0, tokens) for frame in range(kept + 1)), tuple((f,) for f in range(kept + 1)))
    uncut = model(replace(batch, latents=longer, sequence=sequence, masked=masked, rows=rows))
    torch.testing.assert_close(model(batch), uncut[:, :kept], rtol=1e-12, atol=1e-12)


def test_every_parameter_is_in_the_graph_even_when_no_text_is_dropped(model: VideoMAR, make_batch: MakeBatch) -> None:
    model(replace(make_batch(), drop_text=torch.zeros(3, dtype=torch.bool))).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_a_wrong_visibility_would_be_noticed(model: VideoMAR, make_batch: MakeBatch) -> None:
    batch = make_batch()
    blind = replace(batch.sequence, rule=lambda query, key: key == query)
    assert not torch.allclose(model(batch), model(replace(batch, sequence=blind)), rtol=1e-4)


@pytest.mark.parametrize("head", ["ddpm", "flow"])
def test_under_bf16_the_head_and_its_loss_stay_in_fp32(head: str, make_batch: MakeBatch) -> None:
    torch.manual_seed(0)
    model = awake(VideoMAR(replace(CONFIG, head=head)))
    batch = make_batch()
    times, noise = (torch.from_numpy(part) for part in model.head.draw(np.random.default_rng(0), len(batch.rows)))
    batch = replace(batch, latents=batch.latents.float(), head_draws=(times, noise))
    seen = []
    for module in model.head.modules():
        module.register_forward_hook(lambda module, arguments, output: seen.append(output.dtype))
    exact = model(batch)
    stored = copy.deepcopy(model).bfloat16()(batch)
    with torch.autocast("cpu", torch.bfloat16):
        cast = model(batch)
    assert set(seen) == {torch.float32}
    for loss in (stored, cast):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact, rtol=0.05, atol=0.05)
