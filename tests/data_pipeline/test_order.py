from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.buckets import Bucket
from data_pipeline.order import EpochOrder, keyed_generator, wrap
from trainer.curriculum import Mix, Promotion, RunState, Stage
from trainer.mixture import Ingredient, ingredients
from trainer.units import deal

Visit = tuple[str, int, tuple[int, int]]  # bucket, epoch, (shard, row)

COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(sum)
SEEDS = st.integers(0, 2**40)
STRIDE = (4, 8, 8)
OWN, MIXED = (9, 16, 16), ((5, 16, 16), (1, 16, 16))  # frames x height x width of a stage, and of what is mixed into it


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
    """A stage, and the sizes of the shards of each of its buckets."""

    stage: Stage
    counts: dict[str, tuple[int, ...]]
    seed: int
    order: type[EpochOrder] = EpochOrder

    def step(self, state: RunState, world: int) -> tuple[list[Visit], RunState]:
        """(what the step that comes next visits of every bucket, the state after it)."""
        parts = ingredients(self.stage.at(state.stage_step), STRIDE)
        visited = [visit for part in parts for visit in self.visited(part, state.samples.get(part.bucket, 0), world)]
        return visited, state.stepped({part.bucket: part.samples for part in parts}, False, state.guard)

    def visited(self, part: Ingredient, consumed: int, world: int) -> list[Visit]:
        """A step's samples of one bucket, put together from what each of `world` ranks fetches for itself."""
        counts = self.counts[part.bucket]
        found: dict[int, Visit] = {}
        for units in deal([1] * part.samples, dp=min(world, part.samples), micro_batch=2):
            orders: dict[int, EpochOrder] = {}
            for unit in units:
                for row, weight in zip(unit.samples, unit.weights, strict=True):
                    epoch, index = wrap(consumed + row, sum(counts))
                    order = orders.setdefault(epoch, self.order(counts, self.seed, part.bucket, epoch))
                    if weight:
                        assert row not in found, "two ranks fetched the same sample"
                        found[row] = part.bucket, epoch, order[index]
        return [found[row] for row in range(part.samples)]


def run(data: Data, steps: int, attempts: Sequence[tuple[int, int, int]] = ()) -> list[list[Visit]]:
    """The steps that count, of a run whose attempts each have a world size, die after so many steps, and lose so many of them.

    All that one attempt hands to the next is the state of its last commit.
    """
    counted: list[list[Visit]] = []
    committed = RunState()
    for world, lasts, lost in [*attempts, (1, steps, 0)]:
        state, done = committed, []
        for _ in range(min(lasts, steps - committed.step)):
            visited, state = data.step(state, world)
            done.append((visited, state))
        if kept := done[: max(0, len(done) - lost)]:
            counted += [visited for visited, _ in kept]
            _, committed = kept[-1]
    return counted


def visits(batches: list[list[Visit]]) -> dict[tuple[str, int], Counter[tuple[int, int]]]:
    """How often each sample was visited, by (bucket, epoch), of the epochs that were finished."""
    found: dict[tuple[str, int], Counter[tuple[int, int]]] = {}
    for bucket, epoch, place in (visit for batch in batches for visit in batch):
        found.setdefault((bucket, epoch), Counter())[place] += 1
    last = {bucket: max(epoch for other, epoch in found if other == bucket) for bucket, _ in found}
    return {key: counter for key, counter in found.items() if key[1] < last[key[0]]}


def stage_of(tokens: int, mixed: Sequence[tuple[float, int | None]] = ()) -> Stage:
    """A stage of 9x16x16, with so many of the other shapes mixed in: each with its share, and for so many steps."""
    mix = tuple(Mix(*shape, share=share, steps=steps) for shape, (share, steps) in zip(MIXED, mixed, strict=False))
    return Stage("short", *OWN, tokens_per_step=tokens, promotion=Promotion(max_steps=1000), mix=mix)


SHARDS = st.lists(st.integers(0, 20), min_size=1, max_size=9).filter(sum).map(tuple)
MIXES = st.lists(st.tuples(st.floats(0.05, 0.45), st.none() | st.integers(1, 40)), max_size=2)
ATTEMPTS = st.lists(st.tuples(st.integers(1, 64), st.integers(1, 12), st.integers(0, 5)), max_size=6)


@settings(max_examples=80, deadline=None)
@given(st.integers(12, 144), MIXES, st.tuples(SHARDS, SHARDS, SHARDS), SEEDS, ATTEMPTS)
def test_whatever_is_killed_or_resized_every_epoch_of_every_bucket_visits_each_sample_once(
    tokens: int,
    mixed: list[tuple[float, int | None]],
    shards: tuple[tuple[int, ...], ...],
    seed: int,
    attempts: list[tuple[int, int, int]],
) -> None:
    counts = {Bucket(*shape).id: sizes for shape, sizes in zip((OWN, *MIXED), shards, strict=True)}
    data = Data(stage_of(tokens, mixed), counts, seed)
    seen = run(data, 40, attempts)
    assert seen == run(data, 40)
    assert {bucket for bucket, _, _ in seen[0]} == {Bucket(*shape).id for shape in (OWN, *MIXED[: len(mixed)])}
    for (bucket, _), counter in visits(seen).items():
        assert counter == Counter((shard, row) for shard, size in enumerate(counts[bucket]) for row in range(size))


def test_sampling_with_replacement_would_be_noticed() -> None:
    data = Data(stage_of(48), {"9x16x16": (9, 14, 3)}, 0, WithReplacement)
    assert max(visits(run(data, 20))["9x16x16", 0].values()) > 1


def test_a_window_tells_its_indices_and_the_shards_that_they_read() -> None:
    order = EpochOrder([10] * 9 + [3], 0, "17x96x96", 0)
    windows = [order.window(index) for index in range(len(order))]
    assert len(set(windows)) == 3
    for index, (indices, shards) in enumerate(windows):
        assert index in indices
        assert {order[other][0] for other in indices} == set(shards)
    assert sorted(index for indices, _ in set(windows) for index in indices) == list(range(93))


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
