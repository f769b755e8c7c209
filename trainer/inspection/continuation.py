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
    trained: Trained, given: np.ndarray | None, text: str, frames: int, config: SamplingConfig, seed: int, watch: Watch
) -> tuple[np.ndarray, list[np.ndarray]]:
    """(latents [T, h, w, C], the reveal order of every unit that was drawn) of a video of `frames` latent frames.

    given: uint8 frames [F, H, W, 3]. `watch` gets the decoded frames, uint8 [f, H, W, 3], of every latent frame, the given ones'
    first. The result depends on the arguments and the machine alone. Raises UserError for wishes that the model cannot fulfil.
    """
    device = trained.model.null_text.device
    start = torch.from_numpy(trained.codec.encode(given)).to(device)
    vectors, lengths = trained.codec.encode_text([text])
    rng = RecordedOrders(keyed_generator("sample command", seed).bit_generator)
    decode = Decoded(trained, watch)
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
