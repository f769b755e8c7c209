"""What is measured on videos: PSNR and SSIM per frame, motion by block matching, flicker, still backgrounds, error where it moves.

Pure numpy on uint8 frames [F, H, W, 3]; needs no weights. Called by evaluation/clips.py.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

MOVED = 16  # levels of 255: a pixel differs by more than this, in any colour, where something moved
BLOCK, REACH = 8, 6  # pixels: size of a block, and how far it is looked for
GOOD_MATCH = 12.0  # levels per pixel
FLOW_SIDE = 96  # pixels of the shorter side at which motion is estimated
VBENCH_FLOW = 6.0 / 256.0  # of the shorter side: VBench's threshold for a pair of frames that moves
WINDOW, SIGMA = 11, 1.5  # of SSIM


def luma(frames: np.ndarray) -> np.ndarray:
    """float64 [..., H, W] of [..., H, W, 3]."""
    return frames @ np.array([0.299, 0.587, 0.114])


def psnr_by_frame(video: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[F] in dB; 99 for equal frames."""
    error = np.mean((video.astype(np.float64) - truth) ** 2, axis=(1, 2, 3))
    return np.minimum(99.0, 10 * np.log10(255.0**2 / np.maximum(error, 1e-9)))


def ssim_by_frame(video: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[F]: structural similarity of the luma, Gaussian window of 11 pixels (Wang et al. 2004), where the window fits."""
    a, b = luma(video), luma(truth)
    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b, cov = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2, smooth(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return similarity.mean(axis=(1, 2))


def smooth(pictures: np.ndarray) -> np.ndarray:
    """[F, H, W] under a Gaussian window, only where it fits (a smaller one on pictures below 11 pixels)."""
    size = min(WINDOW, *pictures.shape[1:])
    weights = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / SIGMA) ** 2)
    weights /= weights.sum()
    for axis in (1, 2):
        pictures = np.lib.stride_tricks.sliding_window_view(pictures, size, axis=axis) @ weights
    return pictures


def flow(video: np.ndarray) -> np.ndarray:
    """[F - 1]: mean speed of the fastest 5 % of blocks between consecutive frames, in shares of the shorter side per frame."""
    shrink = max(1, min(video.shape[1:3]) // FLOW_SIDE)
    rows, columns = (side // (shrink * BLOCK) * BLOCK for side in video.shape[1:3])
    small = luma(video[:, : rows * shrink, : columns * shrink]).reshape(len(video), rows, shrink, columns, shrink).mean(axis=(2, 4))
    moves = [(y, x) for y in range(-REACH, REACH + 1) for x in range(-REACH, REACH + 1)]
    moves.sort(key=lambda move: move[0] ** 2 + move[1] ** 2)  # of equally good matches the nearest is taken
    lengths = np.hypot(*np.array(moves).T)
    found = []
    for before, after in pairwise(small):
        padded = np.pad(after, REACH, mode="edge")
        costs = [block_cost(before, padded[REACH + y : REACH + y + rows, REACH + x : REACH + x + columns]) for y, x in moves]
        table = np.stack(costs)
        best = table.argmin(axis=0)
        cost = table.min(axis=0)
        # Noise finds matches too, and what comes into view has none: a move must explain most of the change, and explain it well.
        speeds = np.where((cost < 0.7 * table[0] - 0.5) & (cost < GOOD_MATCH), lengths[best], 0.0)
        fastest = np.sort(speeds)[-max(1, len(speeds) // 20) :]
        found.append(fastest.mean() * shrink / min(video.shape[1:3]))
    return np.array(found)


def block_cost(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """[blocks]: mean absolute difference."""
    rows, columns = one.shape
    return np.abs(one - two).reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK).mean(axis=(1, 3)).ravel()


def is_dynamic(speeds: np.ndarray) -> bool:
    """VBench's rule on the fastest blocks: enough pairs of frames (4 of 16) move by 6 pixels at 256."""
    return bool((speeds > VBENCH_FLOW).sum() >= max(1, round(4 * len(speeds) / 16)))


def moved(truth: np.ndarray, given: int) -> np.ndarray:
    """bool [F, H, W]: where a frame differs from the last given one; False on the given frames."""
    difference = np.abs(truth.astype(np.int16) - truth[given - 1]).max(axis=-1) > MOVED
    difference[:given] = False
    return difference


def flicker(video: np.ndarray, truth: np.ndarray) -> float:
    """Mean change from frame to frame, in levels, of the pixels that stand still in the truth; NaN when none does."""
    still = np.abs(np.diff(truth.astype(np.int16), axis=0)).max(axis=-1) <= MOVED // 2
    change = np.abs(np.diff(video.astype(np.int16), axis=0)).mean(axis=-1)
    return float(change[still].mean()) if still.any() else float("nan")


def background_stability(video: np.ndarray, truth: np.ndarray, given: int) -> float:
    """PSNR in dB of the generated frames against the last given one, over pixels where the truth never moves; NaN without any."""
    still = ~moved(truth, given).any(axis=0)
    if not still.any():
        return float("nan")
    error = np.mean((video[given:, still].astype(np.float64) - truth[given - 1][still]) ** 2)
    return float(min(99.0, 10 * np.log10(255.0**2 / max(error, 1e-9))))


def moving_error(video: np.ndarray, truth: np.ndarray, given: int, step: int) -> float:
    """Mean squared error, in levels squared, of the frames of the next latent frame over moving pixels; NaN when nothing moves."""
    span = slice(given, given + step)
    where = moved(truth, given)[span]
    error = (video[span].astype(np.float64) - truth[span]) ** 2
    return float(error[where].mean()) if where.any() else float("nan")
