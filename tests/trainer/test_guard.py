"""The guard's decisions: what a spike is, what a skip leaves in its memory, when the run goes back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.guard import GuardRule, GuardState, fault, gives_up, roll_backs

RULE = GuardRule(sigma=6.0, window=16, skips=3)
CALM = GuardState(tuple(1.0 + 0.2 * (step % 2) for step in range(16)))


@pytest.mark.parametrize("norm", [math.inf, -math.inf, math.nan])
def test_a_gradient_that_is_not_finite_never_counts(norm: float) -> None:
    assert fault(RULE, GuardState(), norm) == "the gradient is not finite"


def test_a_norm_far_above_the_recent_ones_is_a_spike_and_the_reason_says_how_far() -> None:
    assert fault(RULE, CALM, 1.7) is None
    assert fault(RULE, CALM, 9.0) == "gradient norm 9 is 71.8 standard deviations above 1.1"


def test_a_small_norm_is_never_a_spike() -> None:
    assert fault(RULE, CALM, 0.0) is None


def test_nothing_is_a_spike_before_a_quarter_of_the_window_is_there() -> None:
    assert fault(RULE, GuardState((1.0,) * 3), 1e9) is None
    assert fault(RULE, GuardState((1.0,) * 4), 1e9) is not None


@given(st.floats(1e-6, 1e6))
def test_where_norms_do_not_vary_a_small_rise_is_no_spike(norm: float) -> None:
    assert fault(RULE, GuardState((norm,) * 16), norm * 1.5) is None
    assert fault(RULE, GuardState((norm,) * 16), norm * 1.7) is not None


@given(st.lists(st.floats(0.1, 10.0), min_size=16, max_size=16), st.floats(1.0, 100.0), st.floats(1e-3, 1e3))
def test_the_decision_does_not_depend_on_the_scale_of_the_gradients(norms: list[float], factor: float, scale: float) -> None:
    mean = sum(norms) / len(norms)
    plain = fault(RULE, GuardState(tuple(norms)), mean * factor)
    scaled = fault(RULE, GuardState(tuple(norm * scale for norm in norms)), mean * factor * scale)
    spread = max(math.sqrt(sum((norm - mean) ** 2 for norm in norms) / len(norms)), 0.1 * mean)
    if abs(mean * (factor - 1) / spread - RULE.sigma) > 1e-6:
        assert (plain is None) == (scaled is None)


def test_the_memory_holds_a_window_of_what_counted_and_how_many_did_not_in_a_row() -> None:
    state = GuardState()
    for step in range(20):
        state = state.after(RULE, float(step), skipped=False)
    assert state == GuardState(tuple(float(step) for step in range(4, 20)))
    skipped = state.after(RULE, math.nan, skipped=True).after(RULE, 1e9, skipped=True)
    assert skipped == GuardState(state.norms, in_a_row=2)
    assert skipped.after(RULE, 5.0, skipped=False).in_a_row == 0


def test_so_many_skips_in_a_row_take_the_run_back() -> None:
    assert [gives_up(RULE, GuardState((), count)) for count in (2, 3)] == [False, True]


def test_only_decisions_about_this_commit_are_found_again() -> None:
    events = [
        {"event": "roll_back", "step": step, "generation": generation, "position": 10 * step + generation}
        for step, generation in ((6, 1), (6, 3), (6, 4), (12, 4))
    ]
    found = roll_backs([*events, {"event": "commit", "step": 6, "generation": 4}], step=6, generation=3)
    assert [event["position"] for event in found] == [63, 64]


@pytest.mark.parametrize(("key", "value"), [("sigma", 0.5), ("window", 7), ("skips", 0), ("roll_backs", -1)])
def test_a_rule_that_makes_no_sense_is_refused(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{key} is {value}"):
        GuardRule(**{key: value})
