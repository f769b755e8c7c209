"""`simulate`: the paper's recipe on thousands of devices, at once; and the prediction of a run from its own records."""

from __future__ import annotations

import json
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest

from cluster import simulate
from cluster.simulation.constants import BYTES_PER_PARAMETER, CHECKPOINT, PLAIN_NODE, PLAIN_PROCESS, RECOVERY, SOURCES, measured, predicted
from data_pipeline.errors import UserError
from trainer.config import load
from trainer.sections import SimulateSection

REPOSITORY = Path(__file__).parents[2]
CHAOS = "tests/benchmarks/results/2026-11-22-cpu-chaos.json"


def found(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert simulate.command([*arguments, "--json"], {}) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_a_day_at_4096_devices_meets_the_goal_and_half_of_what_plain_restarts_lose(capsys: pytest.CaptureFixture[str]) -> None:
    clusters = found(capsys, "recipe=videomar-1.4b", "simulate.runs=1")["clusters"]
    assert [each["devices"] for each in clusters] == [8, 64, 512, 4096]
    largest = clusters[-1]
    assert largest["ours"]["failures"] > 0
    assert largest["ours"]["goodput"] >= 0.95
    assert largest["lost_ratio"] <= 0.5


def test_the_text_names_every_constant_and_where_it_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate.command(["recipe=videomar-1.4b", "simulate.world=64", "simulate.runs=1", "simulate.start_seconds=9"], {}) == 0
    said = capsys.readouterr().out
    assert all(f"simulate.{name} = " in said for name in SOURCES)
    assert "simulate.start_seconds = 9: given" in said
    assert "64 devices: time lost with our restarts / with plain ones" in said


def test_the_named_measurements_are_there_and_are_the_defaults() -> None:
    for name, (file, parts) in SOURCES.items():
        if parts:
            measurement = json.loads((REPOSITORY / file).read_text())
            signed = [(part.removeprefix("-"), -1 if part.startswith("-") else 1) for part in parts]
            value = sum(sign * reduce(getitem, part.split("."), measurement) for part, sign in signed)
            assert SimulateSection.model_fields[name].default == pytest.approx(value, rel=0.02), name
    plain = json.loads((REPOSITORY / RECOVERY).read_text())["ray_train_seconds"]
    assert (plain["worker"], plain["node"]) == pytest.approx((PLAIN_PROCESS, PLAIN_NODE), rel=0.02)
    checkpoint = json.loads((REPOSITORY / CHECKPOINT).read_text())
    assert checkpoint["sizes"]["toy"]["bytes_per_parameter"] == pytest.approx(BYTES_PER_PARAMETER, rel=1e-3)


def test_a_lost_node_costs_in_all_what_was_measured_of_one() -> None:
    measured_parts = json.loads((REPOSITORY / RECOVERY).read_text())["seconds"]["node"]
    until_loaded = sum(measured_parts[part] for part in ("detect", "draw", "forked", "grouped", "built", "loaded"))
    section = SimulateSection()
    told = section.detect_node_seconds + section.replan_seconds + section.start_seconds + section.load_seconds
    assert told == pytest.approx(until_loaded, rel=0.02)


def test_a_run_is_predicted_from_its_own_records() -> None:
    """A run that was itself simulated, with constants that the prediction does not see."""
    config = load(["train.commit_every=7", "guard.sigma=5"])
    job = simulate.Job(config.curriculum.stages, 7, lambda stage, nodes: (nodes, 0.2 + 0.1 * stage))
    price = simulate.Price(0.5, 0.5, 0.4, 1.1, 0.3, 0.02, 0.1, data=0.01, idle=0.02)
    weather = simulate.faults(5, 200 / 3600, 20 / 3600, 0.0, 0.0, 1.0)
    run = simulate.Virtual(job, simulate.Cluster(1, 0, 1e6), price, weather)
    run.live()
    run.tell("finish")
    constants = measured(run.events, run.steps)
    assert len(constants.faults) > 4
    assert predicted(config, constants).ratio == pytest.approx(constants.account.ratio, rel=0.05)


def test_three_measured_chaos_runs_were_predicted_within_5_percent() -> None:
    told = json.loads((REPOSITORY / CHAOS).read_text())["predictions"]
    assert len(told) >= 3
    assert all(abs(run["predicted"]["ratio"] / run["measured"]["ratio"] - 1) <= 0.05 for run in told)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["simulate.node_share=0.9", "simulate.preempted_share=0.2"], "together at most 1"),
        (["simulate.mtbf=2"], "unknown key; did you mean simulate.mtbf_hours"),
        (["simulate.measured=/nowhere"], "is no run's folder"),
        (["recipe=videomar-1.4b", "plan.memory=1GB", "simulate.world=8"], "does not fit on 8 devices"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        simulate.command(arguments, {})
    assert "\n" not in str(caught.value)
