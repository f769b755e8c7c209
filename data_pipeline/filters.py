"""What is measured on a source and on a clip, and what makes them unfit. Values are always stored, so that thresholds can
be chosen afterwards; a rejection is counted under its reason. Pure; called by clips."""

from dataclasses import dataclass, fields

import numpy as np

BLACK = 0.06  # mean luma of a frame, 0..1, below which it shows nothing
UNIFORM = 0.012  # luma deviation, 0..1, of a row or column over a whole clip: one without a picture
HASH_ROWS, HASH_COLUMNS = 8, 9


@dataclass(frozen=True)
class FilterThresholds:
    """What is rejected: below a minimum or above a maximum. The defaults reject blank clips only.

    Of a source: its length in seconds and its shorter side in pixels. Of a clip: see clip_values. duplicate_bits: the
    most bits of 192 by which two clips' hashes differ if one of them is to be left out; None keeps duplicates.
    Raises ValueError naming the threshold that cannot be.
    """

    min_seconds: float = 0.0
    max_seconds: float | None = None
    min_side: int = 0
    min_luma_std: float = 0.01
    min_luma: float = 0.0
    max_luma: float = 1.0
    max_black: float = 1.0
    min_motion: float = 0.0
    max_motion: float = 1.0
    min_sharpness: float = 0.0
    max_border: float = 1.0
    duplicate_bits: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"filters.{field.name} {value} must be a number from 0 on")
        if self.max_seconds is not None and self.max_seconds <= self.min_seconds:
            raise ValueError(f"filters.max_seconds {self.max_seconds} must be above min_seconds {self.min_seconds}")

    @property
    def longest(self) -> float:
        """Seconds of a source that have to be seen to know whether its length is right."""
        return max(self.min_seconds, self.max_seconds or 0.0)


def clip_values(frames: np.ndarray) -> dict[str, float]:
    """Measures of uint8 frames [F, H, W, 3], all on luma in 0..1 and rounded so that records are the same everywhere.

    motion: mean absolute difference of consecutive frames; sharpness: mean absolute Laplacian of the middle frame;
    black: fraction of the frames that show nothing; border: fraction of the area in bars along the edges.
    """
    luma = (frames @ np.array([0.299, 0.587, 0.114], np.float32)) / np.float32(255)
    middle = luma[len(luma) // 2]
    laplacian = 4 * middle[1:-1, 1:-1] - middle[:-2, 1:-1] - middle[2:, 1:-1] - middle[1:-1, :-2] - middle[1:-1, 2:]
    values = {
        "luma_mean": luma.mean(dtype=np.float64),
        "luma_std": luma.std(dtype=np.float64),
        "motion": np.abs(np.diff(luma, axis=0)).mean(dtype=np.float64) if len(luma) > 1 else 0.0,
        "sharpness": np.abs(laplacian).mean(dtype=np.float64) if laplacian.size else 0.0,
        "black": (luma.mean(axis=(1, 2)) < BLACK).mean(),
        "border": _border(luma),
    }
    return {name: round(float(value), 5) for name, value in values.items()}


def rejection(values: dict[str, float], thresholds: FilterThresholds) -> str | None:
    """The first reason for which a clip with these values is rejected, or None when it is fit."""
    reasons = {
        "blank": values["luma_std"] < thresholds.min_luma_std,
        "black": values["black"] > thresholds.max_black,
        "dark": values["luma_mean"] < thresholds.min_luma,
        "bright": values["luma_mean"] > thresholds.max_luma,
        "still": values["motion"] < thresholds.min_motion,
        "restless": values["motion"] > thresholds.max_motion,
        "blurred": values["sharpness"] < thresholds.min_sharpness,
        "bordered": values["border"] > thresholds.max_border,
    }
    return next((reason for reason, unfit in reasons.items() if unfit), None)


def source_rejection(seconds: float, side: int, thresholds: FilterThresholds) -> str | None:
    """The reason for which a whole source is rejected: its length, or the shorter side of its pictures."""
    if side < thresholds.min_side:
        return "small_source"
    if seconds < thresholds.min_seconds:
        return "brief_source"
    if thresholds.max_seconds is not None and seconds > thresholds.max_seconds:
        return "long_source"
    return None


def perceptual_hash(frames: np.ndarray) -> str:
    """192 bits in hex: for the first, middle and last of uint8 frames [F, H, W, 3], where in a 8 x 9 thumbnail luma falls
    to the right. In whole numbers, so that every machine agrees; small changes flip few bits. Noise in flat areas none.
    """
    bits = []
    for frame in frames[[0, len(frames) // 2, -1]]:
        luma = frame.astype(np.int64) @ np.array([299, 587, 114])
        rows, columns = (np.arange(parts) * size // parts for parts, size in zip((HASH_ROWS, HASH_COLUMNS), luma.shape, strict=True))
        sums = np.add.reduceat(np.add.reduceat(luma, rows, axis=0), columns, axis=1)
        areas = np.outer(np.diff(np.append(rows, luma.shape[0])), np.diff(np.append(columns, luma.shape[1])))
        cells = sums // areas
        bits.append(cells[:, :-1] > cells[:, 1:] + 1000)  # one level of 255
    return np.packbits(bits).tobytes().hex()


def _border(luma: np.ndarray) -> float:
    """The fraction of the area outside the rows and columns that show something; luma [F, H, W]."""
    parts = [_inside(luma.std(axis=axes) > UNIFORM) / size for axes, size in (((0, 2), luma.shape[1]), ((0, 1), luma.shape[2]))]
    return 1 - parts[0] * parts[1]


def _inside(shows: np.ndarray) -> int:
    """How many of these lines lie between the first and the last that shows something, both included."""
    lines = np.flatnonzero(shows)
    return int(lines[-1] - lines[0] + 1) if len(lines) else 0
