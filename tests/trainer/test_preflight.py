"""Preflight: every stage is tried before the first step, nothing of it stays, and out of memory leads to a smaller micro-batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.distributed.harness import RankFailed, run_ranks
from tests.distributed.training import recipe, stage, train
from trainer import lease
from trainer.config import RunConfig
from trainer.engine import Engine
from trainer.events import read_events
from trainer.micro_batches import halve, limits

STAGES = [stage("short", 3, frames=5), stage("long", 3)]
ROOM = 10  # samples per pass that the planted device has memory for


def one_generation(world: int, run: Path, dataset: Path, config: RunConfig, target: Any = train) -> list[dict[str, Any]]:
    run.mkdir(exist_ok=True)
    lease.draw(run)
    return run_ranks(world, target, config, run, dataset, timeout=240)[0]


def starved(*arguments: Any) -> list[dict[str, Any]]:
    """Training on a device whose memory holds ROOM samples of the long stage."""
    losses = Engine.losses

    def or_out_of_memory(engine: Engine, batch: Any) -> Any:
        if batch.latents.shape[1] > 2 and len(batch.latents) > ROOM:
            raise torch.OutOfMemoryError("planted")
        return losses(engine, batch)

    with patch.object(Engine, "losses", or_out_of_memory):
        return train(*arguments)


@pytest.mark.parametrize(("world", "zero"), [(1, 0), (2, 1), (2, 2), (2, 3)])
def test_trying_every_stage_first_changes_no_number(world: int, zero: int, tiny_dataset: Path, tmp_path: Path) -> None:
    tried, straight = (
        one_generation(world, tmp_path / str(on), tiny_dataset, recipe(STAGES, zero=zero, preflight=on, micro_batch=7))
        for on in (True, False)
    )
    assert [(line["loss"], line["grad_norm"]) for line in tried] == [(line["loss"], line["grad_norm"]) for line in straight]
    assert not any(line["skipped"] for line in tried)
    (event,) = (event for event in read_events(tmp_path / "True") if event["event"] == "preflight")
    assert [figures["stage"] for figures in event["stages"]] == ["short", "long"]
    assert all(figures["peak_bytes"] > 0 and figures["seconds"] > 0 for figures in event["stages"])
    assert event["bus_bytes_per_second"] is None if world == 1 else event["bus_bytes_per_second"] > 0


def test_out_of_memory_in_the_last_stage_shows_before_the_first_step_and_halves_its_micro_batch(tiny_dataset: Path, tmp_path: Path) -> None:
    run, config = tmp_path / "run", recipe(STAGES, micro_batch=39)
    for half in (19, 6):
        with pytest.raises(RankFailed, match=f"stage long: out of memory with .* samples per pass; planning again with {half}"):
            one_generation(1, run, tiny_dataset, config, starved)
        assert limits(run) == {"long": half}
    lines = one_generation(1, run, tiny_dataset, config, starved) + one_generation(1, run, tiny_dataset, config, starved)
    assert {line["stage"]: line["micro_batch"] for line in lines} == {"short": 39, "long": 5}
    told = [event for event in read_events(run) if event["event"] == "out_of_memory"]
    assert [(event["stage"], event["micro_batch"], event["next_micro_batch"]) for event in told] == [("long", 39, 19), ("long", 13, 6)]


def test_the_next_start_of_a_run_does_not_try_again(tiny_dataset: Path, tmp_path: Path) -> None:
    run, config = tmp_path / "run", recipe(STAGES)
    for _ in STAGES:
        one_generation(1, run, tiny_dataset, config)
    assert [event["event"] for event in read_events(run)].count("preflight") == 1


def test_a_single_sample_that_does_not_fit_notes_nothing(tmp_path: Path) -> None:
    assert halve(tmp_path, "long", 1) == 0
    assert limits(tmp_path) == {}
    assert (halve(tmp_path, "long", 9), halve(tmp_path, "short", 4)) == (4, 2)
    assert limits(tmp_path) == {"long": 4, "short": 2}
