"""The packed layout of the flash backend equals the dense reference; the kernel itself is checked where there is a GPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.attention import attend
from model.flash import attend_packed, packing
from model.supervision import AllFrames
from model.visibility import Part, Visibility, frame_causal
from tests.model.test_attention import PARTS, RULES, visibility_of

CPU = torch.device("cpu")


def one_by_one(q: Tensor, k: Tensor, v: Tensor, query_starts: Tensor, key_starts: Tensor, longest_query: int, longest_keys: int) -> Tensor:
    """What the kernel promises: sequence after sequence, each its own queries against its own keys."""
    assert int(query_starts.diff().max()) == longest_query
    assert int(key_starts.diff().max()) == longest_keys
    assert (len(q), len(k)) == (query_starts[-1], key_starts[-1])
    pieces = [x.tensor_split(starts[1:-1].long()) for x, starts in ((q, query_starts), (k, key_starts), (v, key_starts))]
    outputs = [F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in each)) for each in zip(*pieces, strict=True)]
    return torch.cat([output[0].transpose(0, 1) for output in outputs])


def tensors(visibility: Visibility, seed: int, samples: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, 2, visibility.starts[-1], 4)
    return [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(3)]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(RULES)), PARTS, st.integers(0, 99), st.integers(1, 3))
def test_packed_attention_and_its_gradients_equal_the_dense_reference(
    rule: str, parts: list[tuple[int, int, int]], seed: int, samples: int
) -> None:
    visibility = visibility_of(rule, parts)
    given_tensors = tensors(visibility, seed, samples)
    packed, dense = attend_packed(*given_tensors, visibility, one_by_one), attend(*given_tensors, visibility, "dense")
    torch.testing.assert_close(packed, dense, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(dense.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    for found, expected in zip(*(torch.autograd.grad(out, given_tensors, upstream) for out in (packed, dense)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_no_sample_sees_another_ones_keys() -> None:
    visibility = AllFrames().sequence([], 3, 4).visibility
    q, k, v = tensors(visibility, 0)
    before = attend_packed(q, k, v, visibility, one_by_one)
    after = attend_packed(q, k * torch.tensor([1.0, 3.0])[:, None, None, None], v, visibility, one_by_one)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_gathered_keys_are_just_the_visible_pairs() -> None:
    visibility = AllFrames(masks=2).sequence([], 4, 5).visibility
    assert len(packing(visibility, 3, CPU).keys) * 5 == 3 * visibility.pairs()


def test_a_packing_is_made_once_for_a_bucket() -> None:
    parts = tuple(Part(frame, 0, 3) for frame in range(3))
    assert packing(Visibility(frame_causal, parts), 2, CPU) is packing(Visibility(frame_causal, parts), 2, CPU)


def test_a_cpu_is_refused_in_one_line() -> None:
    visibility = Visibility(frame_causal, (Part(0, 0, 2),))
    with pytest.raises(ValueError, match=r"^attention backend flash runs on CUDA, not on cpu: choose sdpa-chunked$"):
        attend(*tensors(visibility, 0), visibility, "flash")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the flash kernel needs CUDA")
@pytest.mark.parametrize("backend", ["flash", "flex"])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_gpu_kernels_equal_the_dense_reference(rule: str, backend: str) -> None:
    parts = [(unit, copy, 40) for unit in range(4) for copy in (1, 0)]
    visibility = visibility_of(rule, parts)
    generator = torch.Generator().manual_seed(0)
    shape = (2, 2, visibility.starts[-1], 64)
    q, k, v = (torch.randn(shape, generator=generator).to("cuda", torch.bfloat16).requires_grad_() for _ in range(3))
    found, expected = attend(q, k, v, visibility, backend), attend(q.float(), k.float(), v.float(), visibility, "dense")
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)
    upstream = torch.randn(shape, generator=generator).to("cuda")
    for a, b in zip(
        torch.autograd.grad(found, (q, k, v), upstream.bfloat16()), torch.autograd.grad(expected, (q, k, v), upstream), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=3e-2, atol=3e-2)
