"""What the distributed tests run on every rank: the real trainer process on the tiny data set, with a model that has no blind spots."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
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
from trainer.checkpoint.commit import resume_point
from trainer.config import RunConfig
from trainer.engine import Engine
from trainer.metrics import read_metrics

SIZES["tiny"] = ModelConfig(width=32, depth=2, heads=2, head_width=24, head_depth=2)


def recipe(stages: list[dict[str, Any]], **train: Any) -> RunConfig:
    """A tiny recipe that tests can trust to notice mistakes: high learning rate, no warm-up, clipping always active."""
    settings = {
        "lr": 1e-3,
        "clip": 0.05,
        "ema": 0.9,
        "micro_batch": 20,
        "evaluate_every": 8,
        "evaluate_samples": 4,
        "commit_every": 100,
        **train,
    }
    parallel = {"zero": settings.pop("zero", 1)} | settings.pop("parallel", {})
    heads = settings.pop("heads", None)
    return RunConfig.model_validate(
        {
            "model": {"size": "tiny", "heads": heads},
            "train": settings,
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
    sleeping, found = process.initial_model, resume_point(run)
    payload = {"config": config.model_dump(), "run": str(run), "dataset": str(dataset), "commit": str(found.folder) if found else None}
    group = {"rank": rank, "world": world, "host": host, "port": port, "generation": lease.current(run), "threads": 1}

    def report(message: dict[str, Any]) -> None:
        if message["step"] == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    with patch.object(process, "initial_model", lambda *given: awake(sleeping(*given))), planted(plant, rank):
        process.run(payload | group, report, listener)
    return read_metrics(run)


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
    if name == "padding counts":
        return patch.object(trainer.loop, "weighted_losses", lambda engine, batch: engine.losses(batch.inputs))
    if name == "a sample is NaN":
        return patch.object(SampleSet, "fetch", fetch_with_a_nan)
    assert not name, f"unknown mistake {name}"
    return contextlib.nullcontext()


def fetch_with_a_nan(self: SampleSet, positions: Sequence[int]) -> Batch:
    """The samples, but the one at NAN_POSITION of the stream is full of NaN."""
    batch = FETCH(self, positions)
    batch.latents[[position == NAN_POSITION for position in positions]] = np.nan
    return batch


ORDER, BACKWARD, FETCH = trainer.batches.keyed_generator, Engine.backward, SampleSet.fetch
NAN_POSITION = 250
