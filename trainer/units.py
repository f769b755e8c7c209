"""A step's samples as equal-length, weighted micro-batches dealt to data-parallel ranks (architecture.md, Units of work). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_PADDING = 0.05


@dataclass(frozen=True)
class Unit:
    """One micro-batch of one rank: places in the step's list of samples; `weights` is 0.0 for a repeated sample that only pads."""

    samples: tuple[int, ...]
    weights: tuple[float, ...]


def padding(samples: int, dp: int, micro_batch: int) -> float:
    """Fraction of a step's rows that repeat a sample because `samples` does not divide."""
    rows = -(-samples // (dp * micro_batch)) * dp * micro_batch
    return (rows - samples) / rows


def deal(lengths: Sequence[int], dp: int, micro_batch: int) -> list[list[Unit]]:
    """Units per rank.

    Samples are sorted by length, so a unit's rows are alike, and neighbours in that order go to different ranks of the same pass.
    """
    order = sorted(range(len(lengths)), key=lambda sample: (lengths[sample], sample))
    rows = -(-len(order) // (dp * micro_batch)) * dp * micro_batch
    weights = [1.0] * len(order) + [0.0] * (rows - len(order))
    order += order[-1:] * (rows - len(order))
    cuts = range(0, rows, micro_batch)
    units = [Unit(tuple(order[cut : cut + micro_batch]), tuple(weights[cut : cut + micro_batch])) for cut in cuts]
    return [units[rank::dp] for rank in range(dp)]
