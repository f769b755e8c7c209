"""Means with their intervals. Pure; NaNs (a clip in which nothing moves has no moving error) are left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Student's t at 97.5 % for 1, 2, ... degrees of freedom.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
T_975 += (2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)


@dataclass(frozen=True)
class Interval:
    """A mean and the 95 % interval around it; None where a single value gives none."""

    mean: float | None
    low: float | None = None
    high: float | None = None


def t_975(degrees: int) -> float:
    return T_975[degrees - 1] if degrees <= len(T_975) else 1.96 + 2.4 / degrees


def around(values: Sequence[float], factor: float) -> Interval:
    found = [value for value in values if not math.isnan(value)]
    if not found:
        return Interval(None)
    mean = float(np.mean(found))
    if len(found) == 1:
        return Interval(mean)
    half = t_975(len(found) - 1) * float(np.std(found, ddof=1)) * math.sqrt(factor / len(found))
    return Interval(mean, mean - half, mean + half)


def of_repeat(by_seed: Sequence[float]) -> Interval:
    """Where the mean of as many other seeds will lie: both means vary, hence the two."""
    return around(by_seed, 2.0)


def of_mean(values: Sequence[float]) -> Interval:
    """Where the true mean lies, for independent values such as differences per clip."""
    return around(values, 1.0)


def nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean without NaNs; NaN where there is nothing else."""
    known = ~np.isnan(values)
    count = known.sum(axis=axis)
    return np.where(count, np.where(known, values, 0.0).sum(axis=axis) / np.maximum(count, 1), np.nan)
