"""What is measured on a clip and what makes it unfit. Values are always stored with the clip, so that thresholds can be
chosen afterwards; a rejected clip is counted under its reason. Pure; called by clips."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FilterThresholds:
    """A clip whose value is below a minimum is rejected. Still clips pass by default: they are valid videos."""

    min_luma_std: float = 0.01
    min_motion: float = 0.0
    min_sharpness: float = 0.0


def clip_values(frames: np.ndarray) -> dict[str, float]:
    """Measures of uint8 frames [F, H, W, 3], all on luma in 0..1 and rounded so that records are the same everywhere.

    motion: mean absolute difference of consecutive frames; sharpness: mean absolute Laplacian of the middle frame.
    """
    luma = (frames @ np.array([0.299, 0.587, 0.114], np.float32)) / np.float32(255)
    middle = luma[len(luma) // 2]
    laplacian = 4 * middle[1:-1, 1:-1] - middle[:-2, 1:-1] - middle[2:, 1:-1] - middle[1:-1, :-2] - middle[1:-1, 2:]
    values = {
        "luma_mean": luma.mean(dtype=np.float64),
        "luma_std": luma.std(dtype=np.float64),
        "motion": np.abs(np.diff(luma, axis=0)).mean(dtype=np.float64) if len(luma) > 1 else 0.0,
        "sharpness": np.abs(laplacian).mean(dtype=np.float64) if laplacian.size else 0.0,
    }
    return {name: round(float(value), 5) for name, value in values.items()}


def rejection(values: dict[str, float], thresholds: FilterThresholds) -> str | None:
    """The reason for which a clip with these values is rejected (blank, still, blurred), or None when it is fit."""
    if values["luma_std"] < thresholds.min_luma_std:
        return "blank"
    if values["motion"] < thresholds.min_motion:
        return "still"
    if values["sharpness"] < thresholds.min_sharpness:
        return "blurred"
    return None
