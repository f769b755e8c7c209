"""The curriculum as a pure state machine: stages as data, when a stage is over, where a run stands. Values in, values out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


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


@dataclass(frozen=True)
class RunState:
    """Where a run stands; stored in every commit. `samples` counts per bucket what training has consumed: the whole data state."""

    step: int = 0  # optimiser steps done
    stage: int = 0
    stage_step: int = 0
    samples: dict[str, int] = field(default_factory=dict)
    held_out: tuple[float, ...] = ()  # this stage's evaluations
    skipped: tuple[int, ...] = ()  # steps whose gradients were not finite

    def stepped(self, bucket: str, samples: int, skipped: bool) -> RunState:
        """After one more optimiser step on `samples` samples of a bucket."""
        consumed = {**self.samples, bucket: self.samples.get(bucket, 0) + samples}
        skips = (*self.skipped, self.step) if skipped else self.skipped
        return replace(self, step=self.step + 1, stage_step=self.stage_step + 1, samples=consumed, skipped=skips)

    def evaluated(self, loss: float) -> RunState:
        """After one more held-out evaluation."""
        return replace(self, held_out=(*self.held_out, loss))

    def promoted(self) -> RunState:
        """At the start of the next stage."""
        return replace(self, stage=self.stage + 1, stage_step=0, held_out=())


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
