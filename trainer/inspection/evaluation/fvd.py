"""Fréchet Video Distance (1812.01717) with an I3D network that the user has as TorchScript; without one there is no FVD.

The file is what the usual reimplementations load: called as network(videos [N, 3, F, H, W] in -1..1, rescale, resize, return_features).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from data_pipeline.errors import UserError

FEWEST_FRAMES = 10  # that I3D takes


def fvd(generated: np.ndarray, truth: np.ndarray, weights: Path) -> float:
    """Distance of two sets of uint8 videos [N, F, H, W, 3]. Raises UserError naming what is missing or does not fit."""
    if not weights.is_file():
        raise UserError(f"--fvd-weights {weights} does not exist: FVD needs I3D as TorchScript (i3d_torchscript.pt), from the disk")
    if min(len(generated), len(truth)) < 2:
        raise UserError("FVD compares distributions: take at least 2 clips (--clips); below some hundreds it says little")
    if truth.shape[1] < FEWEST_FRAMES:
        raise UserError(f"FVD: the clips have {truth.shape[1]} frames, I3D needs at least {FEWEST_FRAMES}")
    try:
        network = torch.jit.load(str(weights), map_location="cpu").eval()
        sets = [features(network, videos) for videos in (generated, truth)]
    except RuntimeError as error:
        raise UserError(f"--fvd-weights {weights} is not I3D as TorchScript: {str(error).strip().splitlines()[-1]}") from None
    return frechet(*sets)


@torch.no_grad()
def features(network: torch.jit.ScriptModule, videos: Iterable[np.ndarray]) -> np.ndarray:
    """[N, features], float64."""
    rows = []
    for video in videos:
        pixels = torch.from_numpy(video).permute(3, 0, 1, 2)[None].float() / 127.5 - 1.0
        rows.append(network(pixels, rescale=False, resize=True, return_features=True).double().flatten().numpy())
    return np.stack(rows)


def frechet(one: np.ndarray, two: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2) of two sets of features [N, D]."""
    (mean_1, cov_1), (mean_2, cov_2) = ((rows.mean(0), np.atleast_2d(np.cov(rows, rowvar=False))) for rows in (one, two))
    values, vectors = np.linalg.eigh(cov_1)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_2 @ root), 0)).sum()
    return float(((mean_1 - mean_2) ** 2).sum() + np.trace(cov_1) + np.trace(cov_2) - 2 * cross)
