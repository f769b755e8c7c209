"""Models for the commands that look at one: an exported one with drawn weights, at once; and a run of the real training process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline import storage
from data_pipeline.buckets import Bucket
from data_pipeline.loader import open_dataset
from model import export
from model.config import ModelConfig
from model.sampling import SamplingConfig
from model.videomar import VideoMAR
from tests.model.conftest import awake
from trainer import config as configs
from trainer import events, lease
from trainer.inspection.codec import codec_of
from trainer.inspection.trained import CODEC_FOLDER, FILE, Trained, description


@pytest.fixture(scope="session")
def exported(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported folder whose model reads the tiny data set's latents and has drawn weights."""
    folder, dataset = tmp_path_factory.mktemp("exported") / "model", open_dataset(tiny_dataset)
    torch.manual_seed(0)
    shape = {"latent_channels": 4, "text_width": 16, "text_tokens": 8}
    model = awake(VideoMAR(ModelConfig(width=32, depth=2, heads=2, head_width=24, head_depth=2, **shape))).eval()
    sampling, buckets = SamplingConfig(iterations=3, head_steps=3), (Bucket(5, 32, 32), Bucket(9, 32, 32))
    trained = Trained(model, codec_of(dataset), sampling, buckets, dataset.id)
    export.save(model, folder)
    trained.codec.tokenizer.save(folder / CODEC_FOLDER)
    storage.write_json(folder / FILE, description(trained))
    return folder


@pytest.fixture(scope="session")
def tiny_run(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder as a job leaves it: config.yaml, events.jsonl, metrics.jsonl and commits."""
    from tests.distributed.harness import run_ranks  # they import DeepSpeed, which the other fixture can do without
    from tests.distributed.training import recipe, stage, train

    root = tmp_path_factory.mktemp("tiny-run")
    run, dataset = root / "runs" / "tiny", open_dataset(tiny_dataset)
    run.mkdir(parents=True)
    stages = [stage("short", 4, frames=5, samples=12), stage("longer", 4, samples=12)]
    config = recipe(stages, evaluate_every=2)
    section = config.sample.model_copy(update={"iterations": 3, "head_steps": 3})
    config = config.model_copy(update={"sample": section, "run": config.run.model_copy(update={"root": str(run.parent), "name": "tiny"})})
    (run / "config.yaml").write_text(configs.dump(config))
    sources = vars(dataset.manifest.sources)
    events.record(run, "start", dataset=dataset.id, data_folder=str(tiny_dataset), sources=sources, reused=False)
    for _ in stages:
        lease.draw(run)
        run_ranks(1, train, config, run, tiny_dataset)
    return run


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    """A picture larger than anything the tiny model was trained on, and not square."""
    y, x = np.mgrid[:90, :140]
    pixels = np.stack([x * 255 // 140, y * 255 // 90, (x + y) % 256], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"
