"""One rank of one generation: join the process group, build the engine, load the last commit, train one stage, leave.

cluster/ forks this from a warm seat; whatever ends it ends the generation, and the next one starts from the last commit.
"""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist

from data_pipeline.epochs import Epochs
from data_pipeline.loader import Dataset, open_dataset
from model.config import ModelConfig
from trainer import events, guard
from trainer.allocator import keep_freed_memory
from trainer.batches import Draws, Shape, Source, disturbance_of, supervision_of
from trainer.checkpoint import commit as commits
from trainer.checkpoint import store
from trainer.checkpoint.keeper import Keeper
from trainer.checkpoint.saver import Gather, Saver
from trainer.config import RunConfig, recipe_hash
from trainer.curriculum import RunState, Stage
from trainer.engine import Engine
from trainer.epochs import Book, replayed
from trainer.heartbeat import Heartbeat
from trainer.initial import initial_model, reads_latents
from trainer.journal import Journal, Report, Silence
from trainer.leave import Leave
from trainer.loop import run_stage
from trainer.micro_batches import limits
from trainer.mixture import ingredients
from trainer.parallel.apply import parallelise
from trainer.parallel.mesh import build_mesh
from trainer.parallel.places import check_divisible, sequence_lengths
from trainer.planner import Layout, plan_layout, usable
from trainer.preflight import Trial, bus_bandwidth, preflight, smaller_next_time
from trainer.pulse import Pulse, Stopwatch
from trainer.sizing import latents_of, model_of, stream_of
from trainer.task import StageTask
from trainer.trace import StepTrace


def run(payload: dict[str, Any], report: Report, listener: socket.socket | None) -> None:
    """The seat's target. payload: config, run, dataset, commit (a folder or None), rank, world, host, port, generation, threads."""
    started, beat = perf_counter(), Heartbeat(report, Path(payload["run"]), payload["generation"], payload["rank"])
    beat.passed("forked")
    beat.enter("group")
    torch.set_num_threads(payload["threads"])
    keep_freed_memory()
    device = join_group(payload, listener)
    beat.passed("grouped")
    live(payload, report, beat, device, perf_counter() - started)
    dist.destroy_process_group()


def live(payload: dict[str, Any], report: Report, beat: Heartbeat, device: torch.device, joining: float) -> None:
    """A generation, once its process group is joined, which took `joining` seconds: from its commit to the end of the stage."""
    beat.enter("build")
    joined, config, run_folder = perf_counter(), RunConfig.model_validate(payload["config"]), Path(payload["run"])
    cache = config.data.shard_cache()
    dataset = open_dataset(payload["dataset"], cache)
    found = commits.chosen_commit(Path(payload["commit"])) if payload["commit"] else None
    state, earlier = starting_state(run_folder, found)
    task = stage_task(config, dataset, state, payload, device, earlier)
    mesh, model = build_mesh(task.layout, device.type), initial_model(config, task.model, found is not None)
    parallelise(model, mesh, config.train.checkpointing, config.train.compile, config.parallel.precision, device)
    engine = Engine(model, config.train, config.parallel, mesh)
    beat.passed("built")
    beat.enter("load")
    renewed: list[str] = []
    if found:
        renewed = load_commit(found, engine, dataset)
        engine.set_optimizer_step(state.step - len(state.skipped))
        engine.publish_masters()
    beat.passed("loaded")
    journal = Journal(run_folder, task.generation, state.step, report) if task.rank == 0 else None
    if journal:
        seconds = {"group": joining, "build": perf_counter() - joined}
        facts: dict[str, Any] = {"recomputed": journal.recomputed, "recomputed_seconds": journal.recomputed_seconds}
        facts |= vars(task.layout) | {"spec": dataset.manifest.spec.to_json()}
        journal.event("layout", stage=task.stage.name, step=state.step, **facts, seconds=seconds)
        if renewed:
            journal.event("tokenizer", stage=task.stage.name, step=state.step, dataset=dataset.origin, renewed=renewed)
    told: Journal | Silence | Pulse = journal or Silence()
    if not found and config.train.preflight:
        beat.enter("preflight")
        flown, trials = perf_counter(), stage_trials(config, dataset, payload["world"], run_folder)
        figures = preflight(run_folder, engine, task.model, supervision_of(config.train), trials)
        speed = bus_bandwidth(device)
        told.event("preflight", seconds=perf_counter() - flown, stages=figures, bus_bytes_per_second=speed)
    saver = Saver(engine.named_fragments(), task.rank, gather_over(dist.new_group(backend="gloo")))
    engine.before_update = saver.copied
    keeper = Keeper(run_folder, task.generation, dataset.origin, recipe_hash(config), config.train.keep_commits, saver, journal)
    if config.metrics.wanted:
        watch = Stopwatch(device)
        told = Pulse(told, model, device, task.rank, report, watch if engine.watch_reduction(watch.start, watch.stop) else None)
    leave = Leave(device)
    leave.listen()
    try:
        with smaller_next_time(run_folder, task.stage.name, task.layout, device):
            run_stage(task, engine, state, keeper, told, beat, StepTrace(config.profile.range, run_folder, task.rank, told), leave)
    finally:
        saver.close()
        cache.close()


