"""Faults are planned by a pure function and done to files and processes as they say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import faults
from cluster.chaos import chosen, parser, recovery
from data_pipeline.errors import UserError
from data_pipeline.loader import open_dataset
from data_pipeline.shard_index import ShardError, read_index
from data_pipeline.shards import shard_path
from trainer.checkpoint.commit import commit_folder
from trainer.checkpoint.files import write_data

KINDS = list(faults.KINDS)


@given(st.integers(0, 99), st.sampled_from([3.0, 10.0]), st.lists(st.sampled_from(KINDS), min_size=1, unique=True))
def test_a_plan_is_a_pure_function_that_fills_the_time_with_every_kind(seed: int, minutes: float, kinds: list[str]) -> None:
    planned = faults.plan(seed, minutes, kinds)
    assert planned == faults.plan(seed, minutes, kinds)
    assert len(planned) >= {3.0: 6, 10.0: 12}[minutes]
    times = [fault.at for fault in planned]
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < faults.CALM * 60 * minutes
    first = [fault.kind for fault in planned[: len(kinds)]]
    assert len(set(first)) == len(first)


def test_seeds_differ() -> None:
    assert len({faults.plan(seed, 10.0, KINDS) for seed in range(20)}) == 20


@given(st.floats(0, 1, exclude_max=True), st.lists(st.integers(), min_size=1))
def test_a_fault_befalls_one_of_those_it_can(pick: float, candidates: list[int]) -> None:
    assert faults.Fault(1.0, "worker", pick).of(candidates) in candidates


def test_a_flipped_bit_is_met_by_the_reader_and_mended(tiny_dataset: Path) -> None:
    dataset = open_dataset(str(tiny_dataset))
    path = shard_path(dataset.folder, dataset.manifest.buckets["5x32x32"]["train"][0])
    assert isinstance(path, Path)
    before, index = path.read_bytes(), read_index(path)
    assert index is not None
    offset, size, _ = index.places["latent"][0].tolist()

    def read_all() -> None:
        data = open_dataset(str(tiny_dataset)).split("5x32x32", "train", 0)
        data.fetch(range(len(data)))

    with faults.flipped(path, offset + size // 2), pytest.raises(ShardError, match="is damaged: the latent of sample"):
        read_all()
    read_all()
    assert path.read_bytes() == before


def test_a_commit_to_a_full_disk_fails_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = commit_folder(tmp_path, 7, 2) / "rank-00000.safetensors"
    with faults.full(tmp_path, [7, 8], 2), pytest.raises(OSError, match="No space left"):
        write_data(path, [memoryview(b"weights")])
    assert not list((tmp_path / "checkpoints").iterdir())
    write_data(path, [memoryview(b"weights")])


def test_the_full_disk_takes_nothing_with_it_when_it_goes(tmp_path: Path) -> None:
    path = commit_folder(tmp_path, 7, 2) / "rank-00000.safetensors"
    with faults.full(tmp_path, [7], 2):
        path.unlink()  # as an earlier commit tidies up
        write_data(path, [memoryview(b"weights")])
    assert path.read_bytes() == b"weights"


def test_a_link_needs_a_network_and_kinds_must_be_known() -> None:
    assert "link" not in chosen(parser().read(["--seed", "1"]))
    assert chosen(parser().read(["--network", "--kinds", "link,node"])) == ["link", "node"]
    with pytest.raises(UserError, match=r"--kinds link: choose of worker, .*; link needs --network"):
        chosen(parser().read(["kinds=link"]))


def test_recovery_is_told_from_the_fault_on() -> None:
    events = [
        {"time": 9.0, "event": "milestone", "generation": 1, "name": "stepped", "at": 9.0},
        {"time": 10.5, "event": "failure", "generation": 1, "cause": "signal", "detected": 10.25},
        {"time": 10.75, "event": "generation", "generation": 2},
        {"time": 12.0, "event": "milestone", "generation": 2, "name": "forked", "at": 11.0},
        {"time": 13.0, "event": "milestone", "generation": 2, "name": "stepped", "at": 12.5},
    ]
    assert recovery(events, 1, 10.0) == {"cause": "signal", "detected": 0.25, "drawn": 0.75, "forked": 1.0, "stepped": 2.5}
    assert recovery(events[:1], 1, 10.0) == {}
