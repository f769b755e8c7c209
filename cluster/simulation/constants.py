"""What a restart, a step and a commit take, by name and with where the number comes from: measured by benchmarks of this repository, read
from the records of a run, or given by the recipe."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
# By key of the recipe: the file and what in it is added up. A node's pause is measured as a whole; replan_seconds, which follows it in the
# simulation as it follows a process's, is taken off.
SOURCES = {
    "detect_seconds": (RECOVERY, ("seconds.worker.detect",)),
    "detect_node_seconds": (RECOVERY, ("seconds.node.detect", "seconds.node.draw", "-seconds.worker.draw")),
    "replan_seconds": (RECOVERY, ("seconds.worker.draw",)),
    "start_seconds": (RECOVERY, ("seconds.worker.forked", "seconds.worker.grouped", "seconds.worker.built")),
    "load_seconds": (RECOVERY, ("seconds.worker.loaded",)),
    "copy_bytes_per_second": (CHECKPOINT, ("sizes.toy.copy_bytes_per_second",)),
    "storage_bytes_per_second": ("an assumption", ()),
}
BYTES_PER_PARAMETER = 16.02  # CHECKPOINT: sizes.toy.bytes_per_parameter
PLAIN_PROCESS, PLAIN_NODE = 8.78, 72.3  # seconds: RECOVERY: ray_train_seconds.worker and .node


def told(section: SimulateSection) -> Iterator[str]:
    """Every constant of the recipe with its source."""
    for name, (file, parts) in SOURCES.items():
        value, default = getattr(section, name), SimulateSection.model_fields[name].default
        source = f"{file}{': ' if parts else ''}{' + '.join(parts).replace('+ -', '- ')}"
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
    if not metrics or not any(event["event"] == "layout" for event in happened):
        raise UserError("simulate.measured: this run has made no step, there is nothing to measure")
    sampling = sum(seconds for cause, seconds in spans(happened, None) if cause == "other")
    account = goodput(happened, metrics)
    lost = account.lost | {"other": account.lost["other"] - sampling}
    found, pauses = broken(happened)
    first, *later = starts(happened)
    start, load = (fmean(part) for part in zip(*(later or [first]), strict=True))
    trial = sum(event["seconds"] for event in happened if event["event"] == "preflight")
    done = len(metrics) + sum(event.get("recomputed", 0) for event in happened)
    price = Price(
        detect=0.0,  # each fault has its own
        detect_node=0.0,
        replan=fmean(pauses or [0.0]),
        start=start,
        load=load,
        commit=0.0,
        durable=fmean([event["seconds"] for event in happened if event["event"] == "commit"] or [0.0]),
        data=fmean(step["data_seconds"] for step in metrics),
        idle=(lost["other"] + lost["checkpoint"]) / done,
        first=max(0.0, first[0] + trial - start),
    )
    return Measured(price, by_stage(metrics), tuple(found), Goodput(account.productive, lost))


def starts(happened: Sequence[Record]) -> list[tuple[float, float]]:
    """(seconds until the engine was built, seconds of loading) of every group that came so far; the first's from the run's start on."""
    found = []
    since = next(event["time"] for event in happened if event["event"] == "start")
    for place, event in enumerate(happened):
        if event["event"] == "generation":
            since = since if not found else event["time"]
            own = [later for later in happened[place:] if later.get("generation") == event["generation"]]
            passed = {each["name"]: each.get("at", each["time"]) for each in own if each["event"] == "milestone"}
            layout = next((each["time"] for each in own if each["event"] == "layout"), None)
            if layout is not None:
                built = passed.get("built", layout)
                found.append((built - since, passed.get("loaded", built) - built))
    return found


def broken(happened: Sequence[Record]) -> tuple[list[Fault], list[float]]:
    """(what broke: when, in seconds of wall time, how long until the group or the controller was gone, how long to the next group's start;
    how long that took where nothing was broken). A start by hand ends a pause, which is nobody's time."""
    found: list[Fault] = []
    pauses: list[float] = []
    begun = away = last = ended = 0.0
    fault: Fault | None = None
    for event in happened:
        now, kind, last_sign = event["time"], event["event"], event.get("happened", event["time"])
        if kind == "start" and "happened" not in event:
            begun, away = begun or now, away + (now - last if begun else 0.0)
        if kind == "failure" or (kind == "start" and last):
            fault = Fault(min(last_sign, now) - begun - away, "process" if kind == "failure" else "controller", detect=now - last_sign)
        if kind in ("failure", "start", "promotion", "roll_back") or (kind == "resize" and not fault):
            ended = now
        if kind == "generation":
            if fault:
                found.append(replace(fault, replan=now - ended))
            elif ended != begun:
                pauses.append(now - ended)
            fault = None
        last = now
    return found, pauses


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
