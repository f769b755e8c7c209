"""What the controller has measured when it decides whether to move."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.pace import GRACE_SECONDS, Pace
from cluster.replan import RESTART_SECONDS
from trainer.curriculum import Promotion, Stage

STAGE = Stage("short", 5, 32, 32, 256, Promotion(max_steps=100))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def told(seconds: float, world: int = 2, checkpoint: float = 0.0, stage: str = "short") -> dict[str, Any]:
    return {"stage": stage, "world_size": world, "step_seconds": seconds, "data_seconds": 0.0, "checkpoint_seconds": checkpoint}


def test_before_anything_is_measured_there_is_a_guess_for_a_restart_and_none_for_a_step() -> None:
    now = Pace(commit_every=10).situation(STAGE, 0, 2, 4)
    assert (now.step_seconds, now.restart_seconds, now.commit_seconds, now.steps) == ({}, RESTART_SECONDS, 0.0, 100)


def test_steps_are_told_apart_by_stage_and_world_and_a_generations_first_counts_for_its_start() -> None:
    clock = Clock()
    pace = Pace(commit_every=10, now=clock)
    pace.generation(at_once=True)
    for seconds in (9.0, 1.0, 1.2, 1.1):
        pace.step(told(seconds))
    pace.step(told(50.0, stage="longer"))
    clock.now = 100.0
    pace.generation(at_once=True)
    clock.now = 103.0
    for seconds in (8.0, 0.5):
        pace.step(told(seconds, world=4, checkpoint=0.25))
    now = pace.situation(STAGE, 30, 4, 8)
    assert now.step_seconds == {2: 1.1, 4: 0.5}
    assert (now.restart_seconds, now.commit_seconds, now.steps) == (103.0, 0.25, 70)


def test_a_restart_that_waited_for_seats_is_not_measured() -> None:
    clock = Clock()
    pace = Pace(commit_every=10, now=clock)
    pace.generation(at_once=True)
    pace.step(told(1.0))
    pace.generation(at_once=False)
    clock.now = 500.0
    pace.step(told(1.0))
    assert pace.situation(STAGE, 2, 2, 4).restart_seconds == RESTART_SECONDS


@pytest.mark.parametrize(("steps", "due"), [(0, 10), (4, 6), (25, 0)])
def test_the_next_commit_is_due_so_many_steps_after_the_last(steps: int, due: int) -> None:
    pace = Pace(commit_every=10)
    pace.step(told(1.0))
    pace.commit(0.3)
    for _ in range(steps):
        pace.step(told(1.0))
    assert pace.situation(STAGE, 0, 2, 4).steps_to_commit == due


def test_a_group_that_is_told_to_leave_has_the_time_of_its_step_and_of_a_commit() -> None:
    pace = Pace(commit_every=10)
    assert pace.grace_seconds == GRACE_SECONDS
    for _ in range(2):
        pace.step(told(30.0))
    pace.commit(25.0)
    assert pace.grace_seconds == 3 * 30.0 + 2 * 25.0
