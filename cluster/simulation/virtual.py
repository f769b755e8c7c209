"""One run in virtual time: the curriculum's own state machine and the controller's own policy, on a cluster that is arithmetic.

It writes the events and steps that a real run would write, so that trainer/goodput.py gives the account of both.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.replan import Decision, Situation, decide
from cluster.simulation.weather import Fault
from trainer.curriculum import RunState, Stage, promotion_reason
from trainer.goodput import Goodput, goodput
from trainer.guard import GuardState

Record = dict[str, Any]


@dataclass(frozen=True)
class Price:
    """Seconds. detect and detect_node: from a fault to the end of the group; replan: to the next start; start: of a generation, until it is
    built; load: of a commit; commit: that training stands still for one; durable: until it counts; data and idle: per step, waiting for
    its batch and between it and the next; first: what the first start takes more than others."""

    detect: float
    detect_node: float
    replan: float
    start: float
    load: float
    commit: float
    durable: float
    data: float = 0.0
    idle: float = 0.0
    first: float = 0.0


@dataclass(frozen=True)
class Job:
    """What is trained. speed(stage, nodes): (devices used, seconds per step) on so many nodes, None where nothing fits."""

    stages: Sequence[Stage]
    commit_every: int
    speed: Callable[[int, int], tuple[int, float] | None]


@dataclass(frozen=True)
class Cluster:
    """nodes that the job is meant for, and spare ones; the run is watched for `seconds` at most."""

    nodes: int
    spares: int
    seconds: float


@dataclass
class Virtual:
    """A run while it goes on. decide: whether to move to nodes that have come back; warned: whether notice of preemption is heard."""

    job: Job
    cluster: Cluster
    price: Price
    faults: Sequence[Fault]
    warned: bool = True
    decide: Callable[[Situation], Decision] = decide
    now: float = 0.0
    state: RunState = field(default_factory=RunState)
    committed: RunState = field(default_factory=RunState)
    pending: tuple[float, RunState] | None = None  # a commit that is being written, and when it will count
    away: list[float] = field(default_factory=list)  # when broken nodes are back
    events: list[Record] = field(default_factory=list)
    steps: list[Record] = field(default_factory=list)
    coming: int = 0  # the next fault's place in `faults`
    generations: int = 0
    pause: float = 0.0  # from the end of the last generation to the start of the next

    def live(self) -> Goodput:
        """The whole run, and its account."""
        self.tell("start")
        self.now += self.price.first
        while self.committed.stage < len(self.job.stages) and self.now < self.cluster.seconds:
            self.generation()
        end = min(self.now, self.cluster.seconds)
        return goodput(self.events, self.steps, end)

    def tell(self, kind: str, **fields: Any) -> None:
        self.events.append({"time": min(self.now, self.cluster.seconds), "event": kind, "generation": self.generations, **fields})

    @property
    def standing(self) -> int:
        """Nodes that live, spares included."""
        while self.away and self.away[0] <= self.now:
            heapq.heappop(self.away)
        return self.cluster.nodes + self.cluster.spares - len(self.away)

    @property
    def nodes(self) -> int:
        """Nodes that live, as far as the job has use for them."""
        return min(self.cluster.nodes, self.standing)

    def generation(self) -> None:
        """From the last commit until the stage ends, a fault or a move."""
        self.now, self.pause = self.now + self.pause, self.price.replan
        self.generations += 1
        while (plan := self.job.speed(self.committed.stage, nodes := self.nodes)) is None:
            self.wait_for_nodes()
        self.tell("generation", world=plan[0])
        for seconds, milestone in ((self.price.start, "built"), (self.price.load if self.committed.step else 0.0, "loaded")):
            if self.strikes(self.now + seconds):
                return
            self.now += seconds
            self.tell("milestone", name=milestone)
        self.begin()
        self.train(*plan, nodes)

    def wait_for_nodes(self) -> None:
        """Until the next node is back."""
        begun, self.now = self.now, max(self.now, self.away[0])
        self.tell("wait", what="seats", seconds=self.now - begun)

    def begin(self) -> None:
        """Back to the commit: what was done since is thrown away."""
        self.state, self.pending = self.committed, None
        kept = next((place for place in range(len(self.steps), 0, -1) if self.steps[place - 1]["step"] <= self.state.step), 0)
        lost, self.steps = self.steps[kept:], self.steps[:kept]
        seconds = sum(step["step_seconds"] + step["data_seconds"] + step["checkpoint_seconds"] for step in lost)
        self.tell("layout", step=self.state.step, recomputed=len(lost), recomputed_seconds=seconds)

    def train(self, world: int, seconds: float, nodes: int) -> None:
        """Steps, commits, and the question whether to move, until the stage ends or something else does."""
        stage, price = self.job.stages[self.state.stage], self.price
        saving, measured, leaving = 0.0, {world: seconds}, "stay"
        while (reason := promotion_reason(stage.promotion, self.state)) is None:
            end = self.now + price.data + seconds + saving + price.idle
            if self.strikes(end):
                return
            if end >= self.cluster.seconds:
                self.now = self.cluster.seconds
                return
            self.now, self.state = end, self.state.stepped({}, False, GuardState())
            self.steps.append(line(self.state.step, stage.name, seconds, price.data, saving))
            saving = 0.0
            if self.nodes > nodes:  # one has come back
                nodes, leaving = self.nodes, self.asks(stage, world, measured)
            due = self.state.step - self.begun_commit.step >= self.job.commit_every
            if (due or leaving == "now") and promotion_reason(stage.promotion, self.state) is None:
                saving = self.commit(self.state)
                if leaving != "stay":
                    self.leave()
                    return
        self.commit(self.state.promoted())
        self.sit_out()
        self.tell("promotion", stage=stage.name, step=self.state.step, reason=reason)

    @property
    def begun_commit(self) -> RunState:
        return self.pending[1] if self.pending else self.committed

    def commit(self, state: RunState) -> float:
        """Begin a commit of the state, behind the one that is still being written. Returns the seconds that training stands still."""
        self.settle()
        stall = self.price.commit
        if self.pending:
            stall += self.pending[0] - self.now
            self.committed = self.pending[1]
        self.pending = (self.now + stall + self.price.durable, state)
        return stall

    def settle(self) -> None:
        """A commit that is written by now counts."""
        if self.pending and self.pending[0] <= self.now:
            self.committed, self.pending = self.pending[1], None

    def sit_out(self) -> None:
        """Wait until the commit that is being written counts."""
        assert self.pending is not None
        self.now, self.committed, self.pending = max(self.now, self.pending[0]), self.pending[1], None

    def leave(self) -> None:
        """End the group behind the commit that has begun."""
        self.sit_out()
        self.tell("resize")

    def asks(self, stage: Stage, world: int, measured: dict[int, float]) -> str:
        """What the controller's policy says to more nodes: stay, now or commit."""
        plan = self.job.speed(self.state.stage, self.nodes)
        since = self.state.step - self.begun_commit.step
        situation = Situation(
            world=world,
            possible=plan[0] if plan else world,
            steps=stage.promotion.max_steps - self.state.stage_step,
            step_seconds=measured,
            restart_seconds=self.price.replan + self.price.start + self.price.load,
            commit_seconds=self.price.commit + self.price.durable,
            steps_to_commit=self.job.commit_every - since,
        )
        choice = self.decide(situation)
        self.tell("replan", decision=choice.choice, gain_seconds=choice.gain_seconds, cost_seconds=choice.cost_seconds)
        return choice.choice

    def strikes(self, until: float) -> bool:
        """Take in the faults up to a time. Whether one of them ends the group; then it is the time when that is known."""
        while self.coming < len(self.faults) and self.faults[self.coming].time <= until:
            fault = self.faults[self.coming]
            self.coming += 1
            place, standing, used = fault.place * (self.cluster.nodes + self.cluster.spares), self.standing, self.nodes
            if fault.kind != "process" and place < standing:
                heapq.heappush(self.away, max(self.now, fault.time) + fault.repair)
            asleep = fault.time <= self.now and fault.detect is None  # a fault that was measured has met a group
            if asleep or place >= used:  # nothing runs that could break, or it is a spare node, or one that is broken
                continue
            self.now = max(self.now, fault.time)
            self.settle()
            self.end(fault)
            return True
        return False

    def end(self, fault: Fault) -> None:
        """The group ends by a fault: with a commit where there was notice, else when it is noticed."""
        if fault.kind == "preempted" and self.warned and self.state.step > self.committed.step:
            self.commit(self.state)
            self.leave()
            return
        detect = self.price.detect if fault.kind == "process" else self.price.detect_node
        happened, self.now = self.now, self.now + (detect if fault.detect is None else fault.detect)
        self.tell("failure", happened=min(happened, self.cluster.seconds), cause=fault.kind)
        self.pause = self.price.replan if fault.replan is None else fault.replan


def line(step: int, stage: str, seconds: float, data: float, saving: float) -> Record:
    """What a step leaves in metrics.jsonl, as far as its time goes."""
    return {"step": step, "stage": stage, "step_seconds": seconds, "data_seconds": data, "checkpoint_seconds": saving}
