"""The embedded default tokenizer: causal patch PCA, fitted on the data itself in a second. One basis for the first
frame, one for the groups of frames that follow, turned so that a static scene has the same latents in both."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from data_pipeline import storage
from data_pipeline.buckets import Bucket, Stride, latent_shape
from data_pipeline.errors import UserError
from data_pipeline.order import keyed_generator

VERSION = 2  # raise it when the same file would give other latents
PATCHES_PER_CLIP = 512  # that the fit looks at, of each kind: bounds its time
DECIMALS = 6  # of the fitted bases: hides the last bits, in which LAPACK depends on the number of threads
HALF_RANGE = 127.5  # of pixel values


@dataclass(frozen=True)
class LinearTokenizer:
    """Projections of patches [row, column, colour] on orthonormal directions, in units of half the range of a pixel.

    mean [P], in pixel values, is subtracted from each frame's patch; first [P, C] and group [t * P, C] have orthonormal
    columns, rounded to DECIMALS.
    """

    stride: Stride
    mean: np.ndarray
    first: np.ndarray
    group: np.ndarray

    @classmethod
    def fit(cls, clips: Iterable[np.ndarray], channels: int = 16, stride: Stride = (4, 8, 8)) -> "LinearTokenizer":
        """Fits on uint8 clips [F, H, W, 3], of any sizes, in one pass that holds one clip. Deterministic.

        Raises ValueError when there is no clip, or fewer directions in a patch than channels.
        """
        step = stride[0]
        size = stride[1] * stride[2] * 3
        if channels > size:
            raise ValueError(f"channels {channels} exceed the {size} numbers of a {stride[1]}x{stride[2]} patch")
        frame_moments, group_moments = _Moments(size), _Moments(step * size)
        for number, clip in enumerate(clips):
            generator = keyed_generator("linear tokenizer", number)
            patches = _patches(clip, stride)
            frame_moments.add(patches.reshape(-1, size), generator)
            group_moments.add(_groups(patches, step).reshape(-1, step * size), generator)
        if not frame_moments.count:
            raise ValueError("no clip to fit the linear tokenizer on")
        mean = frame_moments.mean()
        first = _principal(frame_moments.covariance(mean), channels)
        group = np.zeros((step * size, channels))
        if group_moments.count:
            group = _principal(group_moments.covariance(np.tile(mean, step)), channels)
            group = _turn_towards(group, np.tile(first, (step, 1)))
        return cls(stride, mean, first.round(DECIMALS), group.round(DECIMALS))

    @property
    def channels(self) -> int:
        return self.first.shape[1]

    @cached_property
    def fingerprint(self) -> str:
        basis = b"".join(array.tobytes() for array in (self.mean, self.first, self.group))
        return hashlib.blake2b(f"linear {VERSION} {self.stride} ".encode() + basis, digest_size=16).hexdigest()

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """uint8 [F, H, W, 3] -> raw latents float32 [T, C, h, w]; computed in float64, so that CPUs agree on them."""
        _, height, width = latent_shape(Bucket(*frames.shape[:3]), self.stride)
        step = self.stride[0]
        patches = (_patches(frames, self.stride) - self.mean) / HALF_RANGE
        later = _groups(patches, step) @ self.group / np.sqrt(step)
        latents = np.concatenate([patches[:1] @ self.first, later])
        return latents.swapaxes(1, 2).reshape(-1, self.channels, height, width).astype(np.float32)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Raw latents [T, C, h, w] -> uint8 [F, H, W, 3]: the nearest frames in the span of the basis."""
        step, rows, columns = self.stride
        count, channels, height, width = latents.shape
        codes = latents.reshape(count, channels, -1).swapaxes(1, 2).astype(np.float64)
        later = (codes[1:] * np.sqrt(step)) @ self.group.T
        later = later.reshape(count - 1, height * width, step, len(self.mean)).swapaxes(1, 2)
        later = later.reshape(-1, height * width, len(self.mean))
        patches = np.concatenate([codes[:1] @ self.first.T, later]) * HALF_RANGE + self.mean
        pixels = patches.reshape(-1, height, width, rows, columns, 3).swapaxes(2, 3)
        pixels = pixels.reshape(-1, height * rows, width * columns, 3)
        return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json last: a folder that has it is whole."""
        arrays = {"mean": self.mean, "first": self.first, "group": self.group}
        storage.write_bytes(Path(folder) / "linear.safetensors", save(arrays))
        storage.write_json(
            Path(folder) / "tokenizer.json",
            {"kind": "linear", "version": VERSION, "stride": list(self.stride), "fingerprint": self.fingerprint},
        )

    @classmethod
    def load(cls, folder: str | Path) -> "LinearTokenizer":
        """Bit-exactly what was saved. Raises UserError when another version of this code saved it."""
        path = Path(folder) / "tokenizer.json"
        description = json.loads(path.read_text())
        if description["version"] != VERSION:
            raise UserError(f"{path} has version {description['version']}, not {VERSION}: encode the data set again")
        return cls(tuple(description["stride"]), **load_file(Path(folder) / "linear.safetensors"))


class _Moments:
    """First and second moments of uint8 vectors, from a bounded sample of each clip.

    Sums of whole numbers below 2**53 are exact in float64, so neither threads nor the order of addition change a bit.
    """

    def __init__(self, size: int) -> None:
        self.count = 0
        self._sum = np.zeros(size)
        self._products = np.zeros((size, size))

    def add(self, vectors: np.ndarray, generator: np.random.Generator) -> None:
        if len(vectors) > PATCHES_PER_CLIP:
            vectors = vectors[np.sort(generator.choice(len(vectors), PATCHES_PER_CLIP, replace=False))]
        vectors = vectors.astype(np.float64)
        self.count += len(vectors)
        self._sum += vectors.sum(axis=0)
        self._products += vectors.T @ vectors

    def mean(self) -> np.ndarray:
        return self._sum / self.count

    def covariance(self, centre: np.ndarray) -> np.ndarray:
        cross = np.outer(self._sum / self.count, centre)
        return self._products / self.count - cross - cross.T + np.outer(centre, centre)


def _patches(frames: np.ndarray, stride: Stride) -> np.ndarray:
    """uint8 [F, H, W, 3] -> uint8 [F, h * w, P]."""
    count, height, width, _ = frames.shape
    _, rows, columns = stride
    blocks = frames.reshape(count, height // rows, rows, width // columns, columns, 3).swapaxes(2, 3)
    return blocks.reshape(count, -1, rows * columns * 3)


def _groups(patches: np.ndarray, step: int) -> np.ndarray:
    """Patches of all frames but the first [1 + G * t, N, P] -> patches of groups of t = step frames [G, N, t * P]."""
    _, places, size = patches.shape
    return patches[1:].reshape(-1, step, places, size).swapaxes(1, 2).reshape(-1, places, step * size)


def _principal(covariance: np.ndarray, channels: int) -> np.ndarray:
    """The leading eigenvectors as columns, each with its largest entry positive."""
    vectors = np.linalg.eigh(covariance)[1][:, ::-1][:, :channels]
    largest = np.abs(vectors).argmax(axis=0)
    return np.ascontiguousarray(vectors * np.sign(vectors[largest, np.arange(channels)]))


def _turn_towards(basis: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The orthonormal basis of the same span that is nearest to `target` (orthogonal Procrustes).

    A rotation inside the span changes no reconstruction. Directions of pure change in time, which have no counterpart
    in a single frame, land on the channels that matter least there: the last.
    """
    left, _, right = np.linalg.svd(basis.T @ target)
    return np.ascontiguousarray(basis @ (left @ right))