def starting_state(run_folder: Path, found: commits.Commit | None) -> tuple[RunState, int]:
    """(where training goes on, how often it has gone back to there before): the commit, behind the data that was decided to be passed
    over. Rank 0 reads it for all."""
    told: list[Any] = [None, 0]
    if dist.get_rank() == 0:
        state, generation = (found.state, found.generation) if found else (RunState(), 0)
        happened = events.read_events(run_folder)
        back = guard.roll_backs(happened, state.step, generation)
        state = replace(state, epochs=replayed(state.epochs, happened))
        told = [state.moved(back[-1]["samples"]) if back else state, len(back)]
    dist.broadcast_object_list(told)
    return told[0], told[1]


def load_commit(found: commits.Commit, engine: Engine, dataset: Dataset) -> list[str]:
    """The commit's tensors into the engine's. Where it was trained on another tokenizer's latents, the parameters that read or make
    latents stay as they are at a run's beginning, with their moments and average; returns their names, by logical tensor."""
    fragments, names = engine.named_fragments(), sorted(filter(reads_latents, engine.shards))
    renewed = names if found.dataset != dataset.origin else []
    store.load_fragments(found.folder, [fragment for fragment in fragments if fragment.name not in renewed])
    return renewed


def gather_over(group: dist.ProcessGroup) -> Gather:
    """Objects of all ranks by rank, over a group of its own."""

    def gather(value: Any) -> list[Any]:
        gathered: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(gathered, value, group)
        return gathered

    return gather


def join_group(payload: dict[str, Any], listener: socket.socket | None) -> torch.device:
    """Join the generation's process group, in the payload's store if it brings one; else rank 0 serves the rendezvous on the socket
    that its seat has opened. Returns this rank's device: a seat sees one only."""
    rank, world, local = payload["rank"], payload["world"], payload.get("local_rank", 0)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(local))  # DeepSpeed reads them
    store = payload.get("store")
    if store is None:
        options = {"timeout": timedelta(seconds=60), "wait_for_workers": False}
        listening = {"master_listen_fd": listener.detach()} if listener else {}
        store = dist.TCPStore(payload["host"], payload["port"], world, rank == 0, **options, **listening)
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=world)
    return device


def model_config(config: RunConfig, dataset: Dataset) -> ModelConfig:
    """The named size with what the data set dictates: latent channels, text width and length."""
    return model_of(config, dataset.manifest.spec)


def stage_trials(config: RunConfig, dataset: Dataset, world: int, run: Path) -> list[Trial]:
    """Every bucket of every stage as this world, or what a stage can use of it, would run it."""
    trials, here = [], latents_of(config, config.curriculum.stages[0])
    for stage in config.curriculum.stages:
        latents = latents_of(config, stage)
        parts = ingredients(stage, dataset.manifest.spec.stride if latents == here else latents.stride)
        used = usable(world, [part.samples for part in parts], config.parallel.tp * config.parallel.sp)
        trials += [Trial(stage.name, stage_layout(config, stage, part.samples, used, run), part.frames, part.tokens) for part in parts]
    return trials


def stage_layout(config: RunConfig, stage: Stage, samples: int, world: int, run: Path) -> Layout:
    """The layout of a stage, with the micro-batch that the recipe and earlier generations' memory allow."""
    parallel, largest = config.parallel, min(config.train.micro_batch, limits(run).get(stage.name, config.train.micro_batch))
    return plan_layout(stage.name, samples, world, largest, parallel.zero, parallel.tp, parallel.sp, parallel.megatron_sp)


def stage_task(
    config: RunConfig, dataset: Dataset, state: RunState, payload: dict[str, Any], device: torch.device, roll_backs: int
) -> StageTask:
    """The stage the state stands in, for this rank."""
    stage, model = config.curriculum.stages[state.stage].at(state.stage_step), model_config(config, dataset)
    parts, supervision, train = ingredients(stage, dataset.manifest.spec.stride), supervision_of(config.train), config.train
    sources, book = [], Book(Path(payload["run"]), payload["generation"], dataset)
    for part in parts:
        layout = stage_layout(config, stage, part.samples, payload["world"], Path(payload["run"]))
        lengths = sequence_lengths(train.supervision, train.masks_per_frame, train.block, part.frames, part.tokens)
        check_divisible(stage.name, layout, model.heads, lengths)
        stream = stream_of(config, stage, part.bucket)
        data = dataset.split(part.bucket, "train", config.seed, state.epochs.get(stream, Epochs()))
        book.settle(stream, data, state.samples.get(stream, 0) + part.samples)
        draws = Draws(config.seed, Shape(stream, part.frames, part.tokens), data.epoch_of, model, supervision, disturbance_of(train))
        sources.append(Source(draws, data, part.samples, layout, part.weight))
    # What is held out when a bucket is first trained on stays the measure for as long as it is (but see StageTask.measured).
    first = sources[0].data.epochs.eras[0].generation
    held_out = dataset.at(first).split(parts[0].bucket, "held_out", config.seed)
    return StageTask(
        stage=stage,
        train=train,
        guard=config.guard,
        first_step=state.step,
        roll_backs=roll_backs,
        layout=replace(sources[0].layout, accumulation=sum(source.layout.accumulation for source in sources)),
        rank=payload["rank"],
        generation=payload["generation"],
        device=device,
        model=model,
        sources=tuple(sources),
        held_out=held_out,
        held_out_draws=Draws(config.seed, sources[0].draws.shape, held_out.epoch_of, model, supervision, purpose="held_out"),
        book=book,
    )
