"""Flat ranges as boxes, against brute force over every element."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.checkpoint.fragments import Box, Fragment, boxes, deal_writers, pieces

SHAPES = st.lists(st.integers(1, 5), max_size=4).map(tuple)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int]:
    """A shape and a range of its flattened elements."""
    shape = draw(SHAPES)
    start, stop = sorted(draw(st.tuples(*[st.integers(0, math.prod(shape))] * 2)))
    return shape, start, stop


@st.composite
def two_boxes(draw: st.DrawFn) -> tuple[tuple[int, ...], Box, Box]:
    """A shape and two boxes of it."""
    shape = draw(SHAPES)

    def box() -> Box:
        offset = tuple(draw(st.integers(0, size - 1)) for size in shape)
        return Box(offset, tuple(draw(st.integers(1, size - low)) for size, low in zip(shape, offset, strict=True)))

    return shape, box(), box()


def whole_box(shape: tuple[int, ...]) -> Box:
    return Box((0,) * len(shape), shape)


@given(ranges())
def test_the_boxes_of_a_range_are_its_elements_in_order(drawn: tuple[tuple[int, ...], int, int]) -> None:
    shape, start, stop = drawn
    elements = np.arange(math.prod(shape)).reshape(shape)
    found = [elements[box.inside(whole_box(shape))].flatten() for box in boxes(shape, start, stop)]
    assert np.concatenate([np.empty(0, int), *found]).tolist() == list(range(start, stop))


@given(ranges())
def test_a_range_is_few_boxes_and_each_is_contiguous_and_not_empty(drawn: tuple[tuple[int, ...], int, int]) -> None:
    shape, start, stop = drawn
    found = boxes(shape, start, stop)
    assert len(found) <= max(1, 2 * len(shape) - 1)
    assert all(box.size > 0 for box in found)


@given(two_boxes())
def test_the_overlap_of_two_boxes_is_the_elements_of_both(drawn: tuple[tuple[int, ...], Box, Box]) -> None:
    shape, one, other = drawn
    elements = np.arange(math.prod(shape)).reshape(shape)
    common = set(elements[one.inside(whole_box(shape))].flat) & set(elements[other.inside(whole_box(shape))].flat)
    found = one.overlap(other)
    assert set(elements[found.inside(whole_box(shape))].flat if found else ()) == common
    if found:
        part = elements[other.inside(whole_box(shape))][found.inside(other)]
        assert np.array_equal(part, elements[found.inside(whole_box(shape))])


@given(two_boxes(), st.data())
def test_the_pieces_of_a_sharded_fragment_are_its_flat_elements(drawn: tuple[tuple[int, ...], Box, Box], data: st.DataObject) -> None:
    shape, shard, _ = drawn
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, shard.size)] * 2)))
    elements = torch.arange(math.prod(shape)).view(shape)
    flat = elements[shard.inside(whole_box(shape))].reshape(-1)[start:stop]
    fragment = Fragment("w", shape, shard, start, stop, {"weight": flat})
    for box, place in pieces(fragment):
        assert torch.equal(flat[place].view(box.extent), elements[box.inside(whole_box(shape))])
    assert sum(box.size for box, _ in pieces(fragment)) == stop - start


def test_what_several_ranks_hold_is_written_once_and_the_work_is_shared() -> None:
    places = [(name, whole_box((4,)), 0, 4) for name in "abcdef"]
    dealt = deal_writers([places, places, places[2:]])
    assert sorted(place for part in dealt for place in part) == places
    assert [len(part) for part in dealt] == [2, 2, 2]
