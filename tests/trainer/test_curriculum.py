"""The curriculum as a state machine: rules fire when they should, states only move forward."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.curriculum import Promotion, RunState, promotion_reason
from trainer.guard import GuardState


def state(stage_step: int, *held_out: float) -> RunState:
    return RunState(step=stage_step, stage_step=stage_step, held_out=held_out)


def test_max_steps_ends_a_stage() -> None:
    assert promotion_reason(Promotion(max_steps=3), state(2)) is None
    assert promotion_reason(Promotion(max_steps=3), state(3)) == "max_steps 3"


def test_a_target_loss_ends_a_stage_after_min_steps() -> None:
    rule = Promotion(max_steps=100, min_steps=10, target_loss=0.5)
    assert promotion_reason(rule, state(9, 0.4)) is None
    assert promotion_reason(rule, state(10, 0.6)) is None
    assert promotion_reason(rule, state(10, 0.6, 0.5)) == "held-out loss 0.5000 <= 0.5"


def test_a_plateau_ends_a_stage_and_progress_does_not() -> None:
    rule = Promotion(max_steps=100, plateau_window=2, plateau_gain=0.02)
    assert promotion_reason(rule, state(30, 1.0, 0.9)) is None
    assert promotion_reason(rule, state(30, 1.0, 0.9, 0.8)) is None
    assert promotion_reason(rule, state(40, 1.0, 0.9, 0.895, 0.889)) == "plateau: 0.9000 -> 0.8890 over 2 evaluations"


@pytest.mark.parametrize(
    ("fields", "message"), [({"max_steps": 0}, "max_steps is 0"), ({"max_steps": 2, "min_steps": 3}, "min_steps 3 is above")]
)
def test_a_rule_that_cannot_be_is_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Promotion(**fields)


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(1, 9), st.booleans()), max_size=30))
def test_steps_add_up(steps: list[tuple[str, int, bool]]) -> None:
    now = RunState()
    for bucket, samples, skipped in steps:
        now = now.stepped({bucket: samples}, skipped, GuardState())
    assert (now.step, now.stage_step) == (len(steps), len(steps))
    assert now.samples == {
        name: sum(n for bucket, n, _ in steps if bucket == name) for name in dict.fromkeys(bucket for bucket, _, _ in steps)
    }
    assert now.skipped == tuple(number for number, (_, _, skipped) in enumerate(steps) if skipped)


def test_promotion_starts_the_next_stage_afresh_and_keeps_the_data_state() -> None:
    now = RunState(step=7, stage=1, stage_step=3, samples={"a": 5}, held_out=(1.0,)).promoted()
    assert now == RunState(step=7, stage=2, stage_step=0, samples={"a": 5})
