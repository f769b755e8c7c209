"""What is encoded first, and when it is enough; at any number of sources, with a few bytes for each."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from hashlib import blake2b
from typing import overload

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.chunks import Chunk, ChunkPlan, plan_of, source_count
from data_pipeline.growth import encode_order, first_chunks, may_begin, prefix
from data_pipeline.sources import Source


class Endless(Sequence[Source]):
    """So many sources, made as they are asked for."""

    def __init__(self, count: int) -> None:
        self.size = count

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, place: int) -> Source: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[Source, ...]: ...

    def __getitem__(self, place: int | slice) -> Source | tuple[Source, ...]:
        if isinstance(place, slice):
            return tuple(self[number] for number in range(len(self))[place])
        return Source(f"{place:016x}", f"/videos/{place}.mp4", "a caption", f"{place}.mp4")


def plan(train: int, held_out: int, each: int) -> ChunkPlan:
    """Of so many sources; the first ones are held out."""
    places = np.arange(train + held_out, dtype=np.int32)
    return plan_of(Endless(train + held_out), {"train": places[held_out:], "held_out": places[:held_out]}, each)


def listed(chunks: Sequence[Chunk], evaluated: int) -> list[Chunk]:
    """The order by its definition, over a list of all chunks."""
    shuffled = sorted(chunks, key=lambda chunk: blake2b(chunk.name.encode()).digest())
    held_out, first = [chunk for chunk in shuffled if chunk.split == "held_out"], 0
    while first < len(held_out) and source_count(held_out[:first]) < evaluated:
        first += 1
    return [*held_out[:first], *(chunk for chunk in shuffled if chunk.split == "train"), *held_out[first:]]


COUNT = st.integers(0, 40)
EACH = st.integers(1, 5)


@given(COUNT, COUNT, EACH, st.integers(1, 12))
def test_the_order_has_every_chunk_once_and_held_out_sources_for_an_evaluation_first(
    train: int, held_out: int, each: int, evaluated: int
) -> None:
    made = plan(train, held_out, each)
    assert list(encode_order(made, evaluated)) == listed(list(made), evaluated)


@given(COUNT, COUNT, EACH, st.data())
def test_sources_are_counted_without_making_chunks(train: int, held_out: int, each: int, data: st.DataObject) -> None:
    order = encode_order(plan(train, held_out, each), 3)
    first = data.draw(st.integers(0, len(order)))
    assert order.count(first) == order[:first].count() == source_count(list(order)[:first])
    for split in ("train", "held_out"):
        assert order.count(first, split) == source_count([chunk for chunk in list(order)[:first] if chunk.split == split])
    assert (source_count(order), source_count(order[first:])) == (train + held_out, train + held_out - order.count(first))


@given(st.integers(1, 40), st.integers(1, 40), EACH, st.floats(0.01, 1))
def test_training_may_begin_on_the_fraction_of_what_is_trained_on(train: int, held_out: int, each: int, fraction: float) -> None:
    order = encode_order(plan(train, held_out, each), 1)
    enough = [there for there in range(len(order) + 1) if may_begin(order, there, fraction)]
    assert enough == list(range(enough[0], len(order) + 1))
    assert order.count(enough[0], "train") >= fraction * train
    if fraction < 1:
        assert order.count(enough[0] - 1, "train") < fraction * train
    else:
        assert enough[0] == len(order), "the whole data set, what is held out included"


@given(st.integers(1, 40), st.integers(1, 40), EACH, st.floats(0.01, 1))
def test_what_is_encoded_first_is_what_may_do_then_twice_as_much(train: int, held_out: int, each: int, fraction: float) -> None:
    order = encode_order(plan(train, held_out, each), 1)
    first = first_chunks(order, 0, fraction)
    assert may_begin(order, first, fraction)
    assert first == 1 or not may_begin(order, first - 1, fraction)
    assert first_chunks(order, first, fraction) == (min(2 * first, len(order)) if fraction < 1 else len(order))


def test_a_gap_ends_the_prefix() -> None:
    assert [prefix(done, 0, 4) for done in ({}, {1: 0, 2: 0}, {0, 1, 3}, {0, 1, 2, 3})] == [0, 0, 2, 4]
    assert prefix({2, 3}, 2, 9) == 4


def test_a_million_sources_are_ordered_counted_and_handed_out_in_a_few_bytes_each() -> None:
    million = 1_000_000
    made = plan(million - 50_000, 50_000, 16)
    tracemalloc.start()
    try:
        order = encode_order(made, 64)
        begun = next(there for there in range(len(order) + 1) if may_begin(order, there, 0.01))
        assert begun == first_chunks(order, 0, 0.01)
        handed_out = sum(len(chunk.sources) for chunk in order)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert handed_out == order.count() == million
    assert peak < 8 * million, "a list of these chunks takes hundreds of bytes per source"
