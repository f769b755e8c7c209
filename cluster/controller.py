"""The job from start to end: data, seats, one generation per stage (or per failure), samples, report. The `train` command.

A generation's end, whatever its reason, leads to the same three lines: draw the next number, start from the last commit, watch.
"""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster import dataset as datasets
from cluster import failures, generation, run_folder, session, summary, torchrun
from cluster.checks import check_initial, check_samples, check_stages
from cluster.encode import Progress
from cluster.progress import Terminal, TrainingLine
from cluster.seats import Seats, make_seats
from data_pipeline.loader import Dataset
from trainer import config as configs
from trainer import events, lease, weights
from trainer.checkpoint.commit import Commit, check_ids, resume_point
from trainer.checkpoint.files import is_sound
from trainer.config import RunConfig
from trainer.curriculum import RunState, Stage
from trainer.exporter import serving
from trainer.inspection import report
from trainer.instruments import RunInstruments
from trainer.meter import Meter
from trainer.micro_batches import limits
from trainer.mixture import ingredients
from trainer.planner import usable

TRAINER, SHOWCASE = "trainer.process:run", "trainer.inspection.showcase:run"
# What a trainer imports before its first step; the last two are DeepSpeed's and AdamW's own late imports, seconds each.
PRELOAD = [
    "torch.distributed",
    "trainer.process",
    "trainer.inspection.showcase",
    "torch._dynamo",
    "deepspeed.runtime.zero.muon.muon_optimizer",
]


def preload(config: RunConfig) -> list[str]:
    """What the seats of a run import ahead; PEFT and Megatron only where they are used."""
    used = {"peft": config.train.lora.rank > 0, "trainer.parallel.layers": config.parallel.tp > 1}
    return PRELOAD + [module for module, needed in used.items() if needed]


class RunFailed(Exception):
    """The run cannot go on by itself; says why and where to look."""


def command(arguments: list[str], environment: dict[str, str]) -> int:
    """`train`: refuse what can be refused before anything is started, then run to the end or to the reason why not."""
    config, terminal = weights.resolved(configs.load(arguments)), Terminal()
    if config.cluster.launcher == "torchrun":
        return torchrun.command(config, environment)
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in environment
    run_folder.check(config, inside_job)
    spec = datasets.encode_spec(config)
    check_stages(config, spec)
    matched = check_initial(config, spec)
    job = datasets.find(config, spec)
    address = config.cluster.address or environment.get("RAY_ADDRESS") or ("auto" if inside_job else None)
    try:
        train(config, job, matched, address, terminal)
    except RunFailed as failure:
        terminal.say(f"failed: {failure}")
        return 1
    finally:
        terminal.end()
    return 0


def train(config: RunConfig, job: datasets.EncodeJob, matched: weights.Match | None, address: str | None, terminal: Terminal) -> None:
    """The whole job. Seats warm up while the videos are encoded."""
    workers, cpus = config.cluster.workers, config.cluster.cpus_per_worker
    instruments = RunInstruments(Meter(str(config.run.name)), config.curriculum.stages)

    def on_progress(progress: Progress) -> None:
        terminal.encoding(progress)
        instruments.encoding(progress.done, progress.total, progress.clips)

    with serving(instruments.meter, config.metrics.host, config.metrics.port), session.connect(address, workers * cpus) as ray_session:
        seats = make_seats(workers, cpus, preload(config), threads=cpus, gpus_per_seat=config.cluster.gpus_per_worker)
        try:
            terminal.say(
                f"ray   {'started' if ray_session.private else 'joined'} in {ray_session.seconds:.1f} s, {workers} workers of {cpus} CPUs\n"
                f"data  {len(job.sources.sources)} videos in {job.videos}"
            )
            dataset, reused = datasets.prepare(job, workers * cpus, on_progress)
            instruments.dataset(*summary.dataset_counts(dataset))
            for line in summary.dataset_lines(job, dataset, reused):
                terminal.say(line)
            check_samples(config, dataset)
            run, number = run_folder.take(config)
            events.record(
                run, "start", dataset=dataset.id, data_folder=str(dataset.folder), sources=asdict(dataset.manifest.sources), reused=reused
            )
            if matched:
                for line in weights.summary(matched, config.train.init):
                    terminal.say(line)
                events.record(run, "initial", **vars(config.train.init), **vars(matched))
            Run(config, run, number, dataset, seats, terminal, instruments).to_the_end()
        finally:
            seats.close()


