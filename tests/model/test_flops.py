"""The FLOP formula against PyTorch's own count of the real forward and backward; they are integers and must be equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.attention import BACKENDS
from model.config import SIZES, ModelConfig
from model.flops import forward_flops, head_flops, training_flops
from model.supervision import AllFrames, TrainingBatch
from model.videomar import VideoMAR
from model.visibility import Part, Visibility, frame_causal

from .conftest import CONFIG

MakeBatch = Callable[..., TrainingBatch]
ALL_FRAMES = [(AllFrames(1, 1), 4), (AllFrames(1, 3), 4), (AllFrames(2, 2), 6), (AllFrames(4, 1), 3), (AllFrames(1, 2), 1)]
PAPER_SEQUENCE = Visibility(frame_causal, tuple(Part(frame, 0, 1440) for frame in range(7)))


def counted(model: VideoMAR, batch: TrainingBatch, backward: bool = False) -> int:
    """FLOPs that PyTorch counts; the MATH backend shows it attention as the matrix products that it is."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = model(batch).sum()
        if backward:
            loss.backward()
    return counter.get_total_flops()


def input_gradients(batch: TrainingBatch) -> int:
    """FLOPs of the gradients that nothing asks for: of the latents, the caption, the noised latents and the time features."""
    tokens, rows = batch.masked.shape[1], len(batch.rows) * CONFIG.head_repeats
    told = CONFIG.text_width * CONFIG.text_tokens + 256 * len(CONFIG.conditions)
    embeddings = CONFIG.width * (CONFIG.latent_channels * tokens + told)
    return 2 * (len(batch.text) * embeddings + rows * (CONFIG.latent_channels + 256) * CONFIG.head_width)


@pytest.mark.parametrize("backend", ["sdpa-chunked", "dense"])
def test_a_single_frame_costs_what_is_counted_under_either_attention(
    model: VideoMAR, make_batch: MakeBatch, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKENDS, "sdpa-chunked", BACKENDS[backend])
    batch = make_batch(samples=1, frames=1)
    assert counted(model, batch) == forward_flops(CONFIG, batch.sequence.visibility, len(batch.rows))


@pytest.mark.parametrize("frames", [2, 4, 7])
def test_several_frames_cost_what_chunked_attention_computes(model: VideoMAR, make_batch: MakeBatch, frames: int) -> None:
    batch = make_batch(samples=1, frames=frames)
    assert counted(model, batch) == forward_flops(CONFIG, batch.sequence.visibility, len(batch.rows))


def test_a_dense_mask_costs_the_forbidden_pairs_on_top(model: VideoMAR, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "sdpa-chunked", BACKENDS["dense"])
    batch = make_batch(samples=1, frames=7)
    seen, length = batch.sequence.visibility, batch.masked.shape[1]
    assert batch.latents.shape[1] > 1
    forbidden = 2 * 2 * CONFIG.depth * CONFIG.width * (length**2 - seen.pairs())
    assert counted(model, batch) == forward_flops(CONFIG, seen, len(batch.rows)) + forbidden


@pytest.mark.parametrize(("supervision", "frames"), ALL_FRAMES)
def test_all_frames_cost_what_chunked_attention_computes_forward_and_backward(
    model: VideoMAR, make_batch: MakeBatch, supervision: AllFrames, frames: int
) -> None:
    batch = make_batch(samples=1, frames=frames, supervision=supervision)
    seen, supervised = batch.sequence.visibility, len(batch.rows)
    assert counted(model, batch) == forward_flops(CONFIG, seen, supervised)
    assert counted(model, batch, backward=True) == training_flops(CONFIG, seen, supervised) - input_gradients(batch)


def test_a_batch_of_all_frames_costs_its_trunks_and_the_head_on_its_supervised_tokens(model: VideoMAR, make_batch: MakeBatch) -> None:
    batch = make_batch(samples=3, supervision=AllFrames(masks=2))
    assert counted(model, batch) == 3 * forward_flops(CONFIG, batch.sequence.visibility, 0) + head_flops(CONFIG, len(batch.rows))


def test_all_frames_under_another_rule_would_be_noticed(model: VideoMAR, make_batch: MakeBatch) -> None:
    batch = make_batch(samples=1, supervision=AllFrames())
    causal = replace(batch.sequence, rule=frame_causal)
    assert counted(model, batch) < forward_flops(CONFIG, causal.visibility, len(batch.rows))
    assert counted(model, replace(batch, sequence=causal)) == forward_flops(CONFIG, causal.visibility, len(batch.rows))


@pytest.mark.parametrize("config", [replace(CONFIG, head="flow")])
def test_the_flow_head_costs_its_one_output_per_channel(model: VideoMAR, make_batch: MakeBatch, config: ModelConfig) -> None:
    batch = make_batch(samples=1)
    seen, supervised = batch.sequence.visibility, len(batch.rows)
    assert counted(model, batch) == forward_flops(config, seen, supervised)
    assert counted(model, batch, backward=True) == training_flops(config, seen, supervised) - input_gradients(batch)


def test_a_batch_costs_its_trunks_and_the_head_on_its_supervised_tokens(model: VideoMAR, make_batch: MakeBatch) -> None:
    batch = make_batch(samples=3)
    assert counted(model, batch) == 3 * forward_flops(CONFIG, batch.sequence.visibility, 0) + head_flops(CONFIG, len(batch.rows))


@pytest.mark.parametrize("frames", [1, 4])
def test_the_backward_costs_twice_the_forward_less_the_gradients_of_the_inputs(model: VideoMAR, make_batch: MakeBatch, frames: int) -> None:
    batch = make_batch(samples=1, frames=frames)
    expected = training_flops(CONFIG, batch.sequence.visibility, len(batch.rows))
    assert counted(model, batch, backward=True) == expected - input_gradients(batch)
    assert expected == 3 * forward_flops(CONFIG, batch.sequence.visibility, len(batch.rows))


def test_the_gradients_of_the_inputs_are_no_part_that_matters_at_the_papers_size() -> None:
    paper, seen, supervised = SIZES["videomar-1.4b"], PAPER_SEQUENCE, 1250
    unasked = 2 * (16 * 1536 * 7 * 1440 + 1536**2 * 300 + supervised * 4 * (16 + 256) * 1024)
    assert unasked < 1e-3 * training_flops(paper, seen, supervised)


def test_one_training_pass_at_the_papers_size_is_about_six_flops_per_parameter_and_token_and_the_attention() -> None:
    paper, seen = SIZES["videomar-1.4b"], PAPER_SEQUENCE
    tokens, per_token = 7 * 1440, 36 * (12 + 2) * 1536**2  # cross-attention's keys and values are made of the caption
    attention = 3 * 2 * 2 * 36 * 1536 * (seen.pairs() + tokens * 300)
    assert training_flops(paper, seen, 1250) == pytest.approx(6 * per_token * tokens + attention, rel=0.02)


def test_leaving_cross_attention_out_would_be_noticed(model: VideoMAR, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch(samples=1)
    monkeypatch.setattr("model.block.CrossAttention.forward", lambda self, x, keys_values, mask: torch.zeros_like(x))
    assert counted(model, batch) < forward_flops(CONFIG, batch.sequence.visibility, len(batch.rows))
