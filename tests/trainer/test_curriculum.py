"""The curriculum as a state machine: rules fire when they should, states only move forward."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.epochs import Epochs
from trainer.curriculum import Mix, Promotion, RunState, Stage, promotion_reason
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
    assert now == RunState(step=7, stage=2, stage_step=0, samples={"a": 5}, entered={"a": 5})


def test_a_stage_ends_when_its_data_was_visited_so_often_since_it_began() -> None:
    rule, table = Promotion(max_steps=100, epochs=2), {"a": Epochs().then(0, 4, False).then(1, 10, True)}
    assert promotion_reason(rule, RunState(stage_step=1, samples={"a": 23}, epochs=table), "a") is None
    assert promotion_reason(rule, RunState(stage_step=1, samples={"a": 24}, epochs=table), "a") == "every clip was visited 2 times"
    assert promotion_reason(rule, RunState(stage_step=1, samples={"a": 24}, epochs=table, entered={"a": 5}), "a") is None


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        (
            Promotion(max_steps=40, target_loss=0.1),
            "target_loss can never end it: it holds from step 50 at the earliest on, and max_steps is 40",
        ),
        (Promotion(max_steps=150, plateau_window=2), "plateau_window can never end it: it holds from step 150 at the earliest on"),
        (Promotion(max_steps=500, min_steps=500, plateau_window=2), "plateau_window can never end it: it holds from min_steps 500 on"),
        (Promotion(max_steps=9, min_steps=9, epochs=1), "epochs can never end it"),
        (Promotion(max_steps=151, plateau_window=2), None),
        (Promotion(max_steps=40), None),
        (Promotion(max_steps=51, target_loss=0.1, epochs=3), None),
    ],
)
def test_a_rule_that_can_never_fire_is_named(rule: Promotion, problem: str | None) -> None:
    found = rule.idle(evaluate_every=50)
    assert (found or "").startswith(problem or "")
    assert (found is None) == (problem is None)


def test_what_is_mixed_in_for_a_while_leaves_the_stage_at_its_step() -> None:
    parts = tuple(Mix(frames, 32, 32, 0.2, steps=steps) for frames, steps in ((9, 6), (13, 3), (17, None), (21, 99)))
    stage = Stage("s", 5, 32, 32, 1024, Promotion(max_steps=10), mix=parts)
    assert [stage.next_change(step) for step in (0, 2, 3, 5, 6, 9)] == [3, 3, 6, 6, None, None]
    assert [{mix.frames for mix in phase.mix} for phase in stage.phases] == [{9, 13, 17, 21}, {9, 17, 21}, {17, 21}]
    assert stage.at(4).next_change(4) == 6
