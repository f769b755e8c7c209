"""Files of boxes: any ranks read what any other ranks wrote, in any cut, and what does not fit is refused by name."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from data_pipeline.errors import UserError
from trainer.checkpoint.files import write_data
from trainer.checkpoint.fragments import Box, Fragment, whole
from trainer.checkpoint.store import file_header, load_fragments, load_tensors


def write(folder: Path, rank: int, fragments: list[Fragment]) -> None:
    data = torch.cat([view for fragment in fragments for view in fragment.tensors.values()])
    write_data(folder / f"rank-{rank:05d}.safetensors", [memoryview(file_header(fragments)), memoryview(data.numpy()).cast("B")])


def cut(tensor: Tensor, name: str, shards: int, dim: int, parts: int) -> list[Fragment]:
    """The tensor sharded along a dimension as by tensor parallelism, each shard's flat elements cut in ranges as by ZeRO."""
    fragments, offset = [], [0] * tensor.ndim
    for shard in tensor.chunk(shards, dim) if tensor.ndim else [tensor]:
        box, flat = Box(tuple(offset), tuple(shard.shape)), shard.reshape(-1)
        edges = [round(flat.numel() * part / parts) for part in range(parts + 1)]
        for low, high in pairwise(edges):
            if low < high:
                views = {"weight": flat[low:high].clone(), "exp_avg": -flat[low:high]}
                fragments.append(Fragment(name, tuple(tensor.shape), box, low, high, views))
        if tensor.ndim:
            offset[dim] += shard.shape[dim]
    return fragments


CUTS = st.tuples(st.integers(1, 4), st.integers(0, 2), st.integers(1, 5))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 6), max_size=3), CUTS, CUTS)
def test_any_cut_reads_what_any_other_cut_wrote(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], writing: tuple[int, int, int], reading: tuple[int, int, int]
) -> None:
    folder, tensor = tmp_path_factory.mktemp("store"), torch.arange(float(math.prod(shape))).view(shape) + 1
    dims = max(1, len(shape))
    for rank, fragment in enumerate(cut(tensor, "w", writing[0], writing[1] % dims, writing[2])):
        write(folder, rank, [fragment])
    expected = cut(tensor, "w", reading[0], reading[1] % dims, reading[2])
    found = cut(torch.zeros(shape), "w", reading[0], reading[1] % dims, reading[2])
    load_fragments(folder, found)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.tensors["weight"], other.tensors["weight"])
        assert torch.equal(one.tensors["exp_avg"], other.tensors["exp_avg"])
    assert torch.equal(load_tensors(folder, "weight", {"w": tensor.shape})["w"], tensor)


def test_any_safetensors_reader_opens_a_file(tmp_path: Path) -> None:
    write(tmp_path, 0, cut(torch.arange(12.0).view(3, 4), "w", 1, 0, 2))
    found = load_file(tmp_path / "rank-00000.safetensors")
    assert {key: tuple(tensor.shape) for key, tensor in found.items() if key.startswith("weight")} == {
        "weight|w|0,0": (1, 4),
        "weight|w|1,0": (1, 2),
        "weight|w|1,2": (1, 2),
        "weight|w|2,0": (1, 4),
    }
    assert found["weight|w|1,2"].tolist() == [[6.0, 7.0]]


def test_a_commit_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, 0, [whole("w", (3,), {"weight": torch.ones(3)})])
    with pytest.raises(UserError, match=r"w is \[3\] there and \[5\] here: .*run\.name"):
        load_fragments(tmp_path, [whole("w", (5,), {"weight": torch.zeros(5)})])
    with pytest.raises(UserError, match="2 elements of weight of other are missing"):
        load_tensors(tmp_path, "weight", {"other": torch.Size([2])})
    with pytest.raises(UserError, match="3 elements of ema of w are missing"):
        load_tensors(tmp_path, "ema", {"w": torch.Size([3])})
