"""Whether a run moves to more seats: pure arithmetic over what was measured. Fewer seats are no choice, and are not asked about here.

run.py asks once a second while seats are spare; simulate.py asks the same function.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

SERIAL = 0.1  # part of a step that more workers do not shorten, until it is measured
HURDLE = 1.5  # times its cost that a move must gain: what is to go and the new step time are guesses
RESTART_SECONDS = 5.0  # until one is measured

Choice = Literal["stay", "now", "commit"]


@dataclass(frozen=True)
class Situation:
    """A generation that trains with `world` workers where `possible` could. A move ends it with a commit and starts another.

    steps: to go in this stage if it does not end before its max_steps; the next stage is planned anew anyway.
    step_seconds: measured in this stage, by world. restart_seconds: from the last step of a generation to the first of the next.
    commit_seconds: that training stands still for one; steps_to_commit: until the next that is due.
    """

    world: int
    possible: int
    steps: int
    step_seconds: Mapping[int, float]
    restart_seconds: float = RESTART_SECONDS
    commit_seconds: float = 0.0
    steps_to_commit: int = 0


@dataclass(frozen=True)
class Decision:
    """stay, move now (which costs a commit more), or move at the next commit. Seconds of training that it saves and costs."""

    choice: Choice
    gain_seconds: float
    cost_seconds: float
    why: str


def predicted(step_seconds: Mapping[int, float], world: int) -> float | None:
    """Seconds of a step with `world` workers: measured, or from the nearest world that was; None before any was."""
    if world in step_seconds:
        return step_seconds[world]
    nearest = min(step_seconds, key=lambda measured: abs(measured - world), default=None)
    return step_seconds[nearest] * (SERIAL + (1.0 - SERIAL) * nearest / world) if nearest else None


def decide(now: Situation) -> Decision:
    """The choice that saves most, if it saves HURDLE times what it costs."""
    here = now.step_seconds.get(now.world)
    there = predicted(now.step_seconds, now.possible)
    if now.possible <= now.world:
        return Decision("stay", 0.0, 0.0, "no more workers can be used")
    if here is None or there is None:
        return Decision("stay", 0.0, 0.0, "no step is measured yet")
    saved = here - there
    at_once = Decision("now", saved * now.steps, now.restart_seconds + now.commit_seconds, "")
    at_commit = Decision("commit", saved * max(0, now.steps - now.steps_to_commit), now.restart_seconds, "")
    best = max(at_once, at_commit, key=lambda choice: choice.gain_seconds - choice.cost_seconds)
    told = f"{here:.3g} -> {there:.3g} s a step for {now.steps} steps"
    moves = best.gain_seconds > HURDLE * best.cost_seconds
    return Decision(best.choice if moves else "stay", best.gain_seconds, best.cost_seconds, told)
