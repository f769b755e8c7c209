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

from cluster.encode import IncompleteError, Progress, encode_dataset, is_hopeless
from cluster.encode_actors import Decoder, Encoder
from cluster.encode_pool import EncodePool
from cluster.encode_scaling import limits_of
from cluster.session import REPOSITORY
from data_pipeline import encode, storage
from data_pipeline.buckets import Bucket
from data_pipeline.chunks import Chunk, plan_chunks
from data_pipeline.clips import SourceClips, clips_of
from data_pipeline.encode import sample_for_fit, work_fingerprint
from data_pipeline.errors import UserError
from data_pipeline.loader import tokenizer_at
from data_pipeline.records import ChunkRecord
from data_pipeline.sources import Source, list_sources
from data_pipeline.spec import EncodeSpec
from data_pipeline.storage import Location, S3Path, StorageError
from data_pipeline.synthetic import write_synthetic
from data_pipeline.text.hashing import HashingText
from data_pipeline.tokenizers.linear import LinearTokenizer
from tests.s3 import S3Server

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("s3_server", "ray_session")]  # Ray's processes learn where S3 is
SPEC = EncodeSpec(fps=8, buckets=(Bucket(5, 32, 32),), sources_per_shard=1)


class Data:
    """Four small videos in chunks of one, and a tokenizer that was fitted on them."""

    def __init__(self, folder: Path) -> None:
        write_synthetic(folder / "videos", clips=4, seed=0, size=32, frames=12)
        self.sources = list_sources(folder / "videos").sources
        self.chunks = plan_chunks(self.sources, SPEC)
        self.tokenizer = folder / "tokenizer"
        LinearTokenizer.fit(sample_for_fit(self.sources, SPEC), channels=SPEC.channels).save(self.tokenizer)

    def encode(self, folder: Location, chunks: list[Chunk] | None = None, seen: Any = lambda _: None) -> list[ChunkRecord]:
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


