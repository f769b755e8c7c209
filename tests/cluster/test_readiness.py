"""The feed: stages begin on part of the data, what is needed sooner is encoded sooner, and how fast it goes changes no byte."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest

from cluster import dataset as datasets
from cluster.encode import Progress
from cluster.readiness import Feed
from cluster.session import Session
from data_pipeline import growth, manifest
from data_pipeline.chunks import Chunk, source_count
from data_pipeline.encode import encode_chunk, finished_chunks, work_fingerprint
from data_pipeline.errors import UserError
from data_pipeline.loader import open_dataset, tokenizer_at
from data_pipeline.records import ChunkRecord
from data_pipeline.spec import EncodeSpec
from data_pipeline.storage import Location
from data_pipeline.text import load_text
from trainer import config as configs
from trainer.config import RunConfig

FIRST = "{name: first, frames: 5, height: 32, width: 32, tokens_per_step: 64, promotion: {max_steps: 1}}"
LARGER = "{name: larger, frames: 9, height: 32, width: 32, tokens_per_step: 192, promotion: {max_steps: 1}}"
COARSE = "{name: coarse, frames: 9, height: 32, width: 32, stride: [8, 8, 8], tokens_per_step: 64, promotion: {max_steps: 1}}"


def recipe(root: Path, *stages: str, changes: Sequence[str] = ()) -> RunConfig:
    small = ["data.synthetic={clips: 12, frames: 10, size: 32}", "data.sources_per_shard=1", "data.latent_channels=4", "data.held_out=0.2"]
    return configs.load([*small, "train.evaluate_samples=1", f"curriculum.stages=[{', '.join(stages)}]", f"data.root={root}", *changes])


class Gate:
    """An encoder in this process that works only as far as it is allowed to. done: chunks in the order of their encoding."""

    def __init__(self, allowed: int = 0) -> None:
        self.done: list[str] = []
        self.cpus: list[int] = []
        self._open = threading.Semaphore(allowed)

    def allow(self, chunks: int) -> None:
        self._open.release(chunks)

    def __call__(
        self,
        chunks: Sequence[Chunk],
        spec: EncodeSpec,
        tokenizer_folder: Location,
        folder: Location,
        cpus: Callable[[], int],
        on_progress: Callable[[Progress], None],
        draining: Callable[[], bool] = lambda: False,
    ) -> list[ChunkRecord]:
        tokenizer, text = tokenizer_at(tokenizer_folder), load_text(tokenizer_folder, spec)
        records = dict(finished_chunks(chunks, lambda chunk: work_fingerprint(chunk, spec, tokenizer, text), folder))
        total = source_count(chunks)
        on_progress(Progress(len(records), total, 0, 0.0, records=dict(records)))
        for index, chunk in enumerate(chunks):
            while index not in records and not self._open.acquire(timeout=0.01):
                if draining():
                    return [*records.values()]
            if draining():
                self._open.release()
                return [*records.values()]
            if index not in records:
                self.cpus.append(cpus())
                records[index] = encode_chunk(chunk, spec, tokenizer, text, folder)
                self.done.append(f"{'x'.join(map(str, spec.stride))} {chunk.name}")
                on_progress(Progress(len(records), total, 0, 0.0, records=dict(records)))
        return [*records.values()]


@contextmanager
def feeding(config: RunConfig, encode: Any) -> Iterator[Feed]:
    feed = Feed(config, datasets.find_all(config), 2, encode=encode).start()
    try:
        yield feed
    finally:
        feed.close()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def tars(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.tar")}


@pytest.mark.timeout(300)
def test_a_stage_begins_on_the_first_shards_and_the_others_become_generations(tmp_path: Path) -> None:
    config, gate = recipe(tmp_path, FIRST, LARGER, changes=["data.start_fraction=0.3"]), Gate()
    with feeding(config, gate) as feed:
        gate.allow(1)
        until(lambda: len(gate.done) == 1)
        assert feed.ready(0) is None  # one held-out video
        gate.allow(4)
        until(lambda: feed.ready(0))
        first = feed.ready(0)
        assert first is not None
        assert (first.manifest.generation, first.manifest.pending) == (0, 12 - 4 if len(gate.done) < 4 else first.manifest.pending)
        assert 0 < first.manifest.clips("5x32x32", "train") < 24
        assert first.manifest.clips("5x32x32", "held_out")
        assert not feed.done(0)
        assert 0 < feed.progress(0).fraction < 1
        feed.give(7)
        gate.allow(99)
        until(lambda: feed.finished)
        assert gate.cpus[-1] == 7
        last = feed.ready(1)
        assert last is not None
        assert (last.manifest.pending, last.manifest.sources.total) == (0, 12)
        assert last.manifest.statistics == first.manifest.statistics
        assert last.origin == first.origin
        assert [dataset.manifest.pending for _, dataset in feed.poll()] in ([0], [0, 0])
    assert gate.done[0].startswith("4x8x8 held-out")


@pytest.mark.timeout(300)
def test_how_fast_encoding_is_changes_neither_the_first_generation_nor_a_shard(tmp_path: Path) -> None:
    folders = []
    for name, gate in (("fast", Gate(99)), ("slow", Gate(0))):
        with feeding(recipe(tmp_path / name, FIRST), gate) as feed:
            while not feed.finished:
                gate.allow(1)
                time.sleep(0.05)
            folders.append(Path(str(feed.supplies[0].job.folder)))
    assert tars(folders[0]) == tars(folders[1])
    first, other = (folder / "generations" / "manifest-000000.json" for folder in folders)
    assert first.read_bytes() == other.read_bytes()
    newest, others = (open_dataset(folder).manifest for folder in folders)
    assert newest.buckets == others.buckets


@pytest.mark.timeout(300)
def test_data_of_a_later_tokenizer_is_encoded_next_unless_it_is_needed_now(tmp_path: Path) -> None:
    config = recipe(tmp_path, FIRST, COARSE)
    gate = Gate(99)
    with feeding(config, gate) as feed:
        until(lambda: feed.finished)
    assert [word.split()[0] for word in gate.done] == ["4x8x8"] * 12 + ["8x8x8"] * 12
    sooner = Gate(3)
    with feeding(recipe(tmp_path / "other", FIRST, COARSE), sooner) as feed:
        until(lambda: len(sooner.done) == 3)
        assert feed.ready(1) is None
        sooner.allow(99)
        until(lambda: feed.finished)
    assert [word.split()[0] for word in sooner.done] == ["4x8x8"] * 3 + ["8x8x8"] * 12 + ["4x8x8"] * 9


@pytest.mark.timeout(300)
def test_a_closed_feed_goes_on_where_it_was(tmp_path: Path) -> None:
    config, gate = recipe(tmp_path, FIRST, changes=["data.start_fraction=0.3"]), Gate(5)
    with feeding(config, gate) as feed:
        until(lambda: len(gate.done) == 5 and feed.datasets())
    begun = feed.datasets()[0]
    assert begun.manifest.pending
    again = Gate(99)
    with feeding(config, again) as feed:
        assert feed.ready(0)
        until(lambda: feed.finished)
        assert feed.datasets()[0].origin == begun.origin
    assert len(again.done) == 12 - 5
    assert datasets.prepare(feed.supplies[0].job, 1, lambda _: None)[1]


@pytest.mark.timeout(300)
def test_a_stage_that_the_data_cannot_fill_is_known_when_all_is_encoded(tmp_path: Path) -> None:
    many = LARGER.replace("192", str(48 * 99))
    refusal = pytest.raises(UserError, match=r"stage larger: a step takes 99 clips of 9x32x32, but the data has \d+; add videos or")
    with feeding(recipe(tmp_path, FIRST, many), Gate(99)) as feed, refusal:
        until(lambda: feed.ready(1))
    complete = recipe(tmp_path, FIRST, many)
    with pytest.raises(UserError, match="stage larger: a step takes 99 clips"):
        Feed(complete, datasets.find_all(complete), 2).start()


@pytest.mark.timeout(300)
def test_the_real_pool_feeds_and_hands_over_between_data_sets(tmp_path: Path, ray_session: Session) -> None:
    config = recipe(tmp_path, FIRST, COARSE)
    feed = Feed(config, datasets.find_all(config), 1).start()
    try:
        until(lambda: feed.ready(0))
        until(lambda: feed.ready(1))
        until(lambda: feed.finished)
    finally:
        feed.close()
    alone = recipe(tmp_path / "alone", FIRST, COARSE)
    for supply, job in zip(feed.supplies, datasets.find_all(alone).values(), strict=True):
        datasets.prepare(job, 2, lambda _: None)
        assert tars(Path(str(job.folder))) == tars(Path(str(supply.job.folder)))


@pytest.mark.timeout(300)
def test_two_runs_that_encode_one_data_set_take_back_nothing_of_each_other(tmp_path: Path) -> None:
    config = recipe(tmp_path, FIRST, changes=["data.start_fraction=0.3"])
    gates = Gate(), Gate()
    with feeding(config, gates[0]) as one, feeding(config, gates[1]) as other:
        for turn in count():
            if one.finished and other.finished:
                break
            gates[turn % 2].allow(1)
            time.sleep(0.05)
    folder = one.supplies[0].job.folder
    made = [manifest.read(folder, number) for number in range(len(list(Path(str(folder)).glob("generations/*"))))]
    assert len(made) > 1
    assert all(growth.holds(later, earlier) for earlier, later in pairwise(made))
    assert (made[-1].pending, manifest.read(folder)) == (0, made[-1])
