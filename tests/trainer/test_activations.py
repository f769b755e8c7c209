"""Checkpointing from outside: the same losses and gradients bit for bit, from fewer saved bytes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from model.supervision import AllFrames, TrainingBatch
from model.videomar import VideoMAR
from tests.model.conftest import config, make_batch, model  # noqa: F401 (fixtures)
from trainer.parallel.activations import checkpoint_blocks

MakeBatch = Callable[..., TrainingBatch]


def saved_bytes_and_gradients(network: VideoMAR, batch: TrainingBatch) -> tuple[int, list[torch.Tensor]]:
    """Bytes that autograd keeps of the forward pass, and all gradients."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = network(batch).sum()
    loss.backward()
    return sum(kept.values()), [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_checkpointed_blocks_give_the_same_gradients_from_less_memory(
    mode: str,
    model: VideoMAR,  # noqa: F811
    make_batch: MakeBatch,  # noqa: F811
) -> None:
    batch, other = make_batch(samples=3, frames=5, height=4, width=6, supervision=AllFrames()), copy.deepcopy(model)
    checkpoint_blocks(other, mode)
    plain_bytes, plain = saved_bytes_and_gradients(model, batch)
    fewer_bytes, checkpointed = saved_bytes_and_gradients(other, batch)
    assert len(plain) == len(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))
    assert fewer_bytes < (0.7 if mode == "full" else 0.95) * plain_bytes


def test_none_leaves_the_model_alone(model: VideoMAR) -> None:  # noqa: F811
    before = [block.forward for block in model.blocks]
    checkpoint_blocks(model, "none")
    assert [block.forward for block in model.blocks] == before
