"""Visibility rules, and the two backends that must agree on them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.attention import attend
from model.visibility import Visibility, frame_causal

RULES = {"frame_causal": frame_causal, "own and first": lambda query, key: key in (0, query), "own only": lambda query, key: key == query}


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(RULES)), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_chunks_equal_the_dense_reference(rule: str, frames: int, tokens: int, seed: int) -> None:
    visibility = Visibility(RULES[rule], tuple(range(frames)), tokens)
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 2, frames * tokens, 4, dtype=torch.float64, generator=generator) for _ in range(3))
    chunked, dense = attend(q, k, v, visibility, "sdpa-chunked"), attend(q, k, v, visibility, "dense")
    torch.testing.assert_close(chunked, dense, rtol=1e-12, atol=1e-12)


def test_frame_causal_is_causal_in_time_and_full_inside_a_frame() -> None:
    mask = Visibility(frame_causal, (0, 1, 2), 2).dense()
    expected = [[key // 2 <= query // 2 for key in range(6)] for query in range(6)]
    assert mask.tolist() == expected


@given(st.sampled_from(sorted(RULES)), st.integers(1, 6), st.integers(1, 4))
def test_pairs_count_what_the_dense_mask_shows(rule: str, frames: int, tokens: int) -> None:
    visibility = Visibility(RULES[rule], tuple(range(frames)), tokens)
    assert visibility.pairs() == int(visibility.dense().sum())


def test_neighbouring_frames_are_one_range_of_keys() -> None:
    chunks = Visibility(frame_causal, (0, 1, 2), 4).chunks()
    assert [keys for _, keys in chunks] == [[slice(0, 4)], [slice(0, 8)], [slice(0, 12)]]


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(KeyError):
        attend(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), Visibility(frame_causal, (0,), 1), "magic")
