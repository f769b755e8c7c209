"""The same passes on one worker and on two are the same run to the last bit: rounding cannot grow into another run when workers come and
go, and a fault cannot hide behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.harness import run_ranks
from tests.distributed.training import recipe, stage, train
from trainer import lease
from trainer.checkpoint.commit import last_commit
from trainer.checkpoint.store import read_box, stored_chunks

STEPS, SAMPLES = 12, 8
Tensors = dict[tuple[str, str], torch.Tensor]


def trained(world: int, run: Path, dataset: Path, **settings: Any) -> tuple[list[tuple[float, float]], Tensors]:
    """(loss and gradient norm of every step, every stored tensor) after steps of two passes."""
    run.mkdir()
    lease.draw(run)
    config = recipe([stage("only", STEPS, samples=SAMPLES)], micro_batch=SAMPLES // 2, clip=0.5, **settings)
    lines = run_ranks(world, train, config, run, dataset)[0]
    found = last_commit(run)
    assert found is not None
    assert len(lines) == STEPS
    assert any(line["grad_norm"] > 0.5 for line in lines), "some steps must be clipped"
    return [(line["loss"], line["grad_norm"]) for line in lines], stored(found.folder)


def stored(commit: Path) -> Tensors:
    """Every logical tensor of a commit, whole."""
    tensors = {}
    for key, chunks in stored_chunks(commit).items():
        whole = torch.full(chunks[0].shape, torch.nan)
        for chunk in chunks:
            place = tuple(slice(start, start + extent) for start, extent in zip(chunk.box.offset, chunk.box.extent, strict=True))
            whole[place] = read_box(chunk, chunk.box).view(chunk.box.extent)
        tensors[key] = whole
    return tensors


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_two_workers_make_the_bits_of_one(zero: int, tiny_dataset: Path, tmp_path: Path) -> None:
    alone, weights = trained(1, tmp_path / "one", tiny_dataset)
    together, others = trained(2, tmp_path / "two", tiny_dataset, zero=zero)
    assert together == alone
    assert weights.keys() == others.keys()
    assert [key for key in weights if not torch.equal(weights[key], others[key])] == []
