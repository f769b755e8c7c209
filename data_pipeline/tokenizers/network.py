"""A neural tokenizer: frames in and out of a causal network, in several passes for long clips, and the self-test that
shows on loading that it is causal. Encoders and the sampler reach it through load_tokenizer; torch is imported only here
and in the two modules that load networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from data_pipeline.buckets import Bucket, Stride, latent_shape
from data_pipeline.errors import UserError
from data_pipeline.order import keyed_generator
from data_pipeline.tokenizers.description import Description

if TYPE_CHECKING:
    import torch

TEST_LATENTS = 96  # latent frames on which several passes are held against one
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}  # of the largest latent


class Network(Protocol):
    """Both directions on one clip: pixels [1, 3, F, H, W] in -1..1, latents [1, C, T, h, w]."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor: ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor: ...


class NetworkTokenizer:
    """Raises UserError when the network is not what its description says, not causal, or cannot work in passes."""

    def __init__(self, description: Description, network: Network, device: str) -> None:
        import torch

        self.description = description
        self._network = network
        self._device = device
        self._dtype: Any = getattr(torch, description.dtype)
        self._overlap = 0
        self._check_causality()
        if description.pass_frames is not None:
            self._overlap = self._find_overlap()

    @property
    def channels(self) -> int:
        return self.description.channels

    @property
    def stride(self) -> Stride:
        return self.description.stride

    @property
    def fingerprint(self) -> str:
        return self.description.fingerprint

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """uint8 [F, H, W, 3] -> raw latents float32 [T, C, h, w]."""
        count, height, width = latent_shape(Bucket(*frames.shape[:3]), self.stride)
        limit = self.description.pass_frames
        if limit is None or len(frames) <= limit:
            return self._encode_pass(frames)
        latents = np.empty((count, self.channels, height, width), np.float32)
        for first, pieces, drop in passes(count, self.stride[0], limit, self._overlap):
            found = self._encode_pass(frames[pieces])
            latents[first : first + len(found) - drop] = found[drop:]
        return latents

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Raw latents [T, C, h, w] -> uint8 [F, H, W, 3]."""
        import torch

        with _exact():
            values = torch.from_numpy(np.ascontiguousarray(latents, np.float32)).to(self._device, self._dtype)
            pixels = self._network.decode(values.swapaxes(0, 1)[None])[0].float().cpu().numpy()
        return np.clip(np.rint((pixels.transpose(1, 2, 3, 0) + 1) * 127.5), 0, 255).astype(np.uint8)

    def save(self, folder: Path) -> None:
        self.description.save(folder)

    def _encode_pass(self, frames: np.ndarray) -> np.ndarray:
        import torch

        with _exact():
            pixels = torch.from_numpy(np.ascontiguousarray(frames)).to(self._device).to(self._dtype) / 127.5 - 1
            latents = self._network.encode(pixels.permute(3, 0, 1, 2)[None])
            return latents[0].swapaxes(0, 1).float().cpu().numpy()

    def _check_causality(self) -> None:
        """Frames that change must leave every latent before them as it was, and latents must have the promised shape."""
        step, name = self.stride[0], self.description.path
        frames = self._noise(1 + 2 * step)
        before = self._encode_pass(frames)
        promised = (3, self.channels, *(size // stride for size, stride in zip(frames.shape[1:3], self.stride[1:], strict=True)))
        if before.shape != promised:
            raise UserError(f"{name}: {len(frames)} frames give latents {before.shape}, not {promised}: check data.stride, latent_channels")
        for kept in (1, 2):
            changed = frames.copy()
            changed[1 + (kept - 1) * step :] = 255 - changed[1 + (kept - 1) * step :]
            after = self._encode_pass(changed)
            if not self._agree(after[:kept], before[:kept]) or self._agree(after[kept:], before[kept:]):
                raise UserError(f"{name} is not a causal tokenizer of stride {step}: later frames change earlier latents, or nothing")

    def _find_overlap(self) -> int:
        """The fewest latent frames that a pass must repeat for all that follow to be those of a single pass.

        Where the network no longer sees where it began, nothing but rounding differs: what differs more still sees it.
        """
        step = self.stride[0]
        frames = self._noise(1 + TEST_LATENTS * step)
        whole, later = self._encode_pass(frames)[1:], self._encode_pass(frames[step:])
        differences = np.abs(whole - later).max(axis=(1, 2, 3)) / np.abs(whole).max()
        rounding = float(differences[-TEST_LATENTS // 4 :].max())
        if rounding > TOLERANCE[self.description.dtype]:
            raise UserError(f"{self.description.path} looks back without a limit: it cannot encode in passes, remove data.tokenizer_frames")
        return 2 + int(np.flatnonzero(differences > max(4 * rounding, 1e-7)).max(initial=0))

    def _noise(self, count: int) -> np.ndarray:
        generator = keyed_generator("tokenizer self-test")
        return generator.integers(0, 256, (count, 2 * self.stride[1], 2 * self.stride[2], 3), dtype=np.uint8)

    def _agree(self, one: np.ndarray, other: np.ndarray) -> bool:
        return float(np.abs(one - other).max()) <= TOLERANCE[self.description.dtype] * float(np.abs(other).max())


def passes(count: int, step: int, limit: int, overlap: int) -> Iterator[tuple[int, slice, int]]:
    """How `count` latent frames are made in passes of at most `limit` frames: (first new latent, frames, latents to drop).

    A pass begins with the last frame of a group, which the network takes for a first frame: with it, `overlap` latents
    are made again and dropped. Raises UserError when nothing new would fit.
    """
    fitting = 1 + (limit - 1) // step  # latents in a pass
    if fitting <= overlap:
        raise UserError(f"data.tokenizer_frames={limit}: this tokenizer needs at least {1 + overlap * step} frames per pass")
    yield 0, slice(0, 1 + (fitting - 1) * step), 0
    for first in range(fitting, count, fitting - overlap):
        begin = (first - overlap) * step
        stop = min(first + fitting - overlap, count)
        yield first, slice(begin, 1 + (stop - 1) * step), overlap


@contextmanager
def _exact() -> Iterator[None]:
    """Inference with the same kernels every time."""
    import torch

    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield
