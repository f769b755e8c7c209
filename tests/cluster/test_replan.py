"""When a run moves to more seats: never at a loss by its own figures, and never later than it should."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cluster.replan import HURDLE, Situation, decide, predicted

seconds = st.floats(0.001, 100.0)
situations = st.builds(
    Situation,
    world=st.integers(1, 64),
    possible=st.integers(1, 64),
    steps=st.integers(0, 10_000),
    step_seconds=st.dictionaries(st.integers(1, 64), seconds),
    restart_seconds=seconds,
    commit_seconds=st.floats(0.0, 100.0),
    steps_to_commit=st.integers(0, 1000),
)


@given(situations)
def test_a_move_gains_more_than_it_costs_and_goes_to_more_workers(now: Situation) -> None:
    decision = decide(now)
    if decision.choice != "stay":
        assert decision.gain_seconds > HURDLE * decision.cost_seconds
        assert now.possible > now.world
        assert predicted(now.step_seconds, now.possible) < now.step_seconds[now.world]  # type: ignore[operator]


@given(situations, st.integers(1, 10_000))
def test_what_is_worth_a_move_is_worth_one_with_more_steps_to_go(now: Situation, more: int) -> None:
    if decide(now).choice != "stay":
        assert decide(replace(now, steps=now.steps + more)).choice != "stay"


@given(situations)
def test_where_a_commit_costs_nothing_nobody_waits_for_one(now: Situation) -> None:
    assert decide(replace(now, commit_seconds=0.0)).choice != "commit"


def test_a_long_stage_moves_and_a_short_rest_stays() -> None:
    now = Situation(world=1, possible=2, steps=1000, step_seconds={1: 1.0}, restart_seconds=5.0)
    assert decide(now).choice == "now"
    assert decide(replace(now, steps=10)).choice == "stay"


def test_a_move_waits_for_a_commit_that_is_due_where_one_is_dear() -> None:
    now = Situation(world=4, possible=8, steps=5000, step_seconds={4: 2.0}, commit_seconds=30.0, steps_to_commit=3)
    assert decide(now).choice == "commit"
    assert decide(replace(now, steps_to_commit=400)).choice == "now"


def test_a_world_that_was_measured_to_be_no_faster_is_not_moved_to() -> None:
    assert decide(Situation(world=2, possible=4, steps=100_000, step_seconds={2: 1.0, 4: 1.0})).choice == "stay"


def test_nothing_is_decided_before_a_step_was_measured() -> None:
    assert decide(Situation(world=1, possible=4, steps=1000, step_seconds={})).why == "no step is measured yet"
