"""Whatever is killed or resized while the data grows, every epoch visits each sample of its generation once, in the order decided first."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.epochs import Epochs
from data_pipeline.order import EpochOrder
from trainer.curriculum import RunState
from trainer.epochs import replayed

Visit = tuple[int, int, tuple[int, int]]  # epoch, generation, (shard, row)
BUCKET = "5x32x32"


@dataclass
class World:
    """A data set whose shards appear one after the other, a run on it that is cut into attempts, and what they leave behind."""

    shards: Sequence[int]  # samples of each
    pace: int  # steps from one shard to the next
    batch: int
    seed: int
    remembers: bool = True
    clock: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)  # the run's events
    steps: list[list[Visit]] = field(default_factory=list)  # those that count
    state: RunState = field(default_factory=RunState)

    def there(self) -> int:
        """Shards encoded by now; the first ones are enough for a step."""
        first = next(count for count in range(1, len(self.shards) + 1) if sum(self.shards[:count]) >= self.batch)
        return min(len(self.shards), first + self.clock // self.pace)

    def attempt(self, generation: int, ranks: int, lasts: int, lost: int, until: int) -> None:
        """A generation of the run, of so many ranks, that dies after `lasts` steps and loses the last ones."""
        known = RunState.from_tree(json.loads(json.dumps(asdict(self.state))))
        table = replayed(known.epochs, self.log if self.remembers else []).get(BUCKET, Epochs())
        states = [known]
        for _ in range(min(lasts, until - known.step)):
            start = states[-1].samples.get(BUCKET, 0)
            while table.decided < start + self.batch:
                shards = self.there()
                decision = {"data_generation": shards, "samples": sum(self.shards[:shards]), "last": shards == len(self.shards)}
                self.log.append({"event": "epoch", "bucket": BUCKET, "epoch": table.count, "generation": generation, **decision})
                table = table.then(*decision.values())
            positions = range(start, start + self.batch)
            by_rank = [self.visit(table, position) for rank in range(ranks) for position in positions[rank::ranks]]
            self.steps[states[-1].step :] = [sorted(by_rank)]
            self.clock += 1
            states.append(states[-1].stepped({BUCKET: self.batch}, False, known.guard, {BUCKET: table}))
        self.state = states[max(0, len(states) - 1 - lost)] if states[-1].step < until else states[-1]

    def visit(self, table: Epochs, position: int) -> Visit:
        place = table.place(position)
        order = EpochOrder(self.shards[: place.generation], self.seed, BUCKET, place.epoch)
        return place.epoch, place.generation, order[place.index]


SHARDS = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(lambda counts: sum(counts) >= 6)
ATTEMPTS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 12), st.integers(0, 6)), max_size=6)


@settings(max_examples=150, deadline=None)
@given(SHARDS, st.integers(1, 9), st.integers(1, 6), st.integers(0, 99), ATTEMPTS)
def test_kills_and_resizes_while_the_data_grows_change_no_epoch(
    shards: list[int], pace: int, batch: int, seed: int, attempts: list[tuple[int, int, int]]
) -> None:
    world = World(shards, pace, batch, seed)
    for generation, (ranks, lasts, lost) in enumerate([*attempts, (2, 60, 0)]):
        world.attempt(generation, ranks, lasts, lost, until=40)
    table = world.state.epochs[BUCKET]
    assert world.steps == [sorted(world.visit(table, step * batch + row) for row in range(batch)) for step in range(40)]
    counted = Counter(visit for step in world.steps for visit in step)
    assert set(counted.values()) == {1}
    *whole, _ = sorted({(epoch, generation) for epoch, generation, _ in counted})
    assert [epoch for epoch, _ in whole] == list(range(len(whole)))
    for epoch, generation in whole:
        places = {place for e, _, place in counted if e == epoch}
        assert places == {(shard, row) for shard in range(generation) for row in range(shards[shard])}


def test_deciding_an_epoch_anew_would_be_noticed() -> None:
    world = World([4, 4, 4, 4], pace=3, batch=4, seed=0, remembers=False)
    for generation in range(3):
        world.attempt(generation, 1, 3, 2, until=12)
    world.attempt(3, 1, 60, 0, until=12)
    decided = {(event["epoch"], event["data_generation"]) for event in world.log}
    assert len(decided) > len({epoch for epoch, _ in decided})


def decision(generation: int, epoch: int, samples: int, last: bool = False) -> dict[str, Any]:
    return {
        "event": "epoch", "bucket": BUCKET, "epoch": epoch, "generation": generation, "data_generation": samples // 10, "samples": samples,
        "last": last,
    }  # fmt: skip


def test_a_decision_that_came_too_late_does_not_count() -> None:
    newer, stale = decision(2, 0, 20), decision(1, 0, 30)
    assert replayed({}, [newer, stale]) == replayed({}, [newer]) == {BUCKET: Epochs().then(2, 20, False)}


def test_what_a_commit_knows_stands_and_what_was_decided_after_it_follows() -> None:
    known = {BUCKET: Epochs().then(1, 10, False)}
    told = [decision(1, 0, 20), decision(1, 1, 20), decision(1, 2, 30, last=True)]
    assert replayed(known, told)[BUCKET] == Epochs().then(1, 10, False).then(2, 20, False).then(3, 30, True)


def test_places_count_epochs_over_all_eras() -> None:
    epochs = Epochs().then(0, 3, False).then(0, 3, False).then(1, 5, True)
    assert (epochs.decided, epochs.count) == (float("inf"), float("inf"))
    assert [(epochs.place(p).epoch, epochs.place(p).index, epochs.place(p).generation) for p in (0, 5, 6, 11)] == [
        (0, 0, 0), (1, 2, 0), (2, 0, 1), (3, 0, 1),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="position 6 is not decided"):
        Epochs().then(0, 3, False).then(0, 3, False).place(6)
    with pytest.raises(ValueError, match="would have 0 samples"):
        Epochs().then(0, 0, True)


def test_whole_epochs_are_those_over_all_the_data_that_begin_after_the_start() -> None:
    epochs = Epochs().then(0, 3, False).then(1, 5, True)  # from position 3 on epochs of 5
    assert [epochs.whole_epochs(0, stop) for stop in (3, 7, 8, 13)] == [0, 0, 1, 2]
    assert epochs.whole_epochs(4, 13) == 1
    assert Epochs().then(0, 3, False).whole_epochs(0, 3) == 0
