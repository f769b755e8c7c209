"""One video, continued by a trained model and handed on frame by frame as it comes. Used by the commands sample and evaluate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.errors import UserError
from data_pipeline.order import keyed_generator
from model.sampling import SamplingConfig, generate
from trainer.inspection.trained import Trained

Watch = Callable[[np.ndarray], None]


class RecordedOrders(np.random.Generator):
    """A generator that also remembers the reveal orders that were drawn from it."""

    def __init__(self, bit_generator: Any) -> None:
        super().__init__(bit_generator)
        self.orders: list[np.ndarray] = []

    def permutation(self, *given: Any, **named: Any) -> Any:
        order = super().permutation(*given, **named)
        self.orders.append(np.asarray(order))
        return order


def continued(
    trained: Trained, given: np.ndarray, text: str, frames: int, config: SamplingConfig, seed: int, watch: Watch
) -> tuple[np.ndarray, list[np.ndarray]]:
    """(latents [T, h, w, C], the reveal order of every unit that was drawn) of a video of `frames` latent frames.

    given: uint8 frames [F, H, W, 3], none of them (F = 0) to begin from the text alone. `watch` gets the decoded frames, uint8
    [f, H, W, 3], of every latent frame, the given ones' first. The result depends on the arguments and the machine alone.
    Raises UserError for wishes that the model cannot fulfil.
    """
    device = trained.model.null_text.device
    start = torch.from_numpy(trained.codec.encode(given) if len(given) else blank(trained, given.shape[1:3])).to(device)
    vectors, lengths = trained.codec.encode_text([text])
    rng = RecordedOrders(keyed_generator("sample command", seed).bit_generator)
    decode = Decoded(trained, watch)
    if len(start):
        decode.add(start)
    try:
        latents = generate(
            trained.model,
            start[None],
            torch.from_numpy(vectors).to(device),
            torch.from_numpy(lengths).to(device),
            frames,
            config,
            [rng],
            on_frame=lambda _, latent_BHWC: decode.add(latent_BHWC),
        )
    except ValueError as error:
        raise UserError(f"the model cannot sample like this: {error}") from None
    return latents[0].cpu().numpy(), rng.orders


def blank(trained: Trained, size: tuple[int, int]) -> np.ndarray:
    """No latent frame, [0, h, w, C], of videos of this size (H, W). Raises UserError for a model that never learned to make frame 0."""
    if all(bucket.frames > 1 for bucket in trained.buckets):
        raise UserError(
            "the model was not trained to begin from text alone, no stage of it mixed stills in: give --image or --video, or train with "
            "curriculum.stages.0.mix=[{frames: 1, height: ..., width: ..., share: 0.2}]"
        )
    _, down, across = trained.codec.tokenizer.stride
    return np.zeros((0, size[0] // down, size[1] // across, trained.codec.tokenizer.channels), np.float32)


class Decoded:
    """Latent frames in, video frames out as soon as they are known: a causal tokenizer's later latents change no earlier frame."""

    def __init__(self, trained: Trained, watch: Watch) -> None:
        self._trained, self._watch, self._shown = trained, watch, 0
        self._latents: list[np.ndarray] = []

    def add(self, latents_THWC: Tensor) -> None:
        """The next latent frames of the video."""
        self._latents += list(latents_THWC.cpu().numpy())
        video = self._trained.codec.decode(np.stack(self._latents))
        self._watch(video[self._shown :])
        self._shown = len(video)
