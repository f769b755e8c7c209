"""Which tokens are masked: training's mask ratio and order, sampling's cosine reveal (videomar.md sections 2 and 6). Pure functions."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import NormalDist

import numpy as np

from model.config import ModelConfig


def mask_ratio(rng: np.random.Generator, config: ModelConfig) -> float:
    """r ~ Normal(mean, std) truncated to [min, 1], by the inverse of its distribution function (one uniform draw)."""
    normal = NormalDist(config.mask_ratio_mean, config.mask_ratio_std)
    low, high = normal.cdf(config.mask_ratio_min), normal.cdf(1.0)
    return min(1.0, max(config.mask_ratio_min, normal.inv_cdf(low + (high - low) * rng.random())))


def masked_tokens(rng: np.random.Generator, tokens: int, config: ModelConfig) -> np.ndarray:
    """Sorted indices [ceil(r * S)] of the masked tokens of one frame of S tokens: a random subset of a random size."""
    count = math.ceil(mask_ratio(rng, config) * tokens)
    return np.sort(rng.permutation(tokens)[:count])


def masked_after(iteration: int, iterations: int, tokens: int) -> int:
    """Tokens still masked after `iteration` (from 0) of `iterations`: floor(S cos(pi/2 (k+1)/n)), at least 1 until the last."""
    if iteration + 1 >= iterations:
        return 0
    return max(1, math.floor(tokens * math.cos(math.pi / 2 * (iteration + 1) / iterations)))


def reveal_schedule(iterations: int, tokens: int) -> list[tuple[int, int]]:
    """(start, stop) places in a frame's random order revealed by each iteration; iterations that would reveal nothing are left out."""
    left = [tokens, *(masked_after(k, iterations, tokens) for k in range(iterations))]
    return [(tokens - before, tokens - after) for before, after in pairwise(left) if after < before]
