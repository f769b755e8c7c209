"""Promise 1, first form: the losses of a recipe do not depend on the number of workers, on ZeRO, on the micro-batch or on restarts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.harness import RankFailed, run_ranks
from tests.distributed.training import recipe, stage, train
from trainer import lease
from trainer.checkpoint.commit import commits, last_commit
from trainer.config import RunConfig
from trainer.events import read_events

STEPS = 20
STAGES = [stage("long", STEPS)]
MISTAKES = ["noise by rank", "wrong mask on one rank", "gradient of each rank's own mean", "gradient scaled", "padding counts"]


def losses(lines: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in lines]


def train_on(world: int, run: Path, dataset: Path, config: RunConfig, plant: str = "", die_at: int = 0) -> list[dict[str, Any]]:
    """metrics.jsonl after one generation on `world` processes."""
    run.mkdir(exist_ok=True)
    lease.draw(run)
    return run_ranks(world, train, config, run, dataset, plant, die_at)[0]


def largest_relative_difference(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> float:
    """Over all steps, of losses and of gradient norms: clipping and AdamW hide a wrong scale of the gradient from the losses."""
    assert len(found) == len(expected) == STEPS
    pairs = [(a[key], b[key]) for a, b in zip(found, expected, strict=True) for key in ("loss", "grad_norm") if b[key] is not None]
    assert all(a is not None for a, _ in pairs)
    return max(abs(a - b) / abs(b) for a, b in pairs)


@pytest.fixture(scope="module")
def one_worker(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    lines = train_on(1, tmp_path_factory.mktemp("one") / "run", tiny_dataset, recipe(STAGES))
    assert all(line["grad_norm"] > 0.05 for line in lines), "clipping must be active in every step"
    assert losses(lines)[-1] < losses(lines)[0]
    return lines


@pytest.mark.parametrize(("world", "settings"), [(2, {}), (2, {"zero": 0}), (1, {"micro_batch": 7}), (2, {"micro_batch": 5})])
def test_losses_equal_one_worker(
    world: int, settings: dict[str, int], one_worker: list[dict[str, Any]], tiny_dataset: Path, tmp_path: Path
) -> None:
    lines = train_on(world, tmp_path / "run", tiny_dataset, recipe(STAGES, **settings))
    assert lines[0]["dp"] == world
    assert largest_relative_difference(lines, one_worker) <= 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"supervision": "one_frame"},
        {"head": "flow"},
        {"masks_per_frame": 2, "checkpointing": "selective"},
        {"block": 2, "context_noise": 0.3, "context_masked": 0.2, "conditions": ("fps", "motion", "context_noise")},
    ],
    ids=str,
)
def test_every_objective_gives_the_same_losses_on_two_workers(settings: dict[str, Any], tiny_dataset: Path, tmp_path: Path) -> None:
    one, two = (train_on(world, tmp_path / str(world), tiny_dataset, recipe(STAGES, **settings)) for world in (1, 2))
    assert largest_relative_difference(two, one) <= 1e-5


def test_stills_and_earlier_clips_mixed_in_count_by_their_weight_on_any_number_of_workers(tiny_dataset: Path, tmp_path: Path) -> None:
    mix = [{"frames": 1, "height": 32, "width": 32, "share": 0.25, "weight": 0.5}, {"frames": 5, "height": 32, "width": 32, "share": 0.24}]
    stages = [stage("mixed", STEPS) | {"mix": mix}]
    one, two = (train_on(world, tmp_path / str(world), tiny_dataset, recipe(stages)) for world in (1, 2))
    assert largest_relative_difference(two, one) <= 1e-5
    assert list(one[0]["loss_by_source"]) == ["9x32x32", "1x32x32", "5x32x32"]
    low, high = min(one[0]["loss_by_source"].values()), max(one[0]["loss_by_source"].values())
    assert low < one[0]["loss"] < high
    sums = [sum(value for value in line["loss_by_source"].values()) for line in (one[0], one[-1])]
    assert sums[1] < sums[0]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_noticed(mistake: str, one_worker: list[dict[str, Any]], tiny_dataset: Path, tmp_path: Path) -> None:
    lines = train_on(2, tmp_path / "run", tiny_dataset, recipe(STAGES), mistake)
    assert largest_relative_difference(lines, one_worker) > 1e-5


def test_a_killed_worker_and_a_change_of_world_size_leave_no_trace(
    one_worker: list[dict[str, Any]], tiny_dataset: Path, tmp_path: Path
) -> None:
    run, config = tmp_path / "run", recipe(STAGES, commit_every=6)
    with pytest.raises(RankFailed, match="rank 0 died"):
        train_on(2, run, tiny_dataset, config, die_at=9)
    found = last_commit(run)
    assert found is not None
    assert found.state.step == 6
    lines = train_on(1, run, tiny_dataset, config)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert largest_relative_difference(lines, one_worker) <= 1e-5


def test_stages_follow_each_other_from_their_commits(tiny_dataset: Path, tmp_path: Path) -> None:
    run, config = tmp_path / "run", recipe([stage("short", 4, frames=5), stage("long", 3)])
    train_on(2, run, tiny_dataset, config)
    lines = train_on(2, run, tiny_dataset, config)
    assert [line["stage"] for line in lines] == ["short"] * 4 + ["long"] * 3
    assert [len(line["loss_by_frame"]) for line in lines] == [2] * 4 + [3] * 3
    assert [event["step"] for event in read_events(run) if event["event"] == "commit"] == [4, 7], "each stage ends with one commit"
    newest = commits(run)[0].state
    assert (newest.stage, newest.samples) == (2, {"5x32x32": 4 * 39, "9x32x32": 3 * 39})
