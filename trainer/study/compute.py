"""What a run of a study has reached with how much compute: FLOPs by model/flops.py, losses from the run's own files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from data_pipeline.spec import EncodeSpec
from model.config import ModelConfig
from trainer.config import RunConfig
from trainer.curriculum import Stage
from trainer.events import read_events, standing
from trainer.metrics import read_metrics
from trainer.mixture import ingredients
from trainer.planning.cost import mean_flops
from trainer.planning.memory import parameters
from trainer.planning.workload import sequences_of
from trainer.sizing import latents_of, model_of, planned_model

Record = dict[str, Any]


def specs_of(happened: Sequence[Record]) -> dict[str, EncodeSpec]:
    """What the data that each stage was trained on was made with, by the stage's name."""
    return {event["stage"]: EncodeSpec.from_json(event["spec"]) for event in happened if event["event"] == "layout" and "spec" in event}


def sized_by(config: RunConfig, spec: EncodeSpec | None) -> ModelConfig:
    """The model that trains on data of a spec, or without one the model that the recipe plans with."""
    return model_of(config, spec) if spec else planned_model(config)


def step_flops(config: RunConfig, stage: Stage, spec: EncodeSpec | None = None) -> float:
    """FLOPs of an optimiser step of a stage, what is mixed in included: the mean over the targets and mask ratios that are drawn. `spec`
    is that of the stage's data, without which sizes and strides are as the recipe says."""
    parts = ingredients(stage, spec.stride if spec else latents_of(config, stage).stride)
    model = sized_by(config, spec)
    return sum(3 * part.samples * sum(mean_flops(model, sequences_of(config.train, part.frames, part.tokens))) for part in parts)


def compute_by_step(config: RunConfig, stages: Sequence[str], specs: Mapping[str, EncodeSpec]) -> list[float]:
    """FLOPs from the run's beginning to the end of each step, from the name of each step's stage."""
    named = {stage.name: stage for stage in config.curriculum.stages}
    cost, begun = lru_cache(lambda stage: step_flops(config, stage, specs.get(stage.name))), dict[str, int]()
    costs = []
    for name in stages:
        begun[name] = begun.get(name, -1) + 1
        costs.append(cost(named[name].at(begun[name])))
    return list(accumulate(costs))


def curve(config: RunConfig, metrics: Sequence[Record], happened: Sequence[Record]) -> list[tuple[float, float]]:
    """(FLOPs, held-out loss) of every evaluation of the last stage after the warm-up; other stages' losses are of other clips."""
    spent = compute_by_step(config, [step["stage"] for step in metrics], specs_of(happened))
    last, warm = config.curriculum.stages[-1].name, config.train.warmup_steps
    told = [event for event in standing(happened) if event["event"] == "evaluation" and event["stage"] == last]
    found = [(spent[event["step"] - 1], event["held_out_loss"]) for event in told if event["step"] > warm]
    return [(compute, loss) for compute, loss in found if math.isfinite(loss)]


def outcome(config: RunConfig, run: Path) -> Record:
    """Of a finished run: its parameters, steps, FLOPs, the last held-out loss (None without one that is a number) and the curve."""
    metrics, happened = read_metrics(run), read_events(run)
    specs = specs_of(happened)
    spent, points = compute_by_step(config, [str(step["stage"]) for step in metrics], specs), curve(config, metrics, happened)
    size = parameters(sized_by(config, specs.get(config.curriculum.stages[-1].name)))
    loss = points[-1][1] if points else None
    return {"parameters": size, "steps": len(metrics), "flops": spent[-1], "held_out_loss": loss, "curve": points}
