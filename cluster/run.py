"""A run on its seats: one generation per stage, failure or resize, then samples and the report. The controller calls `to_the_end`.

A generation's end, whatever its reason, leads to the same three lines: draw the next number, start from the last commit, watch.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster import failures, generation, health, replan, run_folder, summary
from cluster.causes import OF_A_SICK_NODE
from cluster.failures import RunFailed
from cluster.feeding import Feeding, Stopped
from cluster.gang import Gang, Held
from cluster.pace import Pace
from cluster.progress import Board, TrainingLine, preflight_line
from cluster.resumption import Resumption, standing
from data_pipeline.errors import UserError
from trainer import config as configs
from trainer import events
from trainer.checkpoint.commit import Commit, check_ids
from trainer.config import RunConfig
from trainer.curriculum import Stage
from trainer.inspection import report
from trainer.instruments import RunInstruments
from trainer.micro_batches import limits
from trainer.mixture import ingredients
from trainer.planner import usable
from trainer.status import account

TRAINER, SHOWCASE = "trainer.process:run", "trainer.inspection.showcase:run"
TICK_SECONDS = 0.2
LOOK_SECONDS = 1.0  # between two looks at nodes and seats while a generation runs
LOST_AT_ONCE = 3  # nodes that may go one after the other before a new generation waits for the cluster to calm down
FRUITLESS = 20  # generations without a commit: nodes go faster than train.commit_every lets a run commit
ACCOUNT_SECONDS = 60.0  # between two readings of the whole history for the goodput, which grows with it


class Run:
    """A run on its seats, for as long as this process steers it. check: raises Stopped once somebody has asked it to stop; number: of the
    last generation that was drawn."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        number: int,
        data: Feeding,
        gang: Gang,
        board: Board,
        instruments: RunInstruments,
        check: Callable[[], None],
    ) -> None:
        self.config, self.folder, self.data, self.gang, self.board = config, folder, data, gang, board
        self.instruments, self.check = instruments, check
        self.resumption = Resumption(folder, number, board.say)
        self.line = TrainingLine(config.curriculum.stages)
        self.pace = Pace(config.train.commit_every)
        self.stage_step = self.world = 0  # of the generation
        self.why = "start"  # there is another one
        self.decided = ("stay", 0)  # replan's last word, and how many workers it was about
        self.wish: str | None = None  # when this generation should end early,
        self.ending = ""  # and why
        self.looked = self.accounted = 0.0
        self.committed = False  # this generation has
        self.examined: set[str] = set()  # nodes,
        self.sights: list[health.Sight] = []  # and what those see that can train

    def begin(self, **fields: Any) -> None:
        """Wait until the stage that the run stands in has data enough, and write down that it begins; `fields` are said with it."""
        last = len(self.config.curriculum.stages) - 1
        self.dataset = self.data.dataset(min(standing(self.resumption.point().commit).stage, last))
        run_folder.keep_config(self.config)
        place = {"dataset": self.dataset.origin, "data_folder": str(self.dataset.folder), "reused": self.data.feed.told is None}
        events.record(self.folder, "start", **fields, **place, sources=asdict(self.dataset.manifest.sources))

    def to_the_end(self) -> None:
        """All stages, then the samples and the report. Raises Stopped, RunFailed, UserError."""
        stages = self.config.curriculum.stages
        found = self.next_commit()
        while (index := standing(found).stage) < len(stages):
            self.dataset = self.data.dataset(index)
            found = self.attempt(stages[index], found)
        self.data.share(0)
        shown = self.generation(SHOWCASE, None, self.config.cluster.workers * self.config.cluster.cpus_per_worker, found)
        if not shown.finished:
            raise RunFailed(f"sampling: {shown.reason}; see {self.folder / 'logs'}")
        self.data.rest()
        events.record(self.folder, "finish", step=standing(found).step)
        self.account()
        report.write(self.folder)
        for line in summary.run_lines(self.folder):
            self.board.say(line)

    @property
    def number(self) -> int:
        return self.resumption.number

    def next_commit(self) -> Commit | None:
        """The commit that the next generation goes on from, whose number is drawn first. Raises RunFailed when the run is another process's
        by now, UserError when the commit was made of other data."""
        self.resumption.draw()
        found = self.resumption.commit()
        if found:
            check_ids(found, self.data.origins, configs.recipe_hash(self.config))
        return found

    def attempt(self, stage: Stage, found: Commit | None) -> Commit | None:
        """Generations of one stage from a commit on until it is promoted; returns the commit with which it is. Gives up after max_restarts
        that made no commit, or FRUITLESS whatever ended them."""
        failures = fruitless = 0
        allowed = self.config.train.max_restarts
        committed, index = standing(found).step, standing(found).stage
        while standing(found).stage == index:
            self.stage_step, fitting = standing(found).stage_step, limits(self.folder)
            outcome = self.generation(TRAINER, stage.at(self.stage_step), self.config.cluster.cpus_per_worker, found)
            found = self.next_commit()
            if outcome.finished:
                continue
            step = standing(found).step
            failures, fruitless, committed = (failures + 1, fruitless + 1, step) if step == committed else (1, 1, step)
            # Out of memory: the next one plans with a smaller micro-batch. A node that went: the next one has others. Neither is a fault.
            if limits(self.folder) != fitting:
                failures = fruitless = 0
            elif outcome.cause in ("node", "preempted"):
                failures = 0
            done_for = failures > allowed or fruitless >= FRUITLESS
            if failures > 1:
                self.resumption.doubt()
            self.board.say(f"generation ended: {outcome.reason}; step {step} is committed, {'giving up' if done_for else 'starting again'}")
            if done_for:
                raise RunFailed(
                    f"{outcome.reason}, {failures if failures > allowed else fruitless} times at step {step}; see {self.folder / 'logs'}"
                )
            self.pause(max(failures, fruitless - LOST_AT_ONCE))
        self.why = "stage"
        return found

    def pause(self, failures: int) -> None:
        """Before a stage is tried again that fails at the same step: what is wrong outside, a file system above all, may need a moment."""
        began = time.monotonic()
        while failures > 1 and time.monotonic() - began < min(60.0, 2.0**failures):
            self.look()
            time.sleep(TICK_SECONDS)

    def usable(self, stage: Stage, seats: int) -> int:
        """How many of so many seats the stage can use."""
        parts = ingredients(stage, self.dataset.manifest.spec.stride)
        return usable(seats, [part.samples for part in parts], self.config.parallel.tp * self.config.parallel.sp)

    @property
    def fewest(self) -> int:
        """Workers with which it trains."""
        return max(self.config.cluster.fewest, self.config.parallel.tp * self.config.parallel.sp)

    def seats(self, stage: Stage | None) -> tuple[list[Held], bool]:
        """(the seats of the next generation, one to sample; whether they were there at once). Raises UserError when too few come."""
        began, patience = time.monotonic(), self.config.cluster.wait_seconds
        least, all_of_them = self.fewest if stage else 1, self.why == "start"
        gather = functools.partial(self.gang.gather, least, patience, all_of_them, self.look, self.board.say)
        gather()
        while new := [held for held in self.gang.ready if held.node not in self.examined]:
            self.examine(new)
            gather()
        waited = time.monotonic() - began
        if waited > LOOK_SECONDS:
            events.record(self.folder, "wait", what="seats", seconds=waited)
        ready = self.gang.ready
        return ready[: self.usable(stage, len(ready)) if stage else 1], waited <= LOOK_SECONDS

    def examine(self, seats: Sequence[Held]) -> None:
        """Say what the seats of nodes see that were not used yet. A node that could not train is marked; raises UserError when there is one
        at the run's start."""
        folders = [self.folder, *([self.dataset.folder] if isinstance(self.dataset.folder, Path) else [])]
        sights = health.examine({held.node: held.seat for held in seats}, [folder.absolute() for folder in folders])
        events.record(self.folder, "health", nodes=[vars(sight) for sight in sights])
        for sight in sights:
            if why := health.unusable(sight):
                if self.why == "start":
                    raise UserError(why)
                self.gang.mark(sight.node, why)
        sound = {sight.node: sight for sight in sights if not health.unusable(sight)}
        for line in health.lines([*sound.values()], sum(held.node in sound for held in seats), self.sights):
            self.board.say(line)
        self.sights += sound.values()
        self.examined |= {held.node for held in seats}

    def generation(self, target: str, stage: Stage | None, threads: int, found: Commit | None) -> generation.Outcome:
        """One life of a process group: start it from the commit, watch it to its end. Seats that were lost are dropped."""
        used, at_once = self.seats(stage)
        self.resumption.check_owner()
        number, before, self.world = self.number, self.world, len(used)
        self.wish, self.decided, self.committed = None, ("stay", 0), False
        if stage and before not in (0, self.world):
            events.record(self.folder, "resize", **{"from": before, "to": self.world, "why": self.why})
            self.board.say(f"training goes on with {self.world} workers instead of {before}")
        place = {"why": self.why, "commit": found and f"{found.name}/{found.generation:04d}"}
        events.record(self.folder, "generation", generation=number, world=self.world, target=target, **place)
        self.instruments.generation(number, len(self.gang.ready), "training" if stage else "sampling")
        self.pace.generation(at_once)
        outcome = generation.run(
            [held.seat for held in used],
            target,
            self.payloads(threads, found),
            self.on_message,
            generation=number,
            grace_seconds=self.pace.grace_seconds,
            silence=self.config.cluster.silence,
            should_stop=lambda: self.ends_early(used, stage),
        )
        self.check()
        last = outcome.messages[0] or {}  # unless the stage is over, it tells of a mixture or a roll_back
        self.why = self.ending if outcome.stopped else last.get("event", "") if outcome.finished else "failure"
        if not outcome.finished:
            events.record(self.folder, "failure", generation=number, **failures.told(outcome))
            self.instruments.failure(outcome.cause)
            path = failures.write(self.folder, number, outcome)
            for line in [*failures.shortened(outcome), f"  all of it in {path}"]:
                self.board.say(line)
        self.gang.drop([used[rank].seat for rank in outcome.lost])
        self.gang.release()
        if outcome.failed_rank is not None and outcome.cause in OF_A_SICK_NODE and not self.committed:
            self.gang.blame(used[outcome.failed_rank].node, outcome.reason, self.fewest)
        return outcome

    def account(self) -> None:
        """Put the goodput so far on the meter."""
        self.accounted = time.monotonic()
        self.instruments.goodput(account(self.folder, time.time()))

    def payloads(self, threads: int, found: Commit | None) -> list[dict[str, Any]]:
        """What each rank of a generation is told."""
        told = {
            "commit": str(found.folder) if found else None,
            "config": self.config.model_dump(mode="json"),
            "run": str(self.folder),
            "dataset": str(self.dataset.folder.absolute()),
            "threads": threads,
        }
        logs = self.folder / "logs"
        return [told | {"log": str(logs / f"generation-{self.number:04d}-rank-{rank:05d}.log")} for rank in range(self.world)]

    def ends_early(self, used: Sequence[Held], stage: Stage | None) -> str | None:
        """Why the generation on these seats should end before its stage does, None while it should go on. Asked all the time."""
        try:
            self.check()
        except Stopped:
            return generation.AT_ONCE
        if time.monotonic() - self.looked >= LOOK_SECONDS:
            self.looked = time.monotonic()
            self.look()
            if self.looked - self.accounted > ACCOUNT_SECONDS:
                self.account()
            if any(held in self.gang.leaving for held in used):
                self.ending, self.wish = "shrink", generation.AT_ONCE
                self.board.say("a node is leaving: its seats commit and leave")
            elif stage:
                self.wish = self.growth(stage)
        return self.wish

    def look(self) -> None:
        """Take in what has become of nodes, seats and data, and tell it. Raises Stopped, and what encoding has failed with."""
        self.check()
        self.data.look()
        self.gang.refresh()
        for node, state in self.gang.news():
            events.record(self.folder, "node", node=node, state=state)
            if state != "joined":
                self.board.say(f"node {node[:8]} is {state}" + (f": {self.gang.problem}" if state == "marked" else ""))

    def growth(self, stage: Stage) -> str | None:
        """When to end this generation for one on more seats, None for not at all."""
        possible, self.ending = self.usable(stage, len(self.gang.ready)), "grow"
        decision = replan.decide(self.pace.situation(stage, self.stage_step, self.world, possible))
        if possible > self.world and (decision.choice, possible) != self.decided:
            self.decided = (decision.choice, possible)
            fields = {"gain_seconds": decision.gain_seconds, "cost_seconds": decision.cost_seconds, "why": decision.why}
            events.record(self.folder, "replan", decision=decision.choice, **{"from": self.world, "to": possible}, **fields)
        return {"stay": None, "now": generation.AT_ONCE, "commit": generation.AT_THE_NEXT_COMMIT}[decision.choice]

    def on_message(self, rank: int, message: dict[str, Any]) -> None:
        self.stage_step += message["kind"] == "step"
        self.instruments.message(message, self.stage_step)
        if message["kind"] == "step":
            self.data.share(self.world * self.config.cluster.cpus_per_worker)
            self.board.show(self.line.text(message, self.stage_step))
            self.pace.step(message)
        elif message.get("event") == "commit":
            self.committed = True
            self.resumption.seal(message["step"])
            self.gang.absolve()
            self.pace.commit(message["seconds"])
        elif message.get("event") == "preflight":
            self.board.say(preflight_line(message))
