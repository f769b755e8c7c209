from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.order import EpochOrder, Mixture, keyed_generator, wrap
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


@dataclass(frozen=True)
class Data:
    """A mixture of buckets, each with shards of these sizes and batches of so many samples."""

    counts: tuple[tuple[int, ...], ...]
    batches: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int
    order: type[EpochOrder] = EpochOrder

    def batch(self, step: int, world: int) -> list[tuple[int, int, tuple[int, int]]]:
        """(bucket, epoch, sample) of a step's global batch, put together from what each of `world` ranks fetches for itself."""
        bucket, before = Mixture(self.weights, self.seed).at(step)
        size, samples = self.batches[bucket], sum(self.counts[bucket])
        found: dict[int, tuple[int, int, tuple[int, int]]] = {}
        for units in deal([1] * size, dp=min(world, size), micro_batch=2):
            orders: dict[int, EpochOrder] = {}
            for unit in units:
                for row, weight in zip(unit.samples, unit.weights, strict=True):
                    epoch, index = wrap(before * size + row, samples)
                    order = orders.setdefault(epoch, self.order(self.counts[bucket], self.seed, f"bucket{bucket}", epoch))
                    if weight:
                        assert row not in found, "two ranks fetched the same sample"
                        found[row] = bucket, epoch, order[index]
        return [found[row] for row in range(size)]


def undisturbed(data: Data, steps: int) -> list[list[tuple[int, int, tuple[int, int]]]]:
    return [data.batch(step, 1) for step in range(steps)]


def disturbed(data: Data, steps: int, attempts: Sequence[tuple[int, int, int]]) -> list[list[tuple[int, int, tuple[int, int]]]]:
    """The batches that count, of a run whose attempts each have a world size, die after so many steps, and lose so many of them.

    All that one attempt hands to the next is the number of the step to go on with.
    """
    committed: list[list[tuple[int, int, tuple[int, int]]]] = []
    for world, lasts, lost in [*attempts, (1, steps, 0)]:
        step = len(committed)  # the state
        done = [data.batch(number, world) for number in range(step, min(steps, step + lasts))]
        committed += done[: len(done) - lost] if lost and len(committed) + len(done) < steps else done
    return committed


def visits(data: Data, batches: list[list[tuple[int, int, tuple[int, int]]]]) -> dict[tuple[int, int], Counter[tuple[int, int]]]:
    """How often each sample was visited, by (bucket, epoch), of the epochs that were finished."""
    found: dict[tuple[int, int], Counter[tuple[int, int]]] = {}
    for bucket, epoch, place in (visit for batch in batches for visit in batch):
        found.setdefault((bucket, epoch), Counter())[place] += 1
    last = {bucket: max(epoch for other, epoch in found if other == bucket) for bucket, _ in found}
    return {key: counter for key, counter in found.items() if key[1] < last[key[0]]}


BUCKETS = st.lists(
    st.tuples(st.lists(st.integers(0, 20), min_size=1, max_size=9).filter(sum).map(tuple), st.integers(1, 13), st.floats(0.1, 10)),
    min_size=1,
    max_size=3,
)
ATTEMPTS = st.lists(st.tuples(st.integers(1, 64), st.integers(1, 12), st.integers(0, 5)), max_size=6)


@settings(max_examples=80, deadline=None)
@given(BUCKETS, SEEDS, ATTEMPTS)
def test_whatever_is_killed_or_resized_every_epoch_of_every_bucket_visits_each_sample_once(
    buckets: list[tuple[tuple[int, ...], int, float]], seed: int, attempts: list[tuple[int, int, int]]
) -> None:
    counts, batches, weights = zip(*buckets, strict=True)
    data = Data(counts, batches, weights, seed)
    steps = 40
    seen = disturbed(data, steps, attempts)
    assert seen == undisturbed(data, steps)
    for (bucket, _), counter in visits(data, seen).items():
        assert counter == Counter((shard, row) for shard, size in enumerate(counts[bucket]) for row in range(size))


def test_sampling_with_replacement_would_be_noticed() -> None:
    data = Data(((9, 14, 3),), (4,), (1.0,), 0, WithReplacement)
    found = visits(data, undisturbed(data, 20))
    assert max(found[0, 0].values()) > 1


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), SEEDS, st.integers(0, 3000))
def test_a_mixture_takes_every_bucket_in_its_share_and_without_a_gap(weights: list[float], seed: int, start: int) -> None:
    mixture = Mixture(tuple(weights), seed)
    first = start // Mixture.BLOCK * Mixture.BLOCK
    taken = [mixture.at(step) for step in range(first, first + Mixture.BLOCK)]
    for bucket, weight in enumerate(weights):
        ordinals = [before for other, before in taken if other == bucket]
        assert ordinals == list(range(ordinals[0], ordinals[0] + len(ordinals)))
        assert ordinals[0] == first // Mixture.BLOCK * len(ordinals)
        share = weight / sum(weights) * Mixture.BLOCK
        assert len(ordinals) >= 1
        assert abs(len(ordinals) - share) < 1 or share < 1 or len(weights) > 2


def test_a_mixture_is_exact_where_the_weights_are() -> None:
    assert Counter(Mixture((0.7, 0.3), 0).at(step)[0] for step in range(200)) == {0: 140, 1: 60}
    assert [Mixture((1.0,), 5).at(step) for step in (0, 99, 100, 12345)] == [(0, 0), (0, 99), (0, 100), (0, 12345)]
    assert Counter(Mixture((1.0, 1e-9), 0).at(step)[0] for step in range(100)) == {0: 99, 1: 1}


def test_a_mixture_of_nothing_or_of_impossible_weights_is_refused() -> None:
    for weights in ((), (1.0, 0.0), (1.0, -1.0), (float("nan"),), (float("inf"), 1.0)):
        with pytest.raises(ValueError, match="must be positive numbers"):
            Mixture(weights, 0)
    with pytest.raises(ValueError, match="at most 100 buckets"):
        Mixture((1.0,) * 101, 0)


def test_what_is_read_next_is_the_window_of_the_index_and_the_one_after() -> None:
    order = EpochOrder([10] * 10, 0, "17x96x96", 0)
    for index in (0, 39, 40, 85, 99):
        ahead = order.shards_ahead(index)
        later = {order[i][0] for i in range(index, min(len(order), index // 40 * 40 + 80))}
        assert later <= set(ahead)
        assert len(ahead) == {0: 8, 1: 6, 2: 2}[index // 40]


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
