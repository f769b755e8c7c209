from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.order import EpochOrder, keyed_generator, wrap
from trainer.units import deal

COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(sum)
SEEDS = st.integers(0, 2**40)


@given(COUNTS, SEEDS, st.integers(0, 5), st.integers(1, 5))
def test_an_epoch_visits_every_sample_exactly_once(counts: list[int], seed: int, epoch: int, window: int) -> None:
    order = EpochOrder(counts, seed, "17x96x96", epoch, window)
    visited = [order[index] for index in range(len(order))]
    assert sorted(visited) == [(shard, row) for shard, count in enumerate(counts) for row in range(count)]


@given(COUNTS, SEEDS, st.data())
def test_seeking_gives_what_walking_gives(counts: list[int], seed: int, data: st.DataObject) -> None:
    walked = EpochOrder(counts, seed, "17x96x96", 0)
    expected = [walked[index] for index in range(len(walked))]
    indices = data.draw(st.lists(st.integers(0, len(walked) - 1), max_size=20))
    sought = EpochOrder(counts, seed, "17x96x96", 0)
    assert [sought[index] for index in indices] == [expected[index] for index in indices]


@given(st.integers(1, 50), st.integers(1, 16), st.integers(0, 40))
def test_batches_that_wrap_over_the_end_repeat_nothing_inside_an_epoch(samples: int, batch: int, first: int) -> None:
    positions = range(first * batch, first * batch + 3 * samples)
    places = [wrap(position, samples) for position in positions]
    assert len(set(places)) == len(places)
    assert all(0 <= index < samples for _, index in places)
    assert places == sorted(places)


class WithReplacement(EpochOrder):
    """What an order must not be: every index draws anew."""

    def __getitem__(self, index: int) -> tuple[int, int]:
        return super().__getitem__(int(keyed_generator("anew", index).integers(len(self))))


Visits = dict[int, Counter[tuple[int, int]]]  # by epoch


def train(make: Callable[[int], EpochOrder], batch: int, worlds: Sequence[int], epochs: int, crash: int, lost: int) -> Visits:
    """What the ranks of runs on changing world sizes visit: in step `crash` the run dies, and the last `lost` steps with it."""
    visits: list[list[tuple[int, tuple[int, int]]]] = []  # by step, as committed
    attempts = count()
    while len(visits) * batch < epochs * len(make(0)):
        attempt = next(attempts)
        if attempt == crash:
            del visits[max(0, len(visits) - lost) :]
        first = len(visits) * batch
        orders: dict[int, EpochOrder] = {}
        ranks = deal([1] * batch, dp=worlds[attempt % len(worlds)], micro_batch=2)
        step = []
        for units in ranks:
            rows = [sample for unit in units for sample, weight in zip(unit.samples, unit.weights, strict=True) if weight]
            for epoch, index in (wrap(first + row, len(make(0))) for row in rows):
                order = orders.setdefault(epoch, make(epoch))
                step.append((epoch, order[index]))
        visits.append(step)
    return {epoch: Counter(place for step in visits for e, place in step if e == epoch) for epoch in range(epochs)}


@settings(max_examples=40, deadline=None)
@given(COUNTS, SEEDS, st.integers(1, 13), st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 12), st.integers(0, 5))
def test_each_epoch_visits_all_samples_once_over_world_sizes_and_a_restart(
    counts: list[int], seed: int, batch: int, worlds: list[int], crash: int, lost: int
) -> None:
    visits = train(lambda epoch: EpochOrder(counts, seed, "5x64x64", epoch), batch, worlds, 2, crash, lost)
    once = Counter((shard, row) for shard, size in enumerate(counts) for row in range(size))
    for epoch in range(2):
        walk = EpochOrder(counts, seed, "5x64x64", epoch)
        assert visits[epoch] == once == Counter(walk[index] for index in range(len(walk)))


def test_sampling_with_replacement_would_be_noticed() -> None:
    visits = train(lambda epoch: WithReplacement([9, 14, 3], 0, "5x64x64", epoch), 4, [2, 3], 2, 3, 1)
    assert visits[0].total() == 26
    assert max(visits[0].values()) > 1


def test_neighbours_in_the_order_come_from_one_window_of_shards() -> None:
    order = EpochOrder([10] * 40, 0, "17x96x96", 0)
    assert len({order[index][0] for index in range(40)}) == 4
    assert len({order[index][0] for index in range(400)}) == 40


def test_epochs_buckets_and_seeds_have_orders_of_their_own() -> None:
    def walk(seed: int, bucket: str, epoch: int) -> tuple[tuple[int, int], ...]:
        order = EpochOrder([20, 20, 20], seed, bucket, epoch)
        return tuple(order[index] for index in range(60))

    keys = [(0, "17x96x96", 0), (0, "17x96x96", 1), (1, "17x96x96", 0), (0, "17x64x64", 0)]
    assert len({walk(*key) for key in keys}) == 4


def test_the_order_is_the_one_that_earlier_runs_saw() -> None:
    order = EpochOrder([3, 2, 4], 7, "17x96x96", 2)
    pinned = [(1, 1), (0, 2), (0, 1), (2, 0), (1, 0), (2, 2), (2, 1), (0, 0), (2, 3)]
    assert [order[index] for index in range(9)] == pinned


def test_an_index_outside_the_epoch_is_refused() -> None:
    order = EpochOrder([3, 2], 0, "17x96x96", 0)
    for index in (-1, 5):
        with pytest.raises(IndexError, match=f"index {index} is outside an epoch of 5 samples"):
            order[index]


def test_an_empty_set_has_no_positions() -> None:
    assert len(EpochOrder([], 0, "17x96x96", 0)) == 0
    with pytest.raises(ValueError, match="set of 0 samples"):
        wrap(0, 0)


@given(st.lists(st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=5)), max_size=4))
def test_generators_are_functions_of_their_key(key: list[int | str]) -> None:
    np.testing.assert_array_equal(keyed_generator(*key).random(4), keyed_generator(*key).random(4))


def test_keys_that_only_look_alike_give_different_generators() -> None:
    keys: list[tuple[int | str, ...]] = [("a", "b"), ("ab",), ("a,b",), (1,), ("1",), (1, 1), (11,), ()]
    assert len({keyed_generator(*key).random() for key in keys}) == len(keys)
