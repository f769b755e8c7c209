"""Which layout a stage runs in: pure arithmetic over (samples per step, world size, largest micro-batch).

Refuses with the binding constraint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.errors import UserError
from trainer.units import MAX_PADDING, padding


@dataclass(frozen=True)
class Layout:
    """How one stage is spread over the workers."""

    dp: int
    tp: int
    sp: int
    zero: int
    micro_batch: int
    accumulation: int
    megatron_sp: bool = False  # with tp > 1: tokens are cut over the tp group wherever channels are whole
    checkpointing: str = "none"  # of activations, per block: none, selective or full


def global_batch(tokens_per_step: int, frames: int, tokens: int) -> int:
    """Samples per optimiser step of a bucket of T latent frames of S tokens: the stage fixes tokens, the bucket the samples."""
    return max(1, round(tokens_per_step / (frames * tokens)))


def plan_layout(
    stage: str, samples: int, world: int, max_micro_batch: int, zero: int, tp: int = 1, sp: int = 1, megatron_sp: bool = False
) -> Layout:
    """The layout with the fewest passes whose padding is at most 5 %; smaller micro-batches are tried before refusing."""
    if world % (tp * sp):
        raise UserError(f"{world} workers are not a multiple of parallel.tp={tp} x parallel.sp={sp}: change cluster.workers or the degrees")
    replicas = world // (tp * sp)
    if samples < replicas:
        raise UserError(
            f"stage {stage}: {samples} samples per step cannot be spread over {world} workers; "
            "raise its tokens_per_step or lower cluster.workers"
        )
    smallest = -(-samples // (replicas * max_micro_batch))
    for accumulation in range(smallest, -(-samples // replicas) + 1):
        micro_batch = -(-samples // (replicas * accumulation))
        if padding(samples, replicas, micro_batch) <= MAX_PADDING:
            passes = -(-samples // (replicas * micro_batch))
            return Layout(replicas, tp, sp, zero, micro_batch, passes, megatron_sp and tp > 1)
    raise UserError(
        f"stage {stage}: {samples} samples per step do not divide over {world} workers with at most 5 % padding; change tokens_per_step"
    )


def usable(world: int, samples: Sequence[int], replica: int = 1) -> int:
    """The largest number of workers, at most `world`, that steps of so many samples can each be spread over with at most 5 % padding;
    `replica` = tp x sp of them work on one sample. 0 when there are too few for that."""
    counts = range(min(world // replica, *samples), 0, -1)
    return replica * next((count for count in counts if all(padding(size, count, 1) <= MAX_PADDING for size in samples)), 0)
