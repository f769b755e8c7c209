"""What a restart, a step and a commit take, by name and with where the number comes from: measured by benchmarks of this repository, read
from the records of a run, or given by the recipe."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from cluster.simulation.virtual import Cluster, Job, Price, Virtual
from cluster.simulation.weather import Fault
from data_pipeline.errors import UserError
from trainer.config import RunConfig
from trainer.goodput import Goodput, goodput, spans
from trainer.planning.memory import parameters
from trainer.sections import SimulateSection
from trainer.sizing import planned_model

Record = dict[str, Any]
RESULTS = "tests/benchmarks/results/2026-11-22-cpu-"
RECOVERY, CHECKPOINT = f"{RESULTS}recovery.json", f"{RESULTS}checkpoint-toy.json"
# By key of the recipe: the file and what in it is added up.
SOURCES = {
    "detect_seconds": (RECOVERY, ("seconds.worker.detect",)),
    "detect_node_seconds": (RECOVERY, ("seconds.node.detect",)),
    "replan_seconds": (RECOVERY, ("seconds.worker.draw",)),
    "start_seconds": (RECOVERY, ("seconds.worker.forked", "seconds.worker.grouped", "seconds.worker.built")),
    "load_seconds": (RECOVERY, ("seconds.worker.loaded",)),
    "copy_bytes_per_second": (CHECKPOINT, ("sizes.toy.copy_bytes_per_second",)),
    "storage_bytes_per_second": ("an assumption", ()),
}
BYTES_PER_PARAMETER = 16.02  # CHECKPOINT: sizes.toy.bytes_per_parameter
PLAIN_PROCESS, PLAIN_NODE = 24.5, 75.0  # seconds: the middle of Ray Train's 21-28 after a killed worker, and after a lost node


def told(section: SimulateSection) -> Iterator[str]:
    """Every constant of the recipe with its source."""
    for name, (file, parts) in SOURCES.items():
        value, default = getattr(section, name), SimulateSection.model_fields[name].default
        source = f"{file}{': ' if parts else ''}{' + '.join(parts)}"
        yield f"  simulate.{name} = {value:g}: {source if value == default else 'given'}"


def our_price(config: RunConfig, devices: int) -> Price:
    """What our restarts and commits cost on so many devices. A commit is copied by all devices at once, and read and written by all through
    one storage."""
    section = config.simulate
    size = BYTES_PER_PARAMETER * parameters(planned_model(config), 1)
    moved = size / section.storage_bytes_per_second
    return Price(
        detect=section.detect_seconds,
        detect_node=section.detect_node_seconds,
        replan=section.replan_seconds,
        start=section.start_seconds,
        load=section.load_seconds + moved,
        commit=size / devices / section.copy_bytes_per_second,
        durable=moved,
    )


def plain_price(ours: Price) -> Price:
    """The same job under a gang that restarts as a whole: Ray Train's figures in the place of noticing and starting, which are measured
    with a worker that builds nothing; so building and loading come on top."""
    return Price(PLAIN_PROCESS, PLAIN_NODE, 0.0, ours.start, ours.load, ours.commit, ours.durable)


@dataclass(frozen=True)
class Measured:
    """What the records of a run say: prices, seconds of a step by stage, when what broke, and its account without the sampling at its
    end."""

    price: Price
    step_seconds: dict[str, float]
    faults: tuple[Fault, ...]
    account: Goodput


def measured(happened: Sequence[Record], metrics: Sequence[Record]) -> Measured:
    """The constants of a run. Raises UserError when it made no step."""
    if not metrics:
        raise UserError("simulate.measured: this run has made no step, there is nothing to measure")
    sampling = sum(seconds for cause, seconds in spans(happened, None) if cause == "other")
    account = goodput(happened, metrics)
    lost = account.lost | {"other": account.lost["other"] - sampling}
    groups = [place for place, event in enumerate(happened) if event["event"] == "generation" and "showcase" not in event.get("target", "")]
    until_second = happened[: groups[1]] if len(groups) > 1 else happened
    first = sum(seconds for cause, seconds in spans(until_second, None) if cause == "start")
    restarts = max(1, len(groups) - 1)
    start = (lost["start"] - first) / restarts
    done = len(metrics) + sum(event.get("recomputed", 0) for event in happened)
    price = Price(
        detect=0.0,  # each fault has its own
        detect_node=0.0,
        replan=lost["replan"] / restarts,
        start=start,
        load=lost["load"] / restarts,
        commit=0.0,
        durable=fmean([event["seconds"] for event in happened if event["event"] == "commit"] or [0.0]),
        data=fmean(step["data_seconds"] for step in metrics),
        idle=(lost["other"] + lost["checkpoint"]) / done,
        first=max(0.0, first - start),
    )
    return Measured(price, by_stage(metrics), tuple(broken(happened)), Goodput(account.productive, lost))


def broken(happened: Sequence[Record]) -> Iterator[Fault]:
    """When something broke, in seconds of wall time, and how long it took until the group, or the controller, was gone. A start by hand
    ends a pause, which is nobody's time."""
    begun = pauses = last = 0.0
    for event in happened:
        now, last_sign = event["time"], event.get("happened", event["time"])
        if event["event"] == "start" and "happened" not in event:
            begun, pauses = begun or now, pauses + (now - last if begun else 0.0)
        if event["event"] == "failure" or (event["event"] == "start" and last):
            yield Fault(min(last_sign, now) - begun - pauses, "process", detect=now - last_sign)
        last = now


def by_stage(metrics: Sequence[Record]) -> dict[str, float]:
    """Mean seconds of a step by the stage's name."""
    names = dict.fromkeys(step["stage"] for step in metrics)
    return {name: fmean(step["step_seconds"] for step in metrics if step["stage"] == name) for name in names}


def predicted(config: RunConfig, found: Measured) -> Goodput:
    """The goodput of a run with these constants and faults, whose stages end at their max_steps."""
    stages = config.curriculum.stages

    def speed(stage: int, nodes: int) -> tuple[int, float]:
        return nodes, found.step_seconds[stages[stage].name]

    job = Job(stages, config.train.commit_every, speed)
    return Virtual(job, Cluster(1, 0, math.inf), found.price, found.faults).live()
