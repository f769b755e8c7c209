"""How long silence is granted: what the section has taken so far, many times over."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.vigil import RECENT, TIMES, UNMEASURED, Vigil


def test_a_process_that_never_named_a_section_is_not_judged() -> None:
    assert Vigil(1.0, now=0.0).silent(1e9) == 0.0


def test_a_section_that_was_never_left_is_granted_much() -> None:
    vigil = Vigil(2.0, now=0.0)
    vigil.enter("load", 1.0)
    assert vigil.silent(1.0 + 2.0 * UNMEASURED) == 0.0
    assert vigil.silent(2.0 + 2.0 * UNMEASURED) > 0.0


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=60), st.floats(0.1, 60.0))
def test_patience_scales_with_the_longest_of_the_recent_steps(seconds: list[float], silence: float) -> None:
    vigil, now = Vigil(silence, now=0.0), 0.0
    for taken in seconds:
        vigil.enter("step", now)
        now += taken
    vigil.enter("step", now)
    granted = max(silence, TIMES * max(seconds[-RECENT:]))
    assert vigil.silent(now + 0.999 * granted) == 0.0
    assert vigil.silent(now + 1.001 * granted) > 0.0


def test_any_message_is_a_sign_of_life() -> None:
    vigil = Vigil(1.0, now=0.0)
    for now in (0.0, 0.1, 0.2):
        vigil.enter("step", now)
    vigil.alive(5.0)
    assert vigil.silent(5.9) == 0.0
    assert vigil.silent(6.1) > 1.0
