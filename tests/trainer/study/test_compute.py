"""FLOPs of a run against the model's own sequences with targets as they are drawn, and the curve that a run's files tell."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.buckets import Bucket
from data_pipeline.spec import EncodeSpec
from model.flops import training_flops
from tests.trainer.report_page import event, step
from trainer.batches import supervision_of
from trainer.config import RunConfig, load
from trainer.mixture import ingredients
from trainer.planning.memory import parameters
from trainer.sizing import model_of, planned_model
from trainer.study.compute import compute_by_step, curve, outcome, step_flops

STILLS: dict[str, Any] = {"frames": 1, "height": 64, "width": 64, "share": 0.25, "steps": 2}
STAGES = [
    {"name": name, "frames": frames, "height": 64, "width": 64, "tokens_per_step": 4096, "promotion": {"max_steps": 5}}
    for name, frames in (("first", 9), ("second", 17))
]


def recipe(*arguments: str) -> RunConfig:
    stages = [STAGES[0] | {"mix": [STILLS]}, STAGES[1]]
    return load([f"curriculum.stages={json.dumps(stages)}", "train.warmup_steps=5", *arguments])


@pytest.mark.parametrize("supervision", ["one_frame", "all_frames"])
def test_a_step_costs_what_its_samples_sequences_cost(supervision: str) -> None:
    config, rng = recipe(f"train.supervision={supervision}"), np.random.default_rng(0)
    stage, model, lays = config.curriculum.stages[0], planned_model(config), supervision_of(config.train)
    total = 0.0
    for part in ingredients(stage, config.data.stride):
        drawn = [lays.draw(rng, part.frames, part.tokens, model) for _ in range(200)]
        costs = [training_flops(model, lays.sequence([one], part.frames, part.tokens).visibility, one.supervised) for one in drawn]
        total += part.samples * float(np.mean(costs))
    assert step_flops(config, stage) == pytest.approx(total, rel=0.03)


def test_compute_adds_up_over_stages_and_over_what_is_mixed_in_for_a_while() -> None:
    config = recipe()
    first, second = config.curriculum.stages
    with_stills, plain, last = step_flops(config, first), step_flops(config, first.at(2)), step_flops(config, second)
    costs = np.diff([0.0, *compute_by_step(config, ["first"] * 5 + ["second"] * 2, {})])
    assert costs == pytest.approx([with_stills, with_stills, plain, plain, plain, last, last])
    assert with_stills != plain


def test_a_wider_or_deeper_model_costs_more() -> None:
    costs = [
        step_flops(config, config.curriculum.stages[1]) for config in map(recipe, ("model.width=96", "model.width=192", "model.depth=9"))
    ]
    assert costs == sorted(costs)


def test_the_curve_is_of_the_last_stage_as_it_stands_after_the_warm_up() -> None:
    config = recipe()
    metrics = [step(number, "first" if number <= 5 else "second") for number in range(1, 9)]
    spent = compute_by_step(config, [line["stage"] for line in metrics], {})
    happened = [
        event("evaluation", stage="first", step=5, held_out_loss=9.0),
        event("evaluation", stage="second", step=6, held_out_loss=0.9),
        event("evaluation", stage="second", step=7, held_out_loss=0.8),  # of a step that a restart computes again
        event("layout", stage="second", step=6),
        event("evaluation", stage="second", step=7, held_out_loss=0.7),
        event("evaluation", stage="second", step=8, held_out_loss=float("nan")),
    ]
    assert curve(config, metrics, happened) == [(spent[5], 0.9), (spent[6], 0.7)]
    late = recipe("train.warmup_steps=6")
    assert curve(late, metrics, happened) == [(spent[6], 0.7)]


def test_a_finished_run_is_counted_with_what_its_data_was_made_with(tmp_path: Path) -> None:
    config = recipe("train.warmup_steps=0", "data.stride=[4,8,8]")
    buckets = (Bucket(1, 64, 64), Bucket(9, 64, 64), Bucket(17, 64, 64))
    fine = EncodeSpec(fps=8, buckets=buckets, channels=7, stride=(8, 16, 16), text_width=48)  # as a tokenizer of its own has it
    coarse = replace(fine, stride=(16, 32, 32), buckets=buckets[2:])
    metrics = [step(number, "first" if number <= 5 else "second") for number in range(1, 8)]
    happened = [
        event("layout", stage="first", step=0, spec=fine.to_json()),
        event("layout", stage="second", step=5, spec=coarse.to_json()),
        event("evaluation", stage="second", step=7, held_out_loss=0.7),
    ]
    for name, lines in (("metrics", metrics), ("events", happened)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = outcome(config, tmp_path)
    first, second = config.curriculum.stages
    costs = [step_flops(config, first, fine)] * 2 + [step_flops(config, first.at(2), fine)] * 3 + [step_flops(config, second, coarse)] * 2
    assert told["flops"] == pytest.approx(sum(costs))
    assert told["curve"] == [(told["flops"], 0.7)]
    assert told["parameters"] == parameters(model_of(config, coarse)) != parameters(planned_model(config))
    assert told["flops"] != pytest.approx(compute_by_step(config, [line["stage"] for line in metrics], {})[-1])