class Run:
    """A run on its seats, for as long as this process steers it."""

    def __init__(
        self, config: RunConfig, folder: Path, number: int, dataset: Dataset, seats: Seats, terminal: Terminal, instruments: RunInstruments
    ) -> None:
        self.config, self.folder, self.dataset, self.seats, self.terminal = config, folder, dataset, seats, terminal
        self.instruments = instruments
        self.number = number  # of the last generation drawn; a newer one in the folder means that another process took over
        self.line = TrainingLine(config.curriculum.stages)
        self.stage_step = 0
        self.is_sound = functools.cache(is_sound)  # a commit's bytes are read once
        self.passed_over: set[str] = set()

    def to_the_end(self) -> None:
        """All stages, then the samples and the report."""
        stages = self.config.curriculum.stages
        while (state := self.state()).stage < len(stages):
            self.attempt(stages[state.stage], state)
        shown = self.generation(SHOWCASE, 1, self.config.cluster.workers * self.config.cluster.cpus_per_worker)
        if not shown.finished:
            raise RunFailed(f"sampling: {shown.reason}; see {self.folder / 'logs'}")
        events.record(self.folder, "finish", step=self.state().step)
        report.write(self.folder)
        for line in summary.run_lines(self.folder, shown.messages[0] or {}):
            self.terminal.say(line)

    def resume_point(self) -> Commit | None:
        """The commit to go on from; says which newer ones cannot be. Raises UserError when it was made of other data."""
        point = resume_point(self.folder, self.is_sound)
        for folder, reason in point.passed_over:
            if folder not in self.passed_over:
                self.terminal.say(f"commit {folder} is passed over: {reason}")
                events.record(self.folder, "passed_over", commit=folder, reason=reason)
        self.passed_over |= {folder for folder, _ in point.passed_over}
        found = point.commit
        if found:
            check_ids(found, self.dataset.id, configs.recipe_hash(self.config))
        return found

    def state(self) -> RunState:
        """Where that commit stands."""
        found = self.resume_point()
        return found.state if found else RunState()

    def attempt(self, stage: Stage, state: RunState) -> None:
        """Generations of one stage until it is promoted; gives up after max_restarts that made no commit."""
        failures, allowed = 0, self.config.train.max_restarts
        committed, index = state.step, state.stage
        while self.state().stage == index:
            self.stage_step = self.state().stage_step
            parts = ingredients(stage, self.dataset.manifest.spec.stride)
            replica = self.config.parallel.tp * self.config.parallel.sp
            world = usable(len(self.seats), [part.samples for part in parts], replica)
            fitting = limits(self.folder)
            outcome = self.generation(TRAINER, world, self.config.cluster.cpus_per_worker)
            if outcome.finished:
                continue
            step = self.state().step
            failures, committed = (failures + 1 if step == committed else 1), step
            if limits(self.folder) != fitting:  # out of memory: the next one plans with a smaller micro-batch, nothing has failed
                failures = 0
            self.terminal.say(
                f"generation ended: {outcome.reason}; step {step} is committed, {'starting again' if failures <= allowed else 'giving up'}"
            )
            if failures > allowed:
                raise RunFailed(f"{outcome.reason}, {failures} times at step {step}; see {self.folder / 'logs'}")

    def generation(self, target: str, world: int, threads: int) -> generation.Outcome:
        """One life of a process group: draw its number, start it, watch it to its end. Lost seats are replaced."""
        if not lease.holds(self.folder, self.number):
            raise RunFailed(f"another process has taken over {self.folder}")
        number = self.number = lease.draw(self.folder)
        found = self.resume_point()
        payloads = [
            {
                "commit": str(found.folder) if found else None,
                "config": self.config.model_dump(mode="json"),
                "run": str(self.folder),
                "dataset": str(self.dataset.folder.absolute()),
                "threads": threads,
                "log": str(self.folder / "logs" / f"generation-{number:04d}-rank-{rank:05d}.log"),
            }
            for rank in range(world)
        ]
        events.record(self.folder, "generation", generation=number, world=world, target=target)
        self.instruments.generation(number, len(self.seats), "training" if target == TRAINER else "sampling")
        silence = self.config.cluster.silence
        outcome = generation.run(self.seats[:world], target, payloads, self.on_message, generation=number, silence=silence)
        if not outcome.finished:
            events.record(self.folder, "failure", generation=number, **failures.told(outcome))
            self.instruments.failure(outcome.cause)
            path = failures.write(self.folder, number, outcome)
            for line in [*failures.shortened(outcome), f"  all of it in {path}"]:
                self.terminal.say(line)
        for place in outcome.lost:
            self.seats.replace(place)
        return outcome

    def on_message(self, rank: int, message: dict[str, Any]) -> None:
        if message["kind"] == "step":
            self.stage_step += 1
            self.terminal.show(self.line.text(message, self.stage_step))
            self.instruments.step(message, self.stage_step)
        elif message["kind"] == "event":
            self.instruments.event(message["event"], message)
        elif message["kind"] == "samples":
            self.instruments.samples(message["psnr"], message["psnr_copy_last_frame"])
