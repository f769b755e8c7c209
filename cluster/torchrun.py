"""`train` without Ray: torchrun, on Slurm or on one machine, has started a process per device, and these go through all stages together.

    torchrun --nproc-per-node 4 trainer/main.py train cluster.launcher=torchrun parallel.tp=2 run.root=/shared/runs

Called by controller.py. A process that dies ends them all; torchrun's --max-restarts, or the same command, goes on from the last commit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

from cluster import dataset as datasets
from cluster import run_folder, summary
from cluster.checks import check_initial, check_samples, check_stages
from cluster.encode import Progress
from cluster.progress import Terminal, TrainingLine, preflight_line
from data_pipeline.chunks import Chunk
from data_pipeline.encode import encode_chunk
from data_pipeline.errors import UserError
from data_pipeline.loader import tokenizer_at
from data_pipeline.records import ChunkRecord
from data_pipeline.spec import EncodeSpec
from data_pipeline.storage import Location
from data_pipeline.text import load_text
from trainer import events, lease, weights
from trainer.checkpoint.commit import check_ids, resume_point
from trainer.config import RunConfig, recipe_hash
from trainer.curriculum import RunState
from trainer.instruments import RunInstruments
from trainer.sinks import published
from trainer.sizing import latents_of

PATIENCE = timedelta(days=2)  # of the other ranks while rank 0 encodes the videos


@dataclass(frozen=True)
class World:
    """What torchrun tells each of its processes, and the store through which rank 0 tells the others what is next."""

    rank: int
    size: int
    local_rank: int
    store: Any

    def tell(self, key: str, make: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
        """What make() gives on rank 0, on every rank. If it raises there, the others get None."""
        if self.rank:
            self.store.wait([key], PATIENCE)
            return json.loads(self.store.get(key))
        made = None
        try:
            made = make()
        finally:
            self.store.set(key, json.dumps(made))
        return made


def join(environment: dict[str, str]) -> World:
    """Raises UserError when torchrun has not started this process."""
    import torch.distributed as dist

    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if missing:
        raise UserError(f"cluster.launcher=torchrun, but {missing[0]} is not set: start with torchrun --nproc-per-node N trainer/main.py")
    rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    serves = rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = dist.TCPStore(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), size, serves, wait_for_workers=False)
    attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "0")  # the store outlives the processes
    return World(rank, size, int(environment.get("LOCAL_RANK", "0")), dist.PrefixStore(f"videomar/{attempt}", store))


def command(config: RunConfig, environment: dict[str, str]) -> int:
    """All stages, then the samples and the report, which are rank 0's."""
    world, terminal = join(environment), Terminal()
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"workers": world.size})})
    found = world.tell("run", lambda: prepare(config, terminal))
    if found is None:
        return 2  # rank 0 says why
    folder, line = Path(found["run"]), TrainingLine(config.curriculum.stages)
    with published(config, folder, terminal.say) if world.rank == 0 else nullcontext() as instruments:
        for number in count():
            plan = world.tell(f"generation {number}", lambda: next_generation(config, folder, found))
            if plan is None:
                break
            train_stage(config, world, found | plan, terminal, line, instruments)
        if instruments:
            show(config, found, terminal, instruments)
    return 0


def prepare(config: RunConfig, terminal: Terminal) -> dict[str, Any]:
    """Everything that one process does for all: refuse what cannot be, encode the videos if needed, take the run's folder."""
    run_folder.check(config, inside_job=False)
    run_folder.check_free(config.run_folder)
    check_stages(config)
    matched = check_initial(config, datasets.encode_spec(config))
    prepared = {}
    for latents, job in datasets.find_all(config).items():
        dataset, reused = datasets.prepare(job, 1, terminal.encoding, encode_here)
        for text in summary.dataset_lines(job, dataset, reused):
            terminal.say(text)
        check_samples([stage for stage in config.curriculum.stages if latents_of(config, stage) == latents], dataset.manifest)
        prepared[latents] = dataset
    run = run_folder.take(config)[0]
    run_folder.keep_config(config)
    if matched:
        for text in weights.summary(matched, config.train.init):
            terminal.say(text)
        events.record(run, "initial", **vars(config.train.init), **vars(matched))
    used = [prepared[latents_of(config, stage)] for stage in config.curriculum.stages]
    return {"run": str(run), "datasets": [str(dataset.folder) for dataset in used], "origins": [dataset.origin for dataset in used]}


def encode_here(
    chunks: Sequence[Chunk],
    spec: EncodeSpec,
    tokenizer_folder: Location,
    folder: Location,
    workers: int | None,
    on_progress: Callable[[Progress], None],
) -> list[ChunkRecord]:
    """cluster.encode.encode_dataset in this process, one chunk after the other."""
    tokenizer, text = tokenizer_at(tokenizer_folder), load_text(tokenizer_folder, spec)
    return [encode_chunk(chunk, spec, tokenizer, text, folder).brief() for chunk in chunks]


def next_generation(config: RunConfig, folder: Path, prepared: dict[str, Any]) -> dict[str, Any] | None:
    """The next stage's generation: its number, its data set, the commit it starts from and the stage's steps so far; None when all are
    done."""
    found = resume_point(folder).commit
    if found:
        check_ids(found, prepared["origins"], recipe_hash(config))
    state = found.state if found else RunState()
    if state.stage == len(config.curriculum.stages):
        return None
    number = lease.draw(folder)
    events.record(folder, "generation", generation=number, world=config.cluster.workers, target="torchrun")
    commit, dataset = str(found.folder) if found else None, prepared["datasets"][state.stage]
    return {"generation": number, "commit": commit, "dataset": dataset, "steps": state.stage_step}


def train_stage(
    config: RunConfig, world: World, found: dict[str, Any], terminal: Terminal, line: TrainingLine, instruments: RunInstruments | None
) -> None:
    """One stage on this rank; its end, promotion, is the same on all. Rank 0 tells of it."""
    import torch.distributed as dist

    from trainer import process

    steps = found["steps"]
    if instruments:
        instruments.generation(found["generation"], world.size, "training")

    def report(message: dict[str, Any]) -> None:
        nonlocal steps
        steps += message["kind"] == "step"
        if message["kind"] == "step":
            terminal.show(line.text(message, steps))
        elif message.get("event") == "preflight":
            terminal.say(preflight_line(message))
        if instruments:
            instruments.message(message, steps)

    group = {"rank": world.rank, "world": world.size, "local_rank": world.local_rank, "threads": config.cluster.cpus_per_worker}
    store = dist.PrefixStore(f"generation/{found['generation']}", world.store)
    process.run({"config": config.model_dump(mode="json"), **group, **found, "store": store}, report, None)


def show(config: RunConfig, found: dict[str, Any], terminal: Terminal, instruments: RunInstruments) -> None:
    """Samples and report of the finished run."""
    from trainer.inspection import report, showcase

    folder = Path(found["run"])
    commit = resume_point(folder).commit
    assert commit is not None, "every stage ends with a commit"
    messages: list[dict[str, Any]] = []
    asked = {"config": config.model_dump(mode="json"), "commit": str(commit.folder), "threads": config.cluster.cpus_per_worker}
    asked["dataset"] = found["datasets"][-1]
    showcase.run(found | asked, messages.append, None)
    instruments.message(messages[-1], 0)
    events.record(folder, "finish", step=commit.state.step)
    report.write(folder)
    for text in summary.run_lines(folder):
        terminal.say(text)
    terminal.end()
