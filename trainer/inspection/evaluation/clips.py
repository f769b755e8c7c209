"""Held-out clips continued by a model with several seeds, and what the measures say of them. Called by the evaluate command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data_pipeline.errors import UserError
from data_pipeline.loader import Dataset
from data_pipeline.order import keyed_generator
from model.sampling import SamplingConfig, generate
from trainer.inspection.evaluation import measures
from trainer.inspection.evaluation.intervals import nan_mean, of_repeat
from trainer.inspection.showcase import spread_over_sources
from trainer.inspection.trained import Trained

# name -> what of a generated clip [F, H, W, 3], the truth, the given frames and the frames per latent
MEASURES: dict[str, Callable[[np.ndarray, np.ndarray, int, int], float]] = {
    "psnr": lambda video, truth, given, step: float(measures.psnr_by_frame(video, truth)[given:].mean()),
    "ssim": lambda video, truth, given, step: float(measures.ssim_by_frame(video, truth)[given:].mean()),
    "moving_error": measures.moving_error,
    "dynamic_degree": lambda video, truth, given, step: float(measures.is_dynamic(measures.flow(video))),
    "flow": lambda video, truth, given, step: float(measures.flow(video).mean()),
    "flicker": lambda video, truth, given, step: measures.flicker(video, truth),
    "background_stability": lambda video, truth, given, step: measures.background_stability(video, truth, given),
}


@dataclass(frozen=True)
class HeldOut:
    """Held-out clips [N, ...] of the last stage's bucket: normalised latents, captions' vectors, decoded truth [N, F, H, W, 3].

    `given` latent frames, that is `shown` video frames, are given to the model; a latent frame is `step` video frames.
    """

    keys: tuple[str, ...]
    captions: tuple[str, ...]
    latents: np.ndarray
    text: np.ndarray
    text_length: np.ndarray
    truth: np.ndarray
    given: int
    shown: int
    step: int

    @property
    def copied(self) -> np.ndarray:
        """Every clip with its last given frame repeated to the end."""
        videos = self.truth.copy()
        videos[:, self.shown :] = self.truth[:, self.shown - 1 : self.shown]
        return videos


def held_out(trained: Trained, dataset: Dataset, clips: int, given: int) -> HeldOut:
    """Up to `clips` clips, from as many sources as possible. Raises UserError where there is none, or nothing is left to generate."""
    bucket = trained.buckets[-1]
    if bucket.id not in dataset.manifest.buckets or not dataset.manifest.clips(bucket.id, "held_out"):
        raise UserError(f"{dataset.folder} holds out no clip of {bucket.id}: evaluate on a data set that does (--data)")
    data, step = dataset.split(bucket.id, "held_out", 0), dataset.manifest.spec.stride[0]
    positions = spread_over_sources([data.sample_key(position) for position in range(len(data))], clips)
    batch = data.fetch(positions)
    if not 1 <= given < batch.latents.shape[1]:
        raise UserError(f"--given {given}: clips of {bucket.id} have {batch.latents.shape[1]} latent frames; give 1 to all but one")
    return HeldOut(
        keys=batch.keys,
        captions=tuple(data.caption(position) for position in positions),
        latents=batch.latents,
        text=batch.text,
        text_length=batch.text_length,
        truth=np.stack([dataset.decode(video) for video in batch.latents]),
        given=given,
        shown=1 + (given - 1) * step,
        step=step,
    )


def generated(trained: Trained, config: SamplingConfig, clips: HeldOut, seed: int) -> np.ndarray:
    """uint8 [N, F, H, W, 3]: every clip continued. The draws of a clip depend on the seed and its key alone, for any model."""
    device = trained.model.null_text.device
    latents, text, length = (torch.from_numpy(array).to(device) for array in (clips.latents, clips.text, clips.text_length))
    rngs = [keyed_generator("evaluate", seed, key) for key in clips.keys]
    try:
        made = generate(trained.model, latents[:, : clips.given], text, length, latents.shape[1], config, rngs)
    except ValueError as error:
        raise UserError(f"the model cannot sample like this: {error}") from None
    return np.stack([trained.codec.decode(video) for video in made.cpu().numpy()])


def measured(videos: np.ndarray, clips: HeldOut) -> dict[str, np.ndarray]:
    """{measure: [N]} of one set of videos."""
    pairs = list(zip(videos, clips.truth, strict=True))
    return {name: np.array([of(video, truth, clips.shown, clips.step) for video, truth in pairs]) for name, of in MEASURES.items()}


def curves(videos: np.ndarray, clips: HeldOut) -> dict[str, list[float]]:
    """PSNR and SSIM by generated frame, means over clips: how a model drifts."""
    kinds = {"psnr": measures.psnr_by_frame, "ssim": measures.ssim_by_frame}
    return {
        name: np.mean([of(video, truth)[clips.shown :] for video, truth in zip(videos, clips.truth, strict=True)], axis=0).tolist()
        for name, of in kinds.items()
    }


def summary(by_seed: Sequence[np.ndarray], clips: HeldOut) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(what is reported of a model's videos, one set per seed; {measure: [N]} means over seeds, for comparing and ranking)."""
    found = [measured(videos, clips) for videos in by_seed]
    per_seed = {name: [float(nan_mean(one[name], 0)) for one in found] for name in MEASURES}
    frames = [curves(videos, clips) for videos in by_seed]
    mean_video = np.rint(np.mean(np.stack(by_seed), axis=0, dtype=np.float64)).astype(np.uint8)
    errors = [measures.moving_error(video, truth, clips.shown, clips.step) for video, truth in zip(mean_video, clips.truth, strict=True)]
    reported = {
        "measures": {name: vars(of_repeat(values)) | {"by_seed": known(values)} for name, values in per_seed.items()},
        "moving_error_of_mean_sample": known([float(nan_mean(np.array(errors), 0))])[0],
        "curves": {name: np.mean([one[name] for one in frames], axis=0).tolist() for name in frames[0]},
    }
    return reported, {name: nan_mean(np.stack([one[name] for one in found]), 0) for name in MEASURES}


def known(values: Sequence[float]) -> list[float | None]:
    """JSON knows no NaN."""
    return [None if np.isnan(value) else float(value) for value in values]
