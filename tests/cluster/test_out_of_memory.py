"""A generation that ran out of memory has learned a smaller micro-batch: the next one is not charged as a restart after a failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.generation import Outcome
from cluster.resumption import Resumption
from cluster.run import Run, RunFailed
from tests.distributed.training import recipe, stage
from trainer.checkpoint.commit import Commit
from trainer.curriculum import RunState, Stage
from trainer.micro_batches import halve, limits


class Rehearsal(Run):
    """A run whose generations are told in advance: each entry is the micro-batch that does not fit, or 0 for one that just fails."""

    def __init__(self, folder: Path, generations: list[int], max_restarts: int) -> None:
        self.config = recipe([stage("only", 3)], max_restarts=max_restarts)
        self.folder, self.told, self.board = folder, generations, self  # type: ignore[assignment]
        self.now, self.resumption = RunState(), Resumption(folder, 1, self.say)

    def say(self, text: str) -> None: ...

    def next_commit(self) -> Commit:
        return Commit(self.folder, self.now, 1, "data", "recipe", "planted", False)

    def generation(self, target: str, stage: Stage | None, threads: int, found: Commit | None) -> Outcome:
        if not self.told:
            self.now = self.now.promoted()
            return Outcome(True, None, "", "", (), ())
        if too_large := self.told.pop(0):
            halve(self.folder, "only", too_large)
        return Outcome(False, 0, "planted", "", (), ())


def attempt(run: Rehearsal) -> None:
    run.attempt(run.config.curriculum.stages[0], None)


def test_a_smaller_micro_batch_each_time_is_no_failure(tmp_path: Path) -> None:
    attempt(Rehearsal(tmp_path, [64, 32, 16, 8, 4], max_restarts=1))
    assert limits(tmp_path) == {"only": 2}


def test_what_fails_without_learning_is_given_up_after_the_allowed_restarts(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="planted, 2 times at step 0"):
        attempt(Rehearsal(tmp_path, [64, 0, 0, 0], max_restarts=1))
