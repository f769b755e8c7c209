"""One rank of one generation: join the process group, build the engine, load the last commit, train one stage, leave.

cluster/ forks this from a warm seat; whatever ends it ends the generation, and the next one starts from the last commit.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist

from data_pipeline.buckets import Bucket, latent_shape
from data_pipeline.loader import Dataset, open_dataset
from model.config import ModelConfig, named_size
from model.videomar import VideoMAR
from trainer.batches import Draws, Shape, supervision_of
from trainer.checkpoint import commit as commits
from trainer.checkpoint import store
from trainer.config import RunConfig
from trainer.curriculum import RunState, Stage
from trainer.engine import Engine
from trainer.journal import Journal, Report
from trainer.loop import StageTask, run_stage
from trainer.micro_batches import limits
from trainer.parallel.apply import parallelise
from trainer.parallel.mesh import build_mesh
from trainer.parallel.places import check_divisible, sequence_lengths
from trainer.planner import Layout, global_batch, plan_layout, usable
from trainer.preflight import Trial, preflight, smaller_next_time


def run(payload: dict[str, Any], report: Report, listener: socket.socket | None) -> None:
    """The seat's target. payload: config, run, dataset, commit (a folder or None), rank, world, host, port, generation, threads."""
    started = perf_counter()
    config, run_folder = RunConfig.model_validate(payload["config"]), Path(payload["run"])
    torch.set_num_threads(payload["threads"])
    device = join_group(payload, listener)
    joined = perf_counter()
    dataset = open_dataset(Path(payload["dataset"]))
    found = commits.read_commit(Path(payload["commit"])) if payload["commit"] else None
    state = found.state if found else RunState()
    task = stage_task(config, dataset, state, payload, device)
    mesh, model = build_mesh(task.layout, device.type), initial_model(config, task.model)
    parallelise(model, mesh, config.train.checkpointing, config.train.compile, config.parallel.precision, device)
    engine = Engine(model, config.train, config.parallel, mesh)
    if found:
        store.load_fragments(found.folder, engine.named_fragments())
        engine.set_optimizer_step(state.step - len(state.skipped))
        engine.publish_masters()
    journal = Journal(run_folder, task.generation, state.step, report) if task.rank == 0 else None
    if journal:
        seconds = {"group": joined - started, "build": perf_counter() - joined}
        layout = {"recomputed": journal.recomputed, **vars(task.layout), "seconds": seconds}
        journal.event("layout", stage=task.stage.name, step=state.step, **layout)
    save = partial(commit, run_folder, task, engine, dataset.id, config.train.keep_commits, journal)
    publish, event = (journal.step, journal.event) if journal else (silence, silence)
    if not found and config.train.preflight:
        flown, trials = perf_counter(), stage_trials(config, dataset, payload["world"], run_folder)
        figures = preflight(run_folder, engine, task.model, task.draws.supervision, trials)
        event("preflight", seconds=perf_counter() - flown, stages=figures)
    with smaller_next_time(run_folder, task.stage.name, task.layout, device):
        run_stage(task, engine, state, save, publish, event)
    dist.destroy_process_group()


def silence(*told: Any, **fields: Any) -> None:
    """What the other ranks tell: nothing."""


def join_group(payload: dict[str, Any], listener: socket.socket | None) -> torch.device:
    """Join the generation's process group; rank 0 serves the rendezvous on the socket its seat has opened. Returns this rank's device."""
    rank, world = payload["rank"], payload["world"]
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK="0")  # DeepSpeed reads them
    listening = {"master_listen_fd": listener.detach()} if listener else {}
    store = dist.TCPStore(payload["host"], payload["port"], world, rank == 0, timedelta(seconds=60), wait_for_workers=False, **listening)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=world)
    return device


def model_config(config: RunConfig, dataset: Dataset) -> ModelConfig:
    """The named size with what the data set dictates: latent channels, text width and length."""
    spec = dataset.manifest.spec
    changes = {"latent_channels": spec.channels, "text_width": spec.text_width, "text_tokens": spec.text_tokens, "head": config.train.head}
    return named_size(config.model.size, **changes, **({"heads": config.model.heads} if config.model.heads else {}))


