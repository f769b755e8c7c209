"""What each rank tells of its step, on real processes: a slow rank shows in its own forward, and in its peers' reduction."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.distributed.harness import run_ranks
from tests.distributed.training import payload, recipe, stage
from trainer import lease, process
from trainer.config import RunConfig
from trainer.sections import MetricsSection

STEPS, LATE = 3, 0.3  # seconds


def pulses(rank: int, world: int, host: str, port: int, listener: Any, config: RunConfig, run: Path, dataset: Path) -> list[dict[str, Any]]:
    """What a rank tells of its steps; rank 1 is slow."""
    torch.set_num_threads(1)
    told: list[dict[str, Any]] = []
    build = process.initial_model

    def slow(*given: Any) -> Any:
        model = build(*given)
        if rank == 1:
            model.blocks[0].register_forward_pre_hook(lambda *_: time.sleep(LATE))
        return model

    with patch.object(process, "initial_model", slow):
        group = {"rank": rank, "world": world, "host": host, "port": port}
        process.run(payload(config, run, dataset) | group, told.append, listener)
    return [message for message in told if message["kind"] == "rank"]


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_who_waits_for_a_slow_rank_waits_where_gradients_are_reduced(zero: int, tiny_dataset: Path, tmp_path: Path) -> None:
    config = recipe([stage("short", STEPS)], zero=zero).model_copy(update={"metrics": MetricsSection(port=1)})
    lease.draw(tmp_path)
    fast, slow = run_ranks(2, pulses, config, tmp_path, tiny_dataset)
    assert [(step["rank"], len(steps)) for steps in (fast, slow) for step in steps[:1]] == [(0, STEPS), (1, STEPS)]
    assert all(step["rank_forward_seconds"] >= LATE for step in slow)
    if zero == 3:
        assert all("rank_reduction_seconds" not in step for step in [*fast, *slow])
        return
    assert all(0 < step["rank_reduction_seconds"] < step["rank_step_seconds"] for step in [*fast, *slow])
    assert sum(step["rank_reduction_seconds"] for step in fast) > sum(step["rank_reduction_seconds"] for step in slow)
