"""The curriculum as a pure state machine: stages as data, when a stage is over, where a run stands. Values in, values out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trainer.guard import GuardState


@dataclass(frozen=True)
class Promotion:
    """When a stage is over: at `max_steps`, or from `min_steps` on as soon as one of the other rules holds.

    plateau_window: held-out evaluations compared; plateau_gain: the stage is over when the best of the last window is less than
    this fraction better than the best before it. target_loss: a held-out loss that is good enough.
    """

    max_steps: int
    min_steps: int = 0
    plateau_window: int = 0
    plateau_gain: float = 0.0
    target_loss: float | None = None

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}: it must be at least 1")
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps {self.min_steps} is above max_steps {self.max_steps}")


@dataclass(frozen=True)
class Mix:
    """A second bucket in every step of a stage: stills (1 frame, which supervise frame 0), or the clips of an earlier stage.

    share: of the step's latent tokens; weight: of one of its supervised tokens in the loss, where the stage's own have 1.
    """

    frames: int
    height: int
    width: int
    share: float
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0:
            raise ValueError(f"share is {self.share}: it must be above 0 and below 1")
        if self.weight <= 0.0:
            raise ValueError(f"weight is {self.weight}: it must be above 0")


@dataclass(frozen=True)
class Stage:
    """One part of the curriculum: a bucket of video frames x height x width and the latent tokens (T * S) per optimiser step."""

    name: str
    frames: int
    height: int
    width: int
    tokens_per_step: int
    promotion: Promotion
    lr_scale: float = 1.0
    stride: tuple[int, int, int] | None = None  # of the tokenizer, where it is not data.stride
    mix: tuple[Mix, ...] = ()

    def __post_init__(self) -> None:
        if sum(mix.share for mix in self.mix) >= 1.0:
            raise ValueError(f"the shares of mix sum to {sum(mix.share for mix in self.mix)}: leave some of the step to the stage itself")
        shapes = [(self.frames, self.height, self.width), *((mix.frames, mix.height, mix.width) for mix in self.mix)]
        if len(set(shapes)) < len(shapes):
            raise ValueError("mix names a bucket twice, or the stage's own")


@dataclass(frozen=True)
class RunState:
    """Where a run stands; stored in every commit. `samples` counts per bucket what training has consumed: the whole data state."""

    step: int = 0  # optimiser steps done
    stage: int = 0
    stage_step: int = 0
    samples: dict[str, int] = field(default_factory=dict)
    held_out: tuple[float, ...] = ()  # this stage's evaluations
    skipped: tuple[int, ...] = ()  # steps that the guard did not let count
    guard: GuardState = field(default_factory=GuardState)

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> RunState:
        """Back from JSON, where tuples are lists."""
        guard = GuardState(tuple(tree["guard"]["norms"]), tree["guard"]["in_a_row"])
        return cls(**tree | {"held_out": tuple(tree["held_out"]), "skipped": tuple(tree["skipped"]), "guard": guard})

    def stepped(self, samples: dict[str, int], skipped: bool, guard: GuardState) -> RunState:
        """After one more optimiser step on so many samples per bucket."""
        consumed = {**self.samples, **{bucket: self.samples.get(bucket, 0) + count for bucket, count in samples.items()}}
        skips = (*self.skipped, self.step) if skipped else self.skipped
        return replace(self, step=self.step + 1, stage_step=self.stage_step + 1, samples=consumed, skipped=skips, guard=guard)

    def moved(self, samples: dict[str, int]) -> RunState:
        """Gone back to here and on from later positions in the data, by bucket; the guard starts afresh."""
        return replace(self, samples={**self.samples, **samples}, guard=GuardState())

    def evaluated(self, loss: float) -> RunState:
        """After one more held-out evaluation."""
        return replace(self, held_out=(*self.held_out, loss))

    def promoted(self) -> RunState:
        """At the start of the next stage."""
        return replace(self, stage=self.stage + 1, stage_step=0, held_out=(), guard=GuardState())


def promotion_reason(rule: Promotion, state: RunState) -> str | None:
    """Why the stage is over, or None while it goes on."""
    if state.stage_step >= rule.max_steps:
        return f"max_steps {rule.max_steps}"
    if state.stage_step < rule.min_steps or not state.held_out:
        return None
    if rule.target_loss is not None and state.held_out[-1] <= rule.target_loss:
        return f"held-out loss {state.held_out[-1]:.4f} <= {rule.target_loss}"
    window = rule.plateau_window
    if window and len(state.held_out) > window:
        before, recent = min(state.held_out[:-window]), min(state.held_out[-window:])
        if recent > before * (1.0 - rule.plateau_gain):
            return f"plateau: {before:.4f} -> {recent:.4f} over {window} evaluations"
    return None


def tokens_to_go(stages: Sequence[Stage], index: int, stage_step: int) -> int:
    """Latent tokens left after `stage_step` steps of stage `index` if no stage ends before its max_steps."""
    here, *later = stages[index:]
    steps = [(here, here.promotion.max_steps - stage_step), *((stage, stage.promotion.max_steps) for stage in later)]
    return sum(count * stage.tokens_per_step for stage, count in steps)
