"""Commits: only whole ones are chosen, stale writers are fenced off, old ones are pruned, any ranks read what any ranks wrote."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer import lease
from trainer.checkpoint.commit import MARKER, Commit, commit_folder, commits, file_record, last_commit, prune, resume_point, write_marker
from trainer.checkpoint.fragments import Box, Fragment
from trainer.checkpoint.store import load_fragments, load_tensors, save_fragments
from trainer.curriculum import RunState
from trainer.journal import Fenced, Journal
from trainer.metrics import metrics_path


def make(run: Path, step: int, generation: int = 1, reason: str = "periodic") -> Commit:
    folder = commit_folder(run, step, generation)
    folder.mkdir(parents=True)
    (folder / "rank-00000.safetensors").write_bytes(b"x" * step)
    commit = Commit(folder, RunState(step=step, held_out=(0.5,)), generation, "data", reason)
    write_marker(folder, commit, [file_record(folder / "rank-00000.safetensors")], lambda: None)
    return commit


def test_a_commit_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = make(tmp_path, 12)
    assert last_commit(tmp_path) == written


def test_the_newest_step_wins_and_then_the_newest_generation(tmp_path: Path) -> None:
    make(tmp_path, 10, 1), make(tmp_path, 20, 1), make(tmp_path, 20, 3)
    found = last_commit(tmp_path)
    assert found is not None
    assert (found.state.step, found.generation) == (20, 3)


@pytest.mark.parametrize("damage", ["no marker", "torn marker", "short file", "missing file"])
def test_a_torn_commit_is_passed_over_for_the_previous_one(tmp_path: Path, damage: str) -> None:
    make(tmp_path, 10)
    folder = make(tmp_path, 20).folder
    if damage == "no marker":
        (folder / MARKER).unlink()
    elif damage == "torn marker":
        (folder / MARKER).write_text((folder / MARKER).read_text()[:-9])
    elif damage == "short file":
        (folder / "rank-00000.safetensors").write_bytes(b"x")
    else:
        (folder / "rank-00000.safetensors").unlink()
    found = last_commit(tmp_path)
    assert found is not None
    assert found.state.step == 10


def test_a_stale_writer_cannot_commit_or_publish(tmp_path: Path) -> None:
    journal = Journal(tmp_path, lease.draw(tmp_path), 0, lambda message: None)
    journal.check_owner()
    lease.draw(tmp_path)
    folder = commit_folder(tmp_path, 5, 1)
    folder.mkdir(parents=True)
    with pytest.raises(Fenced, match="generation 1 no longer owns"):
        write_marker(folder, Commit(folder, RunState(), 1, "data", "periodic"), [], journal.check_owner)
    assert last_commit(tmp_path) is None


def published(run: Path, steps: int) -> None:
    metrics_path(run).write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, steps + 1)))


def test_a_commit_ahead_of_the_metrics_is_a_stale_writers_and_passed_over(tmp_path: Path) -> None:
    make(tmp_path, 10), make(tmp_path, 20)
    published(tmp_path, 15)
    found = resume_point(tmp_path)
    assert found is not None
    assert found.state.step == 10


def test_a_commit_with_a_flipped_bit_is_passed_over(tmp_path: Path) -> None:
    make(tmp_path, 10)
    (make(tmp_path, 20).folder / "rank-00000.safetensors").write_bytes(b"x" * 19 + b"y")
    published(tmp_path, 20)
    found = resume_point(tmp_path)
    assert found is not None
    assert found.state.step == 10


def test_pruning_keeps_the_newest_the_stage_ends_and_nothing_torn(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        make(tmp_path, step, reason="end of stage one" if step == 1 else "periodic")
    torn = commit_folder(tmp_path, 2, 9)
    torn.mkdir()
    prune(tmp_path, 2)
    assert [commit.state.step for commit in commits(tmp_path)] == [4, 3, 1]
    assert not torn.exists()


def part(name: str, size: int, low: int, high: int, weight: torch.Tensor) -> Fragment:
    """Elements [low, high) of a logical vector that no rank shards otherwise."""
    return Fragment(name, (size,), Box((0,), (size,)), low, high, {"weight": weight})


def cut(tensor: torch.Tensor, name: str, parts: int) -> list[list[Fragment]]:
    """The flattened tensor cut in `parts` nearly equal ranges, one per rank."""
    edges = [round(tensor.numel() * part / parts) for part in range(parts + 1)]
    flat = tensor.flatten()
    return [[part(name, tensor.numel(), low, high, flat[low:high].clone())] if low < high else [] for low, high in pairwise(edges)]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 6))
def test_any_number_of_ranks_reads_what_any_number_wrote(
    tmp_path_factory: pytest.TempPathFactory, size: int, writers: int, readers: int
) -> None:
    folder, tensor = tmp_path_factory.mktemp("store"), torch.arange(float(size)) + 1
    for rank, fragments in enumerate(cut(tensor, "w", writers)):
        save_fragments(folder / f"rank-{rank:05d}.safetensors", fragments)
    for fragments in cut(torch.zeros(size), "w", readers):
        load_fragments(folder, fragments)
        for fragment in fragments:
            assert torch.equal(fragment.tensors["weight"], tensor[fragment.start : fragment.stop])
    assert torch.equal(load_tensors(folder, "weight", {"w": torch.Size([size])})["w"], tensor)


def test_a_commit_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    save_fragments(tmp_path / "rank-00000.safetensors", [part("w", 3, 0, 3, torch.ones(3))])
    with pytest.raises(ValueError, match="2 elements of weight of w are missing"):
        load_fragments(tmp_path, [part("w", 5, 0, 5, torch.zeros(5))])
    with pytest.raises(ValueError, match="no complete weight of other"):
        load_tensors(tmp_path, "weight", {"other": torch.Size([2])})
