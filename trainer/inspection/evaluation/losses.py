"""Held-out loss of a model in detail: for every bucket it was trained on, by latent frame and by noise level, on fixed draws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from data_pipeline.buckets import Bucket, latent_shape
from data_pipeline.loader import Dataset
from data_pipeline.order import keyed_generator
from model.supervision import AllFrames
from trainer.batches import Draws, MicroBatch, Shape, micro_batch
from trainer.inspection.trained import Trained
from trainer.planner import Layout

LEVELS = 5
BATCH = 8


def losses_by_bucket(trained: Trained, dataset: Dataset, clips: int) -> dict[str, Any]:
    """{bucket: mean, by_frame, by_noise_level} for all buckets with held-out clips; a run's buckets are its stages'."""
    return {
        bucket.id: held_out_loss(trained, dataset, bucket, clips)
        for bucket in trained.buckets
        if bucket.id in dataset.manifest.buckets and dataset.manifest.clips(bucket.id, "held_out")
    }


@torch.no_grad()
def held_out_loss(trained: Trained, dataset: Dataset, bucket: Bucket, clips: int) -> dict[str, Any]:
    """Loss per supervised token: every frame after the first is judged from the clean frames before it, whatever the training did.

    by_noise_level: with every token at one and the same time of the head's process, from little to much noise.
    """
    frames, height, width = latent_shape(bucket, dataset.manifest.spec.stride)
    data = dataset.split(bucket.id, "held_out", 0)
    model, shape = trained.model, Shape(bucket.id, frames, height * width)
    draws = Draws(0, shape, data.epoch_of, model.config, AllFrames(model.config.block), purpose="evaluate")
    plan = draws.plan(range(min(clips, len(data))), Layout(dp=1, tp=1, sp=1, zero=0, micro_batch=BATCH, accumulation=1))
    batches = [micro_batch(plan, unit, draws, data, model.head) for unit in plan.units[0]]
    counts = np.array(draws.supervised_by_frame(plan))
    by_frame = loss_sums(trained, batches)
    times = noise_times(trained)
    by_level = [float(loss_sums(trained, [at_time(batch, time) for batch in batches]).sum() / counts.sum()) for time in times]
    return {
        "clips": len(plan.positions),
        "mean": float(by_frame.sum() / counts.sum()),
        "by_frame": [float(total / count) if count else None for total, count in zip(by_frame, counts, strict=True)],
        "by_noise_level": [{"time": float(time), "loss": loss} for time, loss in zip(times, by_level, strict=True)],
    }


def loss_sums(trained: Trained, batches: list[MicroBatch]) -> np.ndarray:
    """[T], summed over samples."""
    device = trained.model.null_text.device
    return sum((trained.model(batch.inputs.to(device)).double().cpu() * (batch.weights > 0)[:, None]).sum(0) for batch in batches).numpy()


def noise_times(trained: Trained) -> np.ndarray:
    """The middles of LEVELS equal shares of the times that the head draws in training."""
    drawn = np.sort(trained.model.head.draw(keyed_generator("noise levels"), 4096)[0].ravel())
    return drawn[((np.arange(LEVELS) + 0.5) / LEVELS * len(drawn)).astype(int)]


def at_time(batch: MicroBatch, time: np.generic) -> MicroBatch:
    """The batch with all its tokens at one time of the head's process; the noise stays."""
    times, noise = batch.inputs.head_draws
    return replace(batch, inputs=replace(batch.inputs, head_draws=(torch.full_like(times, time.item()), noise)))
