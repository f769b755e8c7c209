import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from cluster.encode import Encoder, IncompleteError, Progress, encode_dataset, work_off
from cluster.session import REPOSITORY
from data_pipeline import encode
from data_pipeline.buckets import Bucket
from data_pipeline.clips import SourceClips, clips_of
from data_pipeline.encode import Chunk, plan_chunks, sample_for_fit
from data_pipeline.errors import UserError
from data_pipeline.records import ChunkRecord
from data_pipeline.sources import Source, list_sources
from data_pipeline.spec import EncodeSpec
from data_pipeline.synthetic import write_synthetic
from data_pipeline.tokenizers.linear import LinearTokenizer

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("ray_session")]
SPEC = EncodeSpec(fps=8, buckets=(Bucket(5, 32, 32),), sources_per_shard=1)


class Data:
    """Four small videos in chunks of one, and a tokenizer that was fitted on them."""

    def __init__(self, folder: Path) -> None:
        write_synthetic(folder / "videos", clips=4, seed=0, size=32, frames=12)
        self.sources = list_sources(folder / "videos").sources
        self.chunks = plan_chunks(self.sources, SPEC)
        self.tokenizer = folder / "tokenizer"
        LinearTokenizer.fit(sample_for_fit(self.sources, SPEC), channels=SPEC.channels).save(self.tokenizer)

    def encode(self, folder: Path, chunks: list[Chunk] | None = None, seen: Any = lambda _: None) -> list[ChunkRecord]:
        return encode_dataset(chunks or self.chunks, SPEC, self.tokenizer, folder, 2, seen)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return Data(tmp_path_factory.mktemp("data"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_chunk_has_its_record_in_the_order_of_the_chunks(data: Data, tmp_path: Path) -> None:
    seen: list[Progress] = []
    records = data.encode(tmp_path, seen=seen.append)
    assert [(record.split, record.index) for record in records] == [(c.split, c.index) for c in data.chunks]
    assert {source.status for record in records for source in record.sources} == {"ok"}
    assert (seen[-1].done, seen[-1].total) == (4, 4)
    assert seen[-1].clips == sum(record.clips for record in records) > 0


def test_any_number_of_encoders_and_a_second_run_give_the_same_bytes(data: Data, tmp_path: Path) -> None:
    data.encode(tmp_path / "two")
    encode_dataset(data.chunks, SPEC, data.tokenizer, tmp_path / "one", 1, lambda _: None)
    once = files(tmp_path / "two")
    data.encode(tmp_path / "two")
    assert once == files(tmp_path / "one") == files(tmp_path / "two")


def test_a_broken_video_is_an_outcome_and_no_obstacle(data: Data, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    broken = Chunk("train", 9, (replace(data.sources[0], id="broken", path=str(tmp_path / "broken.mp4")),))
    *good, bad = data.encode(tmp_path / "out", [*data.chunks, broken])
    assert bad.sources[0].status == "failed"
    assert bad.sources[0].reason
    assert all(record.clips for record in good)


def test_what_could_not_be_encoded_is_listed_by_name_after_the_rest_is_done(data: Data, tmp_path: Path) -> None:
    (tmp_path / SPEC.buckets[0].id).mkdir()
    (tmp_path / SPEC.buckets[0].id / f"{data.chunks[0].name}.tar").mkdir()  # where a shard should be
    with pytest.raises(IncompleteError, match=data.chunks[0].name) as raised:
        data.encode(tmp_path)
    assert list(raised.value.failures) == [data.chunks[0].name]
    assert len(list((tmp_path / "sources").glob("*.json"))) == 3


def test_a_missing_tokenizer_is_a_users_error(data: Data, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        encode_dataset(data.chunks, SPEC, tmp_path / "nowhere", tmp_path, 2, lambda _: None)


def test_encoding_needs_no_torch() -> None:
    code = "import sys, cluster.encode; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


class Fragile:
    """An encoder that dies on a chunk's first `deaths` tries, which it notes in file names."""

    def __init__(self, folder: Path, deaths: dict[int, int]) -> None:
        self.folder = folder
        self.deaths = deaths

    def encode(self, chunk: Chunk, careful: bool) -> ChunkRecord:
        tries = len(list(self.folder.glob(f"{chunk.index}-*")))
        (self.folder / f"{chunk.index}-{tries}-{'careful' if careful else 'fast'}").touch()
        if tries < self.deaths.get(chunk.index, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        return ChunkRecord(chunk.split, chunk.index, "", (), ())


def fragile(folder: Path, deaths: dict[int, int]) -> tuple[dict[int, ChunkRecord], dict[int, str]]:
    chunks = [Chunk("train", index, (Source(f"s{index}", "", "", f"s{index}.mp4"),)) for index in range(4)]
    encoder: Any = ray.remote(Fragile).options(num_cpus=0)
    return work_off(chunks, lambda: encoder.remote(folder, deaths), 2, lambda _: None)


def test_an_encoder_that_dies_is_replaced_and_its_chunk_is_tried_again_with_care(tmp_path: Path) -> None:
    records, failures = fragile(tmp_path, {1: 2})
    assert set(records) == {0, 1, 2, 3}
    assert not failures
    assert sorted(path.name for path in tmp_path.glob("1-*")) == ["1-0-fast", "1-1-careful", "1-2-careful"]
    assert [path.name for path in tmp_path.glob("0-*")] == ["0-0-fast"]


def test_a_chunk_that_kills_every_encoder_is_no_record_of_failed_sources_but_a_failure(tmp_path: Path) -> None:
    records, failures = fragile(tmp_path, {2: 100})
    assert set(records) == {0, 1, 3}
    assert failures == {2: "3 encoders died on s2.mp4 to s2.mp4"}
    assert len(list(tmp_path.iterdir())) == 3 + 3


def crash_on_the_second(source: Source, spec: EncodeSpec) -> SourceClips:
    """As the real decoding, but one source makes it crash."""
    if source.name == "clip-00001.mp4":
        os.kill(os.getpid(), signal.SIGKILL)
    return clips_of(source.path, spec)


class Crashing(Encoder):
    """A real encoder with that decoding."""

    def __init__(self, *arguments: Any) -> None:
        encode._clips_or_failure = crash_on_the_second
        super().__init__(*arguments)


def test_of_a_chunk_with_a_video_that_crashes_the_decoder_only_that_video_is_lost(data: Data, tmp_path: Path) -> None:
    encoder: Any = ray.remote(Crashing).options(num_cpus=0)
    chunk = Chunk("train", 0, data.sources[:3])
    records, failures = work_off([chunk], lambda: encoder.remote(SPEC, data.tokenizer, tmp_path), 1, lambda _: None)
    assert not failures
    assert [source.status for source in records[0].sources] == ["ok", "failed", "ok"]
    assert records[0].sources[1].reason == "decoding it kills the process"


@given(st.integers(0, 50), st.integers(1, 50), st.floats(0, 1e6))
def test_progress_estimates_the_rest_from_the_rate_so_far(done: int, left: int, seconds: float) -> None:
    progress = Progress(done, done + left, clips=0, seconds=seconds)
    assert progress.eta == (pytest.approx(seconds / done * left) if done else float("inf"))