class FragileDecoder(Decoder):
    """A decoder that dies at the start of a source as often as `deaths` says, which it notes in file names."""

    def __init__(self, folder: Path, notes: Path, deaths: dict[str, int], spec: EncodeSpec = SPEC) -> None:
        super().__init__(spec, folder)
        self.notes, self.deaths = notes, deaths

    def start(self, source: Source, careful: bool) -> Any:
        tries = len(list(self.notes.glob(f"{source.name}-*")))
        (self.notes / f"{source.name}-{tries}-{'careful' if careful else 'fast'}").touch()
        if tries < self.deaths.get(source.name, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().start(source, careful)


def pool_of(data: Data, make_decoder: Any, chunks: list[Chunk], make_encoder: Any = None) -> EncodePool:
    encoder: Any = ray.remote(Encoder).options(num_cpus=0)
    tokenizer, text = tokenizer_at(data.tokenizer), HashingText(SPEC.text_width, SPEC.text_tokens)
    work = ((index, chunk, work_fingerprint(chunk, SPEC, tokenizer, text)) for index, chunk in enumerate(chunks))
    make_encoder = make_encoder or (lambda: encoder.remote(SPEC, data.tokenizer))
    return EncodePool(work, make_decoder, make_encoder, lambda: limits_of(1), is_hopeless)


def fragile(data: Data, folder: Path, deaths: dict[str, int]) -> EncodePool:
    decoder: Any = ray.remote(FragileDecoder).options(num_cpus=0)
    (folder / "notes").mkdir()
    pool = pool_of(data, lambda: decoder.remote(folder, folder / "notes", deaths), data.chunks)
    pool.run(lambda state: None)
    return pool


def test_a_file_on_which_the_decoder_never_returns_is_set_aside_by_name(data: Data, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "endless.mp4")  # opening it waits for a writer that never comes
    endless = replace(data.sources[0], id="endless", name="endless.mp4", path=str(tmp_path / "endless.mp4"))
    decoder: Any = ray.remote(Decoder).options(num_cpus=0)
    pool = pool_of(data, lambda: decoder.remote(SPEC, tmp_path / "out", 2), [*data.chunks, Chunk("train", 9, (endless,))])
    pool.run(lambda state: None)
    assert pool.failures == {}
    (outcome,) = pool.records[4].sources
    assert (outcome.name, outcome.status, outcome.reason) == ("endless.mp4", "failed", "decoding it gives no picture for 2 s (3 times)")
    assert all(pool.records[index].clips for index in range(4))


def test_a_decoder_that_dies_is_replaced_and_its_source_is_tried_again_with_care(data: Data, tmp_path: Path) -> None:
    pool = fragile(data, tmp_path, {"clip-00001.mp4": 2})
    assert set(pool.records) == {0, 1, 2, 3}
    assert not pool.failures
    notes = sorted(path.name for path in (tmp_path / "notes").iterdir())
    assert [note for note in notes if "00001" in note] == [f"clip-00001.mp4-{note}" for note in ("0-fast", "1-careful", "2-careful")]
    assert len(notes) == 3 + 3


def test_a_source_at_which_every_decoder_dies_makes_its_chunk_a_failure_and_no_record(data: Data, tmp_path: Path) -> None:
    index = next(index for index, chunk in enumerate(data.chunks) if chunk.sources[0].name == "clip-00002.mp4")
    pool = fragile(data, tmp_path, {"clip-00002.mp4": 100})
    assert set(pool.records) == {0, 1, 2, 3} - {index}
    assert pool.failures == {index: "5 processes died at clip-00002.mp4"}


def crash_on_the_second(source: Source, spec: EncodeSpec, stall: int = 0) -> SourceClips:
    """As the real decoding, but one source makes it crash."""
    if source.name == "clip-00001.mp4":
        os.kill(os.getpid(), signal.SIGKILL)
    return clips_of(source.path, spec)


class Crashing(Decoder):
    """A real decoder with that decoding."""

    def __init__(self, *arguments: Any) -> None:
        encode._clips_or_failure = crash_on_the_second
        super().__init__(*arguments)


def test_of_a_chunk_with_a_video_that_crashes_the_decoder_only_that_video_is_lost(data: Data, tmp_path: Path) -> None:
    decoder: Any = ray.remote(Crashing).options(num_cpus=0)
    pool = pool_of(data, lambda: decoder.remote(SPEC, tmp_path), [Chunk("train", 0, data.sources[:3])])
    pool.run(lambda state: None)
    assert not pool.failures
    assert [source.status for source in pool.records[0].sources] == ["ok", "failed", "ok"]
    assert pool.records[0].sources[1].reason == "decoding it kills the process (SIGKILL, 3 times)"


class MortalEncoder(Encoder):
    """An encoder that dies in its first life, at its second piece."""

    def __init__(self, spec: EncodeSpec, tokenizer: Path, notes: Path) -> None:
        super().__init__(spec, tokenizer)
        self.notes, self.pieces = notes, 0

    def encode(self, source: Source, piece: Any) -> Any:
        self.pieces += 1
        if self.pieces == 2 and not self.notes.exists():
            self.notes.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(source, piece)


def test_an_encoder_that_dies_with_pieces_in_hand_loses_none(data: Data, tmp_path: Path) -> None:
    decoder, encoder = (ray.remote(kind).options(num_cpus=0) for kind in (Decoder, MortalEncoder))
    data.encode(tmp_path / "undisturbed")
    pool = pool_of(
        data,
        lambda: decoder.remote(SPEC, tmp_path / "mortal"),
        data.chunks,
        lambda: encoder.remote(SPEC, data.tokenizer, tmp_path / "died"),
    )
    pool.run(lambda state: None)
    assert (tmp_path / "died").exists()
    assert not pool.failures
    assert files(tmp_path / "mortal") == files(tmp_path / "undisturbed")


def test_what_no_further_write_could_do_ends_the_run_with_its_own_line(data: Data, bucket: S3Path, s3_server: S3Server) -> None:
    s3_server.gate = lambda request: "403 Access Denied" if request["REQUEST_METHOD"] == "PUT" else None
    with pytest.raises(StorageError, match=r"access denied \(AccessDenied\): check AWS_ACCESS_KEY_ID"):
        data.encode(bucket / "set")


def test_what_storage_does_to_a_decoder_is_known_where_the_pool_is_run(data: Data, bucket: S3Path, s3_server: S3Server) -> None:
    answers = ["503 Slow Down"] * 3
    s3_server.gate = lambda request: answers.pop() if answers and request["REQUEST_METHOD"] == "PUT" else None
    storage.FAULTS.take()
    data.encode(bucket / "set")
    assert storage.FAULTS.take() == {"transient": 3}


def test_encoding_into_s3_gives_the_files_of_encoding_onto_a_disk(data: Data, bucket: S3Path, tmp_path: Path) -> None:
    data.encode(tmp_path)
    data.encode(bucket / "set")
    there = {str(path)[len(str(bucket / "set")) + 1 :]: storage.read_bytes(path) for path, _ in storage.list_files(bucket / "set")}
    assert there == files(tmp_path)


def test_a_finished_part_is_found_and_only_the_rest_is_worked_on(data: Data, tmp_path: Path) -> None:
    data.encode(tmp_path)
    whole = files(tmp_path)
    (tmp_path / "sources" / f"{data.chunks[2].sources[0].id}.json").unlink()
    seen: list[Progress] = []
    data.encode(tmp_path, seen=seen.append)
    assert files(tmp_path) == whole
    assert {progress.found for progress in seen} == {3}
    assert (seen[-1].done, seen[-1].total) == (4, 4)


def copy_of(data: Data, index: int) -> Chunk:
    """A chunk of one of the videos under another id."""
    return Chunk("train", index, (replace(data.sources[index % 4], id=f"{index:016x}"),))


def test_sigterm_finishes_what_was_begun_and_nothing_else(data: Data, tmp_path: Path) -> None:
    seen: list[Progress] = []

    def stop_at_the_first(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    many = [copy_of(data, index) for index in range(200)]
    with pytest.raises(SystemExit) as raised:
        data.encode(tmp_path, many, stop_at_the_first)
    assert raised.value.code == signal.SIGTERM
    written = {path.stem for path in (tmp_path / "sources").iterdir()}
    assert len(written) == seen[-1].done < 200
    assert sorted(path.stem for path in (tmp_path / "5x32x32").glob("*.tar")) == [f"shard-{int(name, 16):06d}" for name in sorted(written)]
    assert signal.getsignal(signal.SIGTERM) is not None


@given(st.integers(0, 50), st.integers(1, 50), st.floats(0, 1e6))
def test_progress_estimates_the_rest_from_the_rate_so_far(done: int, left: int, seconds: float) -> None:
    progress = Progress(done, done + left, clips=0, seconds=seconds)
    assert progress.eta == (pytest.approx(seconds / done * left) if done else float("inf"))
