"""Promise 3: a commit saved under any of six layouts loads under any other, and training goes on as if nothing had happened."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.distributed.harness import run_ranks
from tests.distributed.training import awake_model, payload, recipe, stage
from trainer import lease, process
from trainer.checkpoint import store
from trainer.checkpoint.commit import last_commit
from trainer.checkpoint.fragments import Fragment
from trainer.config import RunConfig
from trainer.heartbeat import Heartbeat
from trainer.metrics import read_metrics

LOAD = store.load_fragments
BEFORE, AFTER = 4, 3  # steps until the commit, and from it
LAYOUTS: dict[str, dict[str, Any]] = {
    "4 ranks, zero 3, tp 2": {"world": 4, "zero": 3, "tp": 2},
    "4 ranks, zero 2, sp 2": {"world": 4, "zero": 2, "sp": 2},
    "2 ranks, zero 3": {"world": 2, "zero": 3},
    "2 ranks, zero 1, tp 2, megatron-sp": {"world": 2, "zero": 1, "tp": 2, "megatron_sp": True},
    "1 rank, zero 0": {"world": 1, "zero": 0},
    "3 ranks, zero 1": {"world": 3, "zero": 1},
}
WORLDS = (4, 2, 1, 3)
KINDS = ("weight", "exp_avg", "exp_avg_sq", "ema")
Job = tuple[Path, RunConfig]  # a run's folder and the layout to live in


def config_of(layout: str, stages: list[dict[str, Any]]) -> RunConfig:
    return recipe(stages, **{key: value for key, value in LAYOUTS[layout].items() if key != "world"})


def lives(rank: int, world: int, host: str, port: int, listener: Any, jobs: list[Job], dataset: Path, forgotten: str = "") -> None:
    """One generation of each run, one after the other, in the same processes; `forgotten` is a kind of tensor that is not loaded."""
    torch.set_num_threads(1)
    group = {"rank": rank, "world": world, "host": host, "port": port}
    device = process.join_group(group, listener)
    with awake_model(), patch.object(store, "load_fragments", partial(load_all_but, forgotten)):
        for run, config in jobs:
            told = payload(config, run, dataset)
            beat = Heartbeat(ignore, run, told["generation"], rank)
            process.live(told | group, ignore, beat, device, 0.0)
            torch.distributed.barrier()


def ignore(message: dict[str, Any]) -> None:
    """Nobody listens."""


def load_all_but(forgotten: str, folder: Path, fragments: list[Fragment]) -> None:
    LOAD(folder, [replace(each, tensors={kind: view for kind, view in each.tensors.items() if kind != forgotten}) for each in fragments])


def live_all(jobs: dict[str, list[Job]], dataset: Path) -> None:
    """Jobs by layout, each world size's in one set of processes."""
    for world in WORLDS:
        own = [job for layout, some in jobs.items() if LAYOUTS[layout]["world"] == world for job in some]
        for run, _ in own:
            lease.draw(run)
        run_ranks(world, lives, own, dataset, timeout=100.0)


@pytest.fixture(scope="module")
def continued(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: "unbroken", and "<saved under> to <loaded under>" for all pairs."""
    root = tmp_path_factory.mktemp("reshard")
    stages = [stage("before", BEFORE), stage("after", AFTER)]
    lease.draw(root / "unbroken")
    unbroken = config_of("1 rank, zero 0", [stage("whole", BEFORE + AFTER)])
    run_ranks(1, lives, [(root / "unbroken", unbroken)], tiny_dataset)
    live_all({layout: [(root / layout, config_of(layout, stages))] for layout in LAYOUTS}, tiny_dataset)
    for there in LAYOUTS:
        for here in LAYOUTS:
            shutil.copytree(root / there, root / f"{there} to {here}")
    jobs = {here: [(root / f"{there} to {here}", config_of(here, stages)) for there in LAYOUTS] for here in LAYOUTS}
    live_all(jobs, tiny_dataset)
    for kind in KINDS:
        shutil.copytree(root / "2 ranks, zero 3", root / kind)
        lease.draw(root / kind)
        run_ranks(1, lives, [(root / kind, config_of("1 rank, zero 0", stages))], tiny_dataset, kind)
    return root


def tensors(run: Path) -> dict[tuple[str, str], torch.Tensor]:
    """All logical tensors of a run's last commit by (kind, name)."""
    commit = last_commit(run)
    assert commit is not None
    assert commit.state.step == BEFORE + AFTER
    kinds: dict[str, dict[str, torch.Size]] = {}
    for (kind, name), chunks in store.stored_chunks(commit.folder).items():
        kinds.setdefault(kind, {})[name] = torch.Size(chunks[0].shape)
    return {
        (kind, name): tensor for kind, shapes in kinds.items() for name, tensor in store.load_tensors(commit.folder, kind, shapes).items()
    }


@pytest.mark.parametrize("here", LAYOUTS)
@pytest.mark.parametrize("there", LAYOUTS)
def test_what_one_layout_saved_another_continues_like_the_unbroken_run(there: str, here: str, continued: Path) -> None:
    lines, expected = read_metrics(continued / f"{there} to {here}"), read_metrics(continued / "unbroken")
    assert [line["step"] for line in lines] == list(range(1, BEFORE + AFTER + 1))
    assert lines[-1]["world_size"] == LAYOUTS[here]["world"]
    for line, other in zip(lines, expected, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
    found, unbroken = tensors(continued / f"{there} to {here}"), tensors(continued / "unbroken")
    assert found.keys() == unbroken.keys()
    assert {kind for kind, _ in found} == set(KINDS)
    assert largest_difference(found, unbroken) <= 1e-4


def largest_difference(found: dict[tuple[str, str], torch.Tensor], expected: dict[tuple[str, str], torch.Tensor]) -> float:
    """Of any tensor, relative to its norm."""
    return max(float((found[key] - tensor).norm() / tensor.norm()) for key, tensor in expected.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_tensor_that_is_not_loaded_is_noticed(kind: str, continued: Path) -> None:
    assert largest_difference(tensors(continued / kind), tensors(continued / "unbroken")) > 1e-2
