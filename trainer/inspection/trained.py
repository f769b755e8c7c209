"""A trained model and all it takes to use it: opened from a run's folder, from one of its commits or from an exported folder.

Called by the commands that look at a model (sample, evaluate, export). Imports neither Ray nor DeepSpeed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.buckets import Bucket
from data_pipeline.errors import UserError
from data_pipeline.loader import Dataset, open_dataset
from data_pipeline.manifest import LatentStatistics, Manifest
from data_pipeline.spec import EncodeSpec
from model import export
from model.sampling import SamplingConfig
from model.videomar import VideoMAR
from trainer import config as configs
from trainer.checkpoint import commit as commits
from trainer.checkpoint import store
from trainer.config import RunConfig
from trainer.events import read_events
from trainer.initial import initial_model, merged
from trainer.inspection.codec import Codec, codec_of, open_codec
from trainer.sizing import model_of

FORMAT = 1
FILE, CODEC_FOLDER = "videomar.json", "tokenizer"  # of an exported folder, beside model.export's


@dataclass(frozen=True)
class Training:
    """Where a model comes from, while its run is there."""

    run: Path
    config: RunConfig
    dataset: Dataset
    commit: commits.Commit


@dataclass(frozen=True)
class Trained:
    """`buckets` are the shapes it was trained on, the last stage's own at the end; `training` is None for an exported one."""

    model: VideoMAR
    codec: Codec
    sampling: SamplingConfig
    buckets: tuple[Bucket, ...]
    dataset: str  # id
    training: Training | None = None

    @property
    def fps(self) -> float:
        """Video frames per second."""
        return self.codec.spec.fps


def open_trained(path: str | Path) -> Trained:
    """A run's newest commit, a commit's folder or an exported one. Raises UserError naming what is not there or does not fit."""
    folder = Path(path)
    if (folder / "config.json").is_file():
        return open_exported(folder)
    found = open_training(folder)
    config, dataset = found.config, found.dataset
    model = averaged_model(config, dataset, found.commit)
    return Trained(model, codec_of(dataset), sampling_config(config), trained_buckets(config, dataset.manifest), dataset.id, found)


def open_training(folder: Path) -> Training:
    """A run's folder (its newest commit), a step's or a commit's."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: give a run's folder, a checkpoint's or an exported one")
    is_run = (folder / "config.yaml").is_file()
    tried = (
        commits.commits(folder) if is_run else [commits.read_commit(place) for place in (folder, *sorted(folder.iterdir(), reverse=True))]
    )
    commit = next((found for found in tried if found), None)
    if commit is None:
        problem = "has no commit yet: train first" if is_run else "is no run's folder, no checkpoint and no exported model"
        raise UserError(f"{folder} {problem}")
    run = folder if is_run else commit.folder.parents[2]
    if not (run / "config.yaml").is_file():
        raise UserError(f"{commit.folder} belongs to no run: there is no {run / 'config.yaml'}")
    config, dataset = configs.saved(run), dataset_of(run, commit)
    if commit.dataset != dataset.origin:
        raise UserError(f"{commit.folder} was trained on another data set than {dataset.folder} now is, so on another tokenizer's latents")
    return Training(run, config, dataset, commit)


def dataset_of(run: Path, commit: commits.Commit) -> Dataset:
    """The data set that a commit was trained on, else the one its run was last started on; one that was moved together with its run is
    found beside it."""
    told = [event for event in reversed(read_events(run)) if "data_folder" in event]
    told.sort(key=lambda event: event.get("dataset") != commit.dataset)
    named = next((Path(event["data_folder"]) for event in told), None)
    if named is None:
        raise UserError(f"{run} does not tell its data set: its events.jsonl has no start")
    places = [named, run.parent / "datasets" / named.name]
    return open_dataset(next((place for place in places if place.is_dir()), named))


def averaged_model(config: RunConfig, dataset: Dataset, commit: commits.Commit) -> VideoMAR:
    """A model of its own with the commit's moving average, adapters merged; training's weights are not touched."""
    model = initial_model(config, model_of(config, dataset.manifest.spec), resumed=True)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        model.load_state_dict(store.load_tensors(commit.folder, "ema", shapes), strict=False)
    except ValueError as error:
        raise UserError(f"{error}, or of another version of this code") from None
    return merged(model).eval()


def sampling_config(config: RunConfig) -> SamplingConfig:
    """How a recipe samples."""
    wishes = config.sample
    told = {"fps": config.data.fps} if "fps" in config.train.conditions else {}
    return SamplingConfig(
        iterations=wishes.iterations,
        head_steps=wishes.head_steps,
        guidance=wishes.guidance,
        temperature=wishes.temperature,
        sink=wishes.sink,
        window=wishes.window,
        context_noise=wishes.context_noise,
        context_masked=wishes.context_masked,
        conditions={**told, **wishes.conditions},
    )


def trained_buckets(config: RunConfig, manifest: Manifest) -> tuple[Bucket, ...]:
    """Every shape of the curriculum that the data set has once, in its order; a stage's own after those mixed into it."""
    shapes = [Bucket(part.frames, part.height, part.width) for stage in config.curriculum.stages for part in (*stage.mix, stage)]
    return tuple(dict.fromkeys(bucket for bucket in reversed(shapes) if bucket.id in manifest.buckets))[::-1]


def description(trained: Trained) -> dict[str, Any]:
    """videomar.json: what sampling needs beside weights and tokenizer."""
    told = ("iterations", "head_steps", "guidance", "temperature", "sink", "window", "context_noise", "context_masked", "conditions")
    return {
        "format": FORMAT,
        "dataset": trained.dataset,
        "spec": trained.codec.spec.to_json(),
        "tokenizer": trained.codec.tokenizer.fingerprint,
        "text": trained.codec.text.fingerprint,
        "statistics": asdict(trained.codec.statistics),
        "buckets": [bucket.id for bucket in trained.buckets],
        "sampling": {name: getattr(trained.sampling, name) for name in told},
    }


def open_exported(folder: Path) -> Trained:
    """The model that the export command wrote into a folder."""
    path = folder / FILE
    try:
        value = json.loads(path.read_text())
        known = value["format"] == FORMAT
        spec, statistics = EncodeSpec.from_json(value["spec"]), LatentStatistics(**tupled(value["statistics"]))
    except FileNotFoundError:
        raise UserError(f"{folder} holds weights but no {FILE}: export it with the export command, which adds the tokenizer") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} does not describe an exported model ({error}): export it again") from None
    if not known:
        raise UserError(f"{path} has format {value['format']}, this version reads {FORMAT}: export it again")
    codec = open_codec(folder / CODEC_FOLDER, spec, statistics, value["tokenizer"], value["text"])
    try:
        model = export.load(folder)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from None
    if model.config.latent_channels != codec.tokenizer.channels:
        raise UserError(
            f"{folder}: the model reads {model.config.latent_channels} latent channels, its tokenizer makes {codec.tokenizer.channels}"
        )
    return Trained(model, codec, SamplingConfig(**value["sampling"]), tuple(map(Bucket.parse, value["buckets"])), value["dataset"])


def tupled(statistics: dict[str, Sequence[Sequence[float]]]) -> dict[str, tuple[tuple[float, ...], ...]]:
    """JSON's lists as the tuples they were."""
    return {name: tuple(map(tuple, rows)) for name, rows in statistics.items()}
