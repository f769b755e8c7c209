"""The run's samples: held-out first frames continued by the averaged weights of the last commit, and pictures of what was encoded. A seat
forks this after the last stage."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from data_pipeline.buckets import Bucket, latent_shape
from data_pipeline.loader import Dataset, open_dataset
from data_pipeline.order import keyed_generator
from data_pipeline.write_video import write_mp4
from model.sampling import generate
from model.videomar import VideoMAR
from trainer import events
from trainer.checkpoint import commit as commits
from trainer.config import RunConfig, Stage
from trainer.inspection import encoded
from trainer.inspection.evaluation.measures import flow, is_dynamic
from trainer.inspection.sheet import Row, contact_sheet
from trainer.inspection.trained import averaged_model, sampling_config

LOOKED_AT = 64  # clips of which some are shown


@dataclass(frozen=True)
class Samples:
    """Held-out clips and what the model made of their first frame; videos are uint8 [F, H, W, 3]."""

    captions: list[str]
    truth: list[np.ndarray]
    generated: list[np.ndarray]
    given: int  # video frames


def run(payload: dict[str, Any], report: Callable[[dict[str, Any]], None], listener: socket.socket | None) -> None:
    """The seat's target: samples, contact sheet and samples.json of the last stage. payload: config, run, dataset, commit, threads."""
    started = perf_counter()
    config, run_folder = RunConfig.model_validate(payload["config"]), Path(payload["run"])
    torch.set_num_threads(min(payload["threads"], os.cpu_count() or 1))
    dataset, commit = open_dataset(payload["dataset"], config.data.shard_cache()), commits.chosen_commit(Path(payload["commit"]))
    samples = sample(averaged_model(config, dataset, commit), config, dataset, config.curriculum.stages[-1])
    folder = run_folder / "samples" / commit.name
    for number, (truth, generated) in enumerate(zip(samples.truth, samples.generated, strict=True)):
        write_mp4(folder / f"{number:02d}.mp4", np.concatenate([truth, generated], axis=2), config.data.fps)
    rows = [Row(*row, samples.given) for row in zip(samples.captions, samples.truth, samples.generated, strict=True)]
    contact_sheet(rows, folder / "contact-sheet.png")
    show_encoded(run_folder, config, dataset)
    summary = {"folder": str(folder), "clips": len(rows), "seconds": perf_counter() - started, **figures(samples)}
    (folder / "samples.json").write_text(json.dumps(summary | {"captions": samples.captions}, indent=1) + "\n")
    events.record(run_folder, "samples", step=commit.state.step, **summary)
    report({"kind": "samples", **summary})


def show_encoded(run: Path, config: RunConfig, dataset: Dataset) -> None:
    """Pictures of some clips that the last stage trains on, of as many sources as the first ones of an epoch have."""
    stage = config.curriculum.stages[-1]
    clips = dataset.split(Bucket(stage.frames, stage.height, stage.width).id, "train", config.seed)
    keys = [clips.sample_key(position) for position in range(min(LOOKED_AT, len(clips)))]
    encoded.write(run, dataset, clips, spread_over_sources(keys, encoded.SHOWN))


def sample(model: VideoMAR, config: RunConfig, dataset: Dataset, stage: Stage) -> Samples:
    """Continue the first latent frame of held-out clips (of the training set where nothing is held out), one clip per source first."""
    bucket = Bucket(stage.frames, stage.height, stage.width)
    split = "held_out" if dataset.manifest.clips(bucket.id, "held_out") else "train"
    data = dataset.split(bucket.id, split, config.seed)
    positions = spread_over_sources([data.sample_key(position) for position in range(len(data))], config.sample.videos)
    batch, frames = data.fetch(positions), latent_shape(bucket, dataset.manifest.spec.stride)[0]
    latents, text = torch.from_numpy(batch.latents), torch.from_numpy(batch.text)
    sampling = sampling_config(config)
    rngs = [keyed_generator(config.seed, "sample", key) for key in batch.keys]
    generated = generate(model, latents[:, :1], text, torch.from_numpy(batch.text_length), frames, sampling, rngs)
    return Samples(
        captions=[data.caption(position) for position in positions],
        truth=[dataset.decode(video) for video in batch.latents],
        generated=[dataset.decode(video) for video in generated.numpy()],
        given=1,
    )


def spread_over_sources(keys: list[str], count: int) -> list[int]:
    """Up to `count` positions whose keys ("<source>-<clip>") come from as many sources as possible, in order."""
    rounds: dict[str, int] = {}
    ranked = []
    for position, key in enumerate(keys):
        source = key.rpartition("-")[0]
        ranked.append((rounds.get(source, 0), position))
        rounds[source] = rounds.get(source, 0) + 1
    return [position for _, position in sorted(ranked)[:count]]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of uint8 arrays; 99 for equal ones."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return 99.0 if error == 0 else float(10 * np.log10(255.0**2 / error))


def figures(samples: Samples) -> dict[str, float]:
    """What the samples are worth: their PSNR, and the share of them that move, by VBench's rule, beside the truth's."""
    dynamic, truth = ([is_dynamic(flow(video)) for video in videos] for videos in (samples.generated, samples.truth))
    return {**psnr_table(samples), "dynamic_degree": float(np.mean(dynamic)), "dynamic_degree_truth": float(np.mean(truth))}


def psnr_table(samples: Samples) -> dict[str, float]:
    """Mean PSNR over the clips of the generated frames, and of the last given frame repeated, both against the decoded truth."""
    given = samples.given
    own = [psnr(truth[given:], video[given:]) for truth, video in zip(samples.truth, samples.generated, strict=True)]
    copied = [psnr(truth[given:], np.broadcast_to(truth[given - 1], truth[given:].shape)) for truth in samples.truth]
    return {"psnr": float(np.mean(own)), "psnr_copy_last_frame": float(np.mean(copied))}
