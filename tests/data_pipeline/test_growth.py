"""What is encoded first, and when it is enough."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.chunks import Chunk
from data_pipeline.growth import encode_order, first_chunks, may_begin, prefix, sources
from data_pipeline.sources import Source


def chunks(train: list[int], held_out: list[int]) -> list[Chunk]:
    """Chunks of so many sources each."""
    source = Source("0", "x.mp4", "x.mp4", "")
    sizes = [("train", index, size) for index, size in enumerate(train)] + [
        ("held_out", index, size) for index, size in enumerate(held_out)
    ]
    return [Chunk(split, index, (source,) * size) for split, index, size in sizes]


SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=9)


@given(SIZES, SIZES, st.integers(1, 12))
def test_the_order_has_every_chunk_once_and_held_out_sources_for_an_evaluation_first(
    train: list[int], held_out: list[int], evaluated: int
) -> None:
    order = encode_order(chunks(train, held_out), evaluated)
    assert sorted((chunk.split, chunk.index) for chunk in order) == sorted((chunk.split, chunk.index) for chunk in chunks(train, held_out))
    first = next(index for index, chunk in enumerate(order) if chunk.split == "train")
    assert sources(order[:first]) >= min(evaluated, sum(held_out))
    assert first == 1 or sources(order[: first - 1]) < evaluated
    assert order == encode_order(chunks(train, held_out)[::-1], evaluated)


@given(SIZES, SIZES, st.floats(0.01, 1))
def test_training_may_begin_on_the_fraction_of_what_is_trained_on(train: list[int], held_out: list[int], fraction: float) -> None:
    order = encode_order(chunks(train, held_out), 1)
    enough = [there for there in range(len(order) + 1) if may_begin(order, there, fraction)]
    assert enough == list(range(enough[0], len(order) + 1))
    assert sources(order[: enough[0]], "train") >= fraction * sum(train)
    if fraction < 1:
        assert sources(order[: enough[0] - 1], "train") < fraction * sum(train)
    else:
        assert enough[0] == len(order), "the whole data set, what is held out included"


@given(SIZES, SIZES, st.floats(0.01, 1))
def test_what_is_encoded_first_is_what_may_do_then_twice_as_much(train: list[int], held_out: list[int], fraction: float) -> None:
    order = encode_order(chunks(train, held_out), 1)
    first = first_chunks(order, 0, fraction)
    assert may_begin(order, first, fraction)
    assert first == 1 or not may_begin(order, first - 1, fraction)
    assert first_chunks(order, first, fraction) == (min(2 * first, len(order)) if fraction < 1 else len(order))


def test_a_gap_ends_the_prefix() -> None:
    order = chunks([1, 1, 1], [1])
    assert [prefix(order, done) for done in ({}, {1: 0, 2: 0}, {0, 1, 3}, {0, 1, 2, 3})] == [0, 0, 2, 4]
