"""How well a tokenizer gives back clips that it did not see: PSNR and SSIM, and a picture of the clips beside what came
back. `encode --verify` prints and writes it; tests use it on the linear tokenizer."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline import storage
from data_pipeline.tokenizers import VideoTokenizer

SHOWN_CLIPS, SHOWN_FRAMES = 4, 3
WINDOW = 8  # pixels: the side of SSIM's windows


@dataclass(frozen=True)
class Quality:
    """Means over clips: PSNR in dB and SSIM, of the first frames and of the later ones; the worst clip's PSNR."""

    clips: int
    psnr_first: float
    psnr_later: float
    ssim_first: float
    ssim_later: float
    worst_psnr: float


def verify(tokenizer: VideoTokenizer, clips: Iterable[np.ndarray], picture: Path | None = None) -> Quality:
    """Encodes and decodes uint8 clips [F, H, W, 3], one at a time; writes the first of them and what came back to `picture`.

    Raises ValueError when there is no clip.
    """
    rows: list[list[float]] = []
    shown: list[np.ndarray] = []
    for clip in clips:
        back = tokenizer.decode(tokenizer.encode(clip))
        rows.append([measure(clip[part], back[part]) for measure in (psnr, ssim) for part in (slice(1), slice(1, None))])
        if len(shown) < SHOWN_CLIPS:
            shown.append(_beside(clip, back))
    if not rows:
        raise ValueError("no clip to verify the tokenizer on")
    if picture is not None:
        width = max(image.shape[1] for image in shown)
        sheet = np.concatenate([np.pad(image, ((0, 4), (0, width - image.shape[1]), (0, 0)), constant_values=255) for image in shown])
        with storage.atomic(picture) as temporary:
            Image.fromarray(sheet).save(temporary, format="PNG")
    means = np.nanmean(np.array(rows), axis=0)
    figures = dict(zip(("psnr_first", "psnr_later", "ssim_first", "ssim_later"), (round(float(value), 4) for value in means), strict=True))
    return Quality(len(rows), **figures, worst_psnr=round(float(np.nanmin(np.array(rows)[:, :2])), 4))


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """dB between uint8 frames; at most 100, and NaN when there is none."""
    if not one.size:
        return float("nan")
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float(min(100.0, 10 * np.log10(255**2 / error))) if error else 100.0


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity of the luma of uint8 frames [F, H, W, 3] (Wang et al. 2004), over windows of 8 x 8 pixels
    that do not overlap: 1 for equal frames."""
    if not one.size:
        return float("nan")
    x, y = (_windows(frames) for frames in (one, other))
    means = x.mean(axis=-1), y.mean(axis=-1)
    covariance = (x * y).mean(axis=-1) - means[0] * means[1]
    luminance = (2 * means[0] * means[1] + 0.01**2) / (means[0] ** 2 + means[1] ** 2 + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (x.var(axis=-1) + y.var(axis=-1) + 0.03**2)
    return float((luminance * structure).mean())


def _windows(frames: np.ndarray) -> np.ndarray:
    """Luma in 0..1 of frames [F, H, W, 3] as windows [..., WINDOW * WINDOW]; what is left over at the edges is cut."""
    luma = frames @ np.array([0.299, 0.587, 0.114]) / 255
    count, height, width = luma.shape
    rows, columns = height // WINDOW, width // WINDOW
    cut = luma[:, : rows * WINDOW, : columns * WINDOW].reshape(count, rows, WINDOW, columns, WINDOW)
    return cut.swapaxes(2, 3).reshape(count, rows, columns, -1)


def _beside(clip: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Some frames of a clip above what came back of them: uint8 [2 * H, n * W, 3]."""
    numbers = np.unique(np.linspace(0, len(clip) - 1, SHOWN_FRAMES).round().astype(int))
    return np.concatenate([np.concatenate(list(frames[numbers]), axis=1) for frames in (clip, back)])
