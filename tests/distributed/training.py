"""What the distributed tests run on every rank: the real trainer process on the tiny data set, with a model that has no blind spots."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import model.supervision
import trainer.batches
import trainer.loop
from data_pipeline.loader import Batch, SampleSet
from model.config import SIZES, ModelConfig
from tests.model.conftest import awake
from trainer import lease, process
from trainer.checkpoint.commit import last_commit, resume_point
from trainer.config import RunConfig
from trainer.engine import Engine
from trainer.metrics import read_metrics
from trainer.sections import ParallelSection

SIZES["tiny"] = ModelConfig(width=32, depth=2, heads=2, head_width=24, head_depth=2)


def recipe(stages: list[dict[str, Any]], **train: Any) -> RunConfig:
    """A tiny recipe that tests can trust to notice mistakes: high learning rate, no warm-up, clipping always active."""
    settings = {
        "lr": 1e-3,
        "clip": 0.05,
        "conditions": ("fps", "motion"),
        "context_noise": 0.2,
        "ema": 0.9,
        "micro_batch": 20,
        "evaluate_every": 8,
        "evaluate_samples": 4,
        "commit_every": 100,
        **train,
    }
    parallel = (
        {"zero": 1} | settings.pop("parallel", {}) | {key: settings.pop(key) for key in ParallelSection.model_fields if key in settings}
    )
    sections = {name: settings.pop(name, {}) for name in ("guard", "profile")}
    heads = settings.pop("heads", None)
    return RunConfig.model_validate(
        {
            "model": {"size": "tiny", "heads": heads},
            "train": settings,
            **sections,
            "parallel": parallel,
            "curriculum": {"stages": stages},
            "run": {"name": "test"},
        }
    )


def stage(name: str, steps: int, frames: int = 9, samples: int = 39) -> dict[str, Any]:
    """A stage of the 32x32 buckets; 39 samples do not divide, so some micro-batches are padded."""
    tokens = samples * 16 * (1 + (frames - 1) // 4)
    return {"name": name, "frames": frames, "height": 32, "width": 32, "tokens_per_step": tokens, "promotion": {"max_steps": steps}}


def train(
    rank: int,
    world: int,
    host: str,
    port: int,
    listener: Any,
    config: RunConfig,
    run: Path,
    dataset: Path,
    plant: str = "",
    die_at: int = 0,
) -> list[dict[str, Any]]:
    """One generation of one stage on this rank; returns all lines of metrics.jsonl. `plant` names a mistake, `die_at` a step to die in."""
    torch.set_num_threads(1)
    group = {"rank": rank, "world": world, "host": host, "port": port}

    def report(message: dict[str, Any]) -> None:
        if message["kind"] == "step" and message["step"] == die_at:
            while last_commit(run) is None:  # being written beside the steps that follow it
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    with awake_model(), planted(plant, rank):
        process.run(payload(config, run, dataset) | group, report, listener)
    return read_metrics(run)


def payload(config: RunConfig, run: Path, dataset: Path) -> dict[str, Any]:
    """What the controller would send for the generation drawn last."""
    found = resume_point(run).commit
    where = {"run": str(run), "dataset": str(dataset), "commit": str(found.folder) if found else None}
    return {"config": config.model_dump(), "generation": lease.current(run), "threads": 1, **where}


def awake_model() -> Any:
    """Initial models without blind spots."""
    sleeping = process.initial_model
    return patch.object(process, "initial_model", lambda *given: awake(sleeping(*given)))


def planted(name: str, rank: int) -> Any:
    """A mistake, made on the ranks where it would be made: the parity test must notice each."""
    if name == "noise by rank":
        return patch.object(trainer.batches, "keyed_generator", lambda *key: ORDER(*key, rank))
    if name == "wrong mask on one rank":
        return patch.object(model.supervision, "skip_causal", (lambda query, key: key == query) if rank else model.supervision.skip_causal)
    if name == "gradient of each rank's own mean":
        return patch.object(Engine, "backward", lambda self, loss: BACKWARD(self, loss * (1.02 if rank else 0.98)))
    if name == "gradient scaled":
        return patch.object(Engine, "backward", lambda self, loss: BACKWARD(self, loss * 2))
    if name == "a gradient spikes":
        return patch.object(Engine, "backward", spiking_backward)
    if name == "padding counts":
        return patch.object(trainer.loop, "weighted_losses", lambda engine, batch: engine.losses(batch.inputs))
    if name in BAD_SAMPLES:
        return patch.object(SampleSet, "fetch", fetch_with_nan(BAD_SAMPLES[name]))
    assert not name, f"unknown mistake {name}"
    return contextlib.nullcontext()


def spiking_backward(self: Engine, loss: torch.Tensor) -> None:
    """The gradient is a thousand times too large in the step that NAN_POSITION belongs to."""
    BACKWARD(self, loss * (1e3 if self.deepspeed.global_steps == NAN_POSITION // 39 else 1))


def fetch_with_nan(bad: range) -> Callable[[SampleSet, Sequence[int]], Batch]:
    """The samples, but those at some positions of the stream are full of NaN."""

    def fetch(self: SampleSet, positions: Sequence[int]) -> Batch:
        batch = FETCH(self, positions)
        batch.latents[[position in bad for position in positions]] = np.nan
        return batch

    return fetch


ORDER, BACKWARD, FETCH = trainer.batches.keyed_generator, Engine.backward, SampleSet.fetch
NAN_POSITION = 250
BAD_SAMPLES = {
    "a sample is NaN": range(NAN_POSITION, NAN_POSITION + 1),
    "three steps are NaN": range(6 * 39, 9 * 39),
}
