"""Which steps count: a step whose gradient norm is not finite or far above the recent ones changes nothing, and too many in a row
take the run back to its last commit. Pure decisions from one number per step, the same on every rank. The loop calls it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

LEAST_SPREAD = 0.1  # of the mean: where norms hardly vary, a small rise is no spike


@dataclass(frozen=True)
class GuardRule:
    """When a step does not count.

    sigma: a gradient norm so many standard deviations above the mean of the last `window` steps of the stage is a spike, once a quarter
    of them is there. skips: so many in a row take the run back to its last commit, and on behind the data seen since. roll_backs: so
    often at most to one commit, then the run fails.
    """

    sigma: float = 6.0
    window: int = 128
    skips: int = 5
    roll_backs: int = 3

    def __post_init__(self) -> None:
        for name, least in (("sigma", 1), ("window", 8), ("skips", 1), ("roll_backs", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least {least}")


@dataclass(frozen=True)
class GuardState:
    """What the guard remembers; stored in every commit. norms: of the stage's last steps that counted, at most a window of them."""

    norms: tuple[float, ...] = ()
    in_a_row: int = 0  # steps skipped since the last one that counted

    def after(self, rule: GuardRule, norm: float, skipped: bool) -> GuardState:
        """After one more step."""
        if skipped:
            return GuardState(self.norms, self.in_a_row + 1)
        return GuardState((*self.norms, norm)[-rule.window :])


def fault(rule: GuardRule, state: GuardState, norm: float) -> str | None:
    """Why a step of this gradient norm must not count, None when it may."""
    if not math.isfinite(norm):
        return "the gradient is not finite"
    if len(state.norms) < rule.window // 4:
        return None
    mean = fmean(state.norms)
    spread = max(math.sqrt(fmean((each - mean) ** 2 for each in state.norms)), LEAST_SPREAD * mean)
    if norm - mean > rule.sigma * spread:
        return f"gradient norm {norm:.4g} is {(norm - mean) / spread:.1f} standard deviations above {mean:.4g}"
    return None


def gives_up(rule: GuardRule, state: GuardState) -> bool:
    """Whether so many steps in a row were skipped that the run must go back to its last commit."""
    return state.in_a_row >= rule.skips


def roll_backs(happened: Sequence[dict[str, Any]], step: int, generation: int) -> list[dict[str, Any]]:
    """The decisions, among a run's events, to go back to the commit of this step and generation (0 and 0: to the beginning)."""
    return [event for event in happened if event["event"] == "roll_back" and event["step"] == step and event["generation"] >= generation]
