"""The curriculum as a pure state machine: stages as data, when a stage is over, where a run stands. Values in, values out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

from data_pipeline.epochs import Epochs
from trainer.guard import GuardState


@dataclass(frozen=True)
class Promotion:
    """When a stage is over: at `max_steps`, or from `min_steps` on as soon as one of the other rules holds.

    plateau_window: held-out evaluations compared; plateau_gain: the stage is over when the best of the last window is less than
    this fraction better than the best before it. target_loss: a held-out loss that is good enough. epochs: visits in this stage of
    every sample of its bucket, once all are encoded.
    """

    max_steps: int
    min_steps: int = 0
    plateau_window: int = 0
    plateau_gain: float = 0.0
    target_loss: float | None = None
    epochs: int | None = None

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}: it must be at least 1")
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps {self.min_steps} is above max_steps {self.max_steps}")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}: it must be at least 1")
        if self.plateau_gain and not self.plateau_window:
            raise ValueError(f"plateau_gain {self.plateau_gain} says nothing without a plateau_window of evaluations")

    def idle(self, evaluate_every: int) -> str | None:
        """The rule that can never end the stage before max_steps does, and why; None when all of them may. Without held-out
        evaluations between min_steps and max_steps there is nothing that they could go by."""
        needed = {"plateau_window": (self.plateau_window + 1) * evaluate_every if self.plateau_window else None}
        needed |= {"target_loss": None if self.target_loss is None else evaluate_every, "epochs": self.epochs}
        for name, steps in needed.items():
            if steps is not None and max(steps, self.min_steps) >= self.max_steps:
                first = f"min_steps {self.min_steps}" if self.min_steps >= steps else f"step {steps} at the earliest"
                return f"{name} can never end it: it holds from {first} on, and max_steps is {self.max_steps}"
        return None


@dataclass(frozen=True)
class Mix:
    """A second bucket in every step of a stage: stills (1 frame, which supervise frame 0), or the clips of an earlier stage.

    share: of the step's latent tokens; weight: of one of its supervised tokens in the loss, where the stage's own have 1; steps: of
    the stage, its first ones, that have it (none: all), after which the stage's own bucket takes its share.
    """

    frames: int
    height: int
    width: int
    share: float
    weight: float = 1.0
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps is {self.steps}: it must be at least 1")
        if not 0.0 < self.share < 1.0:
            raise ValueError(f"share is {self.share}: it must be above 0 and below 1")
        if self.weight <= 0.0:
            raise ValueError(f"weight is {self.weight}: it must be above 0")


@dataclass(frozen=True)
class Latents:
    """A tokenizer, as data.tokenizer names it, and its stride."""

    tokenizer: str
    stride: tuple[int, int, int]

    @property
    def name(self) -> str:
        """As in 8x16x16-linear."""
        return f"{'x'.join(map(str, self.stride))}-{PurePath(self.tokenizer).name}"


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
    tokenizer: str | None = None  # where it is not data.tokenizer
    stride: tuple[int, int, int] | None = None  # of the tokenizer, where it is not data.stride
    mix: tuple[Mix, ...] = ()

    def __post_init__(self) -> None:
        if sum(mix.share for mix in self.mix) >= 1.0:
            raise ValueError(f"the shares of mix sum to {sum(mix.share for mix in self.mix)}: leave some of the step to the stage itself")
        shapes = [(self.frames, self.height, self.width), *((mix.frames, mix.height, mix.width) for mix in self.mix)]
        if len(set(shapes)) < len(shapes):
            raise ValueError("mix names a bucket twice, or the stage's own")

    def at(self, stage_step: int) -> Stage:
        """The stage as it is after so many of its steps: without what is no longer mixed in."""
        return replace(self, mix=tuple(mix for mix in self.mix if mix.steps is None or stage_step < mix.steps))

    def next_change(self, stage_step: int) -> int | None:
        """The step of the stage, after this one, from which on less is mixed in; None when the mixture stays as it is."""
        ends = (mix.steps for mix in self.mix if mix.steps is not None and stage_step < mix.steps < self.promotion.max_steps)
        return min(ends, default=None)

    @property
    def phases(self) -> list[Stage]:
        """The stage with each of the mixtures that it goes through."""
        starts, step = [0], self.next_change(0)
        while step is not None:
            starts, step = [*starts, step], self.next_change(step)
        return [self.at(start) for start in starts]


@dataclass(frozen=True)
class RunState:
    """Where a run stands; stored in every commit. The whole data state: `samples` counts per bucket what training has consumed,
    `epochs` says what each of a bucket's epochs reads, as far as that is decided."""

    step: int = 0  # optimiser steps done
    stage: int = 0
    stage_step: int = 0
    samples: dict[str, int] = field(default_factory=dict)
    held_out: tuple[float, ...] = ()  # this stage's evaluations
    skipped: tuple[int, ...] = ()  # steps that the guard did not let count
    guard: GuardState = field(default_factory=GuardState)
    epochs: dict[str, Epochs] = field(default_factory=dict)
    entered: dict[str, int] = field(default_factory=dict)  # `samples` at the start of this stage

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> RunState:
        """Back from JSON, where tuples are lists."""
        guard = GuardState(tuple(tree["guard"]["norms"]), tree["guard"]["in_a_row"])
        epochs = {bucket: Epochs.from_tree(table) for bucket, table in tree.get("epochs", {}).items()}
        lists = {name: tuple(tree[name]) for name in ("held_out", "skipped")}
        return cls(**tree | lists | {"guard": guard, "epochs": epochs})

    def stepped(self, samples: dict[str, int], skipped: bool, guard: GuardState, epochs: dict[str, Epochs] | None = None) -> RunState:
        """After one more optimiser step on so many samples per bucket, with what is decided about their epochs by now."""
        consumed = {**self.samples, **{bucket: self.samples.get(bucket, 0) + count for bucket, count in samples.items()}}
        skips = (*self.skipped, self.step) if skipped else self.skipped
        now = replace(self, samples=consumed, skipped=skips, guard=guard, epochs={**self.epochs, **(epochs or {})})
        return replace(now, step=self.step + 1, stage_step=self.stage_step + 1)

    def moved(self, samples: dict[str, int]) -> RunState:
        """Gone back to here and on from later positions in the data, by bucket; the guard starts afresh."""
        return replace(self, samples={**self.samples, **samples}, guard=GuardState())

    def evaluated(self, loss: float) -> RunState:
        """After one more held-out evaluation."""
        return replace(self, held_out=(*self.held_out, loss))

    def promoted(self) -> RunState:
        """At the start of the next stage."""
        return replace(self, stage=self.stage + 1, stage_step=0, held_out=(), guard=GuardState(), entered=self.samples)

    def visits(self, bucket: str) -> int:
        """How often this stage has visited every sample of a bucket, in epochs over all of them."""
        return self.epochs.get(bucket, Epochs()).whole_epochs(self.entered.get(bucket, 0), self.samples.get(bucket, 0))


def promotion_reason(rule: Promotion, state: RunState, bucket: str = "") -> str | None:
    """Why the stage, whose own bucket is named, is over; None while it goes on."""
    if state.stage_step >= rule.max_steps:
        return f"max_steps {rule.max_steps}"
    if state.stage_step < rule.min_steps:
        return None
    if rule.epochs is not None and state.visits(bucket) >= rule.epochs:
        return f"every clip was visited {rule.epochs} times"
    if not state.held_out:
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
