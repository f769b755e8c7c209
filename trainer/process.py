"""One rank of one generation: join the process group, build the engine, load the last commit, train one stage, leave.

cluster/ forks this from a warm seat; whatever ends it ends the generation, and the next one starts from the last commit.
"""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist

from data_pipeline.loader import Dataset, open_dataset
from model.config import ModelConfig
from trainer.batches import Draws, Shape, Source, disturbance_of, supervision_of
from trainer.checkpoint import commit as commits
from trainer.checkpoint import store
from trainer.config import RunConfig
from trainer.curriculum import RunState
from trainer.engine import Engine
from trainer.initial import initial_model
from trainer.journal import Journal, Report
from trainer.loop import StageTask, run_stage
from trainer.mixture import ingredients
from trainer.parallel.apply import parallelise
from trainer.parallel.mesh import build_mesh
from trainer.parallel.places import check_divisible, sequence_lengths
from trainer.planner import plan_layout
from trainer.sizing import model_of


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
    mesh, model = build_mesh(task.layout, device.type), initial_model(config, task.model, found is not None)
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
    return model_of(config, dataset.manifest.spec)


def stage_task(config: RunConfig, dataset: Dataset, state: RunState, payload: dict[str, Any], device: torch.device) -> StageTask:
    """The stage the state stands in, for this rank."""
    stage, model = config.curriculum.stages[state.stage], model_config(config, dataset)
    parts, supervision, train, parallel = (
        ingredients(stage, dataset.manifest.spec.stride),
        supervision_of(config.train),
        config.train,
        config.parallel,
    )
    sources = []
    for part in parts:
        degrees = (parallel.zero, parallel.tp, parallel.sp, parallel.megatron_sp)
        layout = plan_layout(stage.name, part.samples, payload["world"], train.micro_batch, *degrees)
        lengths = sequence_lengths(train.supervision, train.masks_per_frame, train.block, part.frames, part.tokens)
        check_divisible(stage.name, layout, model.heads, lengths)
        data = dataset.split(part.bucket, "train", config.seed)
        draws = Draws(config.seed, Shape(part.bucket, part.frames, part.tokens), len(data), model, supervision, disturbance_of(train))
        sources.append(Source(draws, data, part.samples, layout, part.weight))
    held_out = dataset.split(parts[0].bucket, "held_out", config.seed)
    return StageTask(
        stage=stage,
        train=train,
        layout=replace(sources[0].layout, accumulation=sum(source.layout.accumulation for source in sources)),
        rank=payload["rank"],
        generation=payload["generation"],
        device=device,
        model=model,
        sources=tuple(sources),
        held_out=held_out,
        held_out_draws=Draws(config.seed, sources[0].draws.shape, len(held_out), model, supervision, purpose="held_out"),
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
