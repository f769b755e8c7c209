"""Visibility rules, and the backends that must agree on them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.attention import attend
from model.visibility import Part, Rule, Visibility, frame_causal, skip_causal
from tests.model.conftest import windowed

RULES: dict[str, Rule] = {
    "frame_causal": frame_causal,
    "skip_causal": skip_causal,
    "sink + window": windowed(skip_causal, 1, 2),
    "own only": lambda query, key: key == query,
}
PARTS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(1, 3)), min_size=1, max_size=6, unique_by=lambda part: part[:2]
)


def visibility_of(rule: str, parts: list[tuple[int, int, int]]) -> Visibility:
    """The rule over parts that include a clean copy of unit 0, which every query may see."""
    return Visibility(RULES[rule], tuple(Part(*part) for part in [(0, 0, 2), *(part for part in sorted(parts) if part[:2] != (0, 0))]))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["sdpa-chunked", "flex"]), st.sampled_from(sorted(RULES)), PARTS, st.integers(0, 99))
def test_backends_equal_the_dense_reference(backend: str, rule: str, parts: list[tuple[int, int, int]], seed: int) -> None:
    visibility = visibility_of(rule, parts)
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 2, visibility.starts[-1], 4, dtype=torch.float64, generator=generator) for _ in range(3))
    dense = attend(q, k, v, visibility, "dense")
    torch.testing.assert_close(attend(q, k, v, visibility, backend), dense, rtol=1e-12, atol=1e-12)


@given(st.sampled_from(sorted(RULES)), PARTS)
def test_pairs_count_what_the_dense_mask_shows(rule: str, parts: list[tuple[int, int, int]]) -> None:
    visibility = visibility_of(rule, parts)
    assert visibility.pairs() == int(visibility.dense().sum())


def test_frame_causal_is_causal_in_time_and_full_inside_a_frame() -> None:
    mask = Visibility(frame_causal, tuple(Part(frame, 0, 2) for frame in range(3))).dense()
    assert mask.tolist() == [[key // 2 <= query // 2 for key in range(6)] for query in range(6)]


def test_skip_causal_hides_masked_copies_from_all_but_themselves() -> None:
    clean0, masked1, other1, clean1, masked2 = (Part(*part, 1) for part in [(0, 0), (1, 1), (1, 2), (1, 0), (2, 1)])
    sees = {
        clean0: {clean0},
        masked1: {clean0, masked1},
        other1: {clean0, other1},
        clean1: {clean0, clean1},
        masked2: {clean0, clean1, masked2},
    }
    for query, keys in sees.items():
        assert {key for key in sees if skip_causal(query, key)} == keys


def test_neighbouring_parts_are_one_range_of_keys() -> None:
    chunks = Visibility(frame_causal, tuple(Part(frame, 0, 4) for frame in range(3))).chunks
    assert [clean for clean, _ in chunks] == [[(0, 4)], [(0, 8)], [(0, 12)]]


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(KeyError):
        attend(
            torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), Visibility(frame_causal, (Part(0, 0, 1),)), "magic"
        )