def initial_model(config: RunConfig, model: ModelConfig) -> VideoMAR:
    """The same initial weights on every rank of every layout."""
    torch.manual_seed(config.seed)
    return VideoMAR(model)


def stage_trials(config: RunConfig, dataset: Dataset, world: int, run: Path) -> list[Trial]:
    """Every stage as this world, or what a stage can use of it, would run it."""
    trials = []
    for stage in config.curriculum.stages:
        frames, height, width = latent_shape(Bucket(stage.frames, stage.height, stage.width), dataset.manifest.spec.stride)
        samples = global_batch(stage.tokens_per_step, frames, height * width)
        used = usable(world, samples, config.parallel.tp * config.parallel.sp)
        trials.append(Trial(stage.name, stage_layout(config, stage, samples, used, run), frames, height, width))
    return trials


def stage_layout(config: RunConfig, stage: Stage, samples: int, world: int, run: Path) -> Layout:
    """The layout of a stage, with the micro-batch that the recipe and earlier generations' memory allow."""
    parallel, largest = config.parallel, min(config.train.micro_batch, limits(run).get(stage.name, config.train.micro_batch))
    return plan_layout(stage.name, samples, world, largest, parallel.zero, parallel.tp, parallel.sp, parallel.megatron_sp)


def stage_task(config: RunConfig, dataset: Dataset, state: RunState, payload: dict[str, Any], device: torch.device) -> StageTask:
    """The stage the state stands in, for this rank."""
    stage, model = config.curriculum.stages[state.stage], model_config(config, dataset)
    bucket = Bucket(stage.frames, stage.height, stage.width)
    frames, height, width = latent_shape(bucket, dataset.manifest.spec.stride)
    shape, samples = Shape(bucket.id, frames, height * width), global_batch(stage.tokens_per_step, frames, height * width)
    data, held_out = dataset.split(bucket.id, "train", config.seed), dataset.split(bucket.id, "held_out", config.seed)
    supervision = supervision_of(config.train)
    layout = stage_layout(config, stage, samples, payload["world"], Path(payload["run"]))
    lengths = sequence_lengths(config.train.supervision, config.train.masks_per_frame, shape.frames, shape.tokens)
    check_divisible(stage.name, layout, model.heads, lengths)
    return StageTask(
        stage=stage,
        train=config.train,
        layout=layout,
        rank=payload["rank"],
        generation=payload["generation"],
        samples=samples,
        device=device,
        model=model,
        data=data,
        draws=Draws(config.seed, shape, len(data), model, supervision),
        held_out=held_out,
        held_out_draws=Draws(config.seed, shape, len(held_out), model, supervision, "held_out"),
    )


def commit(
    run_folder: Path, task: StageTask, engine: Engine, dataset: str, keep: int, journal: Journal | None, state: RunState, reason: str
) -> float:
    """Write this rank's fragments; when all have, rank 0 makes them a commit. Returns the seconds it took."""
    started = perf_counter()
    folder = commits.commit_folder(run_folder, state.step, task.generation)
    folder.mkdir(parents=True, exist_ok=True)
    records: list[Any] = [None] * dist.get_world_size()
    own = None
    if engine.layout.zero or task.rank == 0:  # without ZeRO every rank holds the same
        path = folder / f"rank-{task.rank:05d}.safetensors"
        store.save_fragments(path, engine.named_fragments())
        own = commits.file_record(path)
    dist.all_gather_object(records, own)
    if journal:
        journal.sync()
        marker = commits.Commit(folder, state, task.generation, dataset, reason)
        commits.write_marker(folder, marker, [record for record in records if record], journal.check_owner)
        commits.prune(run_folder, keep)
        journal.event("commit", step=state.step, reason=reason, seconds=perf_counter() - started)
    return perf_counter() - started
