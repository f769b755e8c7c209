"""A run on its seats: one generation per stage (or per failure), then samples and the report. The controller calls `to_the_end`.

A generation's end, whatever its reason, leads to the same three lines: draw the next number, start from the last commit, watch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster import generation, run_folder, summary
from cluster.feeding import Feeding, Stopped
from cluster.progress import Board, TrainingLine
from cluster.seats import Seats
from trainer import config as configs
from trainer import events, lease
from trainer.checkpoint.commit import Commit, check_ids, resume_point
from trainer.checkpoint.files import is_sound
from trainer.config import RunConfig
from trainer.curriculum import RunState, Stage
from trainer.inspection import report
from trainer.instruments import RunInstruments
from trainer.micro_batches import limits
from trainer.mixture import ingredients
from trainer.planner import usable

TRAINER, SHOWCASE = "trainer.process:run", "trainer.inspection.showcase:run"


class RunFailed(Exception):
    """The run cannot go on by itself; says why and where to look."""


class Run:
    """A run on its seats, for as long as this process steers it. stopping: whether somebody has asked it to stop."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        number: int,
        data: Feeding,
        seats: Seats,
        board: Board,
        instruments: RunInstruments,
        stopping: Callable[[], bool],
    ) -> None:
        self.config, self.folder, self.data, self.seats, self.board = config, folder, data, seats, board
        self.instruments, self.stopping = instruments, stopping
        self.number = number  # of the last generation drawn; a newer one in the folder means that another process took over
        self.line = TrainingLine(config.curriculum.stages)
        self.stage_step = 0
        self.is_sound = functools.cache(is_sound)  # a commit's bytes are read once
        self.passed_over: set[str] = set()

    def begin(self) -> None:
        """Wait until the stage that the run stands in has data enough, and write down that it begins."""
        found = resume_point(self.folder, self.is_sound).commit
        last = len(self.config.curriculum.stages) - 1
        self.dataset = self.data.dataset(min(found.state.stage, last) if found else 0)
        run_folder.keep_config(self.config)
        place = {"dataset": self.dataset.origin, "data_folder": str(self.dataset.folder)}
        sources = asdict(self.dataset.manifest.sources)
        events.record(self.folder, "start", **place, sources=sources, reused=self.data.feed.told is None)

    def to_the_end(self) -> None:
        """All stages, then the samples and the report. Raises Stopped, RunFailed, UserError."""
        stages = self.config.curriculum.stages
        while (state := self.state()).stage < len(stages):
            self.dataset = self.data.dataset(state.stage)
            self.attempt(stages[state.stage], state)
        self.data.share(0)
        shown = self.generation(SHOWCASE, 1, self.config.cluster.workers * self.config.cluster.cpus_per_worker)
        if not shown.finished:
            raise RunFailed(f"sampling: {shown.reason}; see {self.folder / 'logs'}")
        self.data.rest()
        events.record(self.folder, "finish", step=self.state().step)
        report.write(self.folder)
        for line in summary.run_lines(self.folder, shown.messages[0] or {}):
            self.board.say(line)

    def resume_point(self) -> Commit | None:
        """The commit to go on from; says which newer ones cannot be. Raises UserError when it was made of other data."""
        point = resume_point(self.folder, self.is_sound)
        for folder, reason in point.passed_over:
            if folder not in self.passed_over:
                self.board.say(f"commit {folder} is passed over: {reason}")
                events.record(self.folder, "passed_over", commit=folder, reason=reason)
        self.passed_over |= {folder for folder, _ in point.passed_over}
        found = point.commit
        if found:
            check_ids(found, self.data.origins, configs.recipe_hash(self.config))
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
            fitting = limits(self.folder)
            outcome = self.generation(TRAINER, self.world(stage.at(self.stage_step)), self.config.cluster.cpus_per_worker)
            if outcome.finished:
                continue
            step = self.state().step
            failures, committed = (failures + 1 if step == committed else 1), step
            if limits(self.folder) != fitting:  # out of memory: the next one plans with a smaller micro-batch, nothing has failed
                failures = 0
            self.board.say(
                f"generation ended: {outcome.reason}; step {step} is committed, {'starting again' if failures <= allowed else 'giving up'}"
            )
            if failures > allowed:
                raise RunFailed(f"{outcome.reason}, {failures} times at step {step}; see {self.folder / 'logs'}")

    def world(self, stage: Stage) -> int:
        """How many of the seats the stage can use."""
        parts = ingredients(stage, self.dataset.manifest.spec.stride)
        return usable(len(self.seats), [part.samples for part in parts], self.config.parallel.tp * self.config.parallel.sp)

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
        self.data.share(world * threads)
        outcome = generation.run(
            self.seats[:world],
            target,
            payloads,
            self.on_message,
            generation=number,
            should_stop=self.should_stop,
        )
        if self.stopping():
            raise Stopped
        if not outcome.finished:
            events.record(self.folder, "failure", generation=number, rank=outcome.failed_rank, reason=outcome.reason)
            self.instruments.failure(outcome.cause)
        for place in outcome.lost:
            self.seats.replace(place)
        return outcome

    def should_stop(self) -> str | None:
        """Why the generation is to end, if it is; asked again and again while it lives."""
        self.data.look()
        return "stop" if self.stopping() else None

    def on_message(self, rank: int, message: dict[str, Any]) -> None:
        if message["kind"] == "step":
            self.stage_step += 1
            self.board.show(self.line.text(message, self.stage_step))
            self.instruments.step(message, self.stage_step)
        elif message["kind"] == "event":
            self.instruments.event(message["event"], message)
        elif message["kind"] == "samples":
            self.instruments.samples(message["psnr"], message["psnr_copy_last_frame"])
