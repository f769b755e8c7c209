import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from data_pipeline import encode, manifest
from data_pipeline.chunks import held_out_rule, plan_chunks
from data_pipeline.clips import SourceClips, clips_of
from data_pipeline.encode import decode_source, encode_chunk, sample_for_fit
from data_pipeline.errors import UserError
from data_pipeline.records import HELD_OUT, TRAIN, SourceRecord
from data_pipeline.sources import Source, list_sources
from data_pipeline.spec import EncodeSpec
from data_pipeline.tokenizers.linear import LinearTokenizer

from .conftest import SPEC, Encoded, bytes_by_name, encode_folder


def test_splits_share_no_source(encoded: Encoded) -> None:
    sets = [encoded.dataset.split("5x32x32", split, seed=0) for split in (TRAIN, HELD_OUT)]
    train, held_out = ({s.sample_key(n).split("-")[0] for n in range(len(s))} for s in sets)
    assert train
    assert held_out
    assert not train & held_out


def test_encoding_twice_gives_the_same_bytes_in_every_file(encoded: Encoded, synthetic_videos: Path, tmp_path: Path) -> None:
    again = encode_folder(synthetic_videos, tmp_path)
    assert bytes_by_name(tmp_path) == bytes_by_name(encoded.dataset.folder)
    assert again.dataset.id == encoded.dataset.id


def test_any_order_of_chunks_gives_the_same_bytes(encoded: Encoded, tmp_path: Path) -> None:
    for chunk in reversed(plan_chunks(encoded.sources, encoded.spec)):
        encode_chunk(chunk, encoded.spec, encoded.tokenizer, encoded.text, tmp_path)
    expected = bytes_by_name(encoded.dataset.folder)
    assert bytes_by_name(tmp_path).items() <= expected.items()


def test_a_finished_chunk_is_not_worked_on_again(encoded: Encoded, tmp_path: Path) -> None:
    shutil.copytree(encoded.dataset.folder, tmp_path, dirs_exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    chunks = plan_chunks(encoded.sources, encoded.spec)
    again = [encode_chunk(chunk, encoded.spec, encoded.tokenizer, encoded.text, tmp_path) for chunk in chunks]
    assert again == encoded.records
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == before


@pytest.mark.parametrize("lost", ["shard-000001.tar", "shard-000001.idx", "record", "torn"])
def test_a_chunk_of_which_anything_is_missing_is_made_again(encoded: Encoded, tmp_path: Path, lost: str) -> None:
    shutil.copytree(encoded.dataset.folder, tmp_path, dirs_exist_ok=True)
    chunk = next(chunk for chunk in plan_chunks(encoded.sources, encoded.spec) if chunk.name == "shard-000001")
    if lost == "record":
        (tmp_path / "sources" / f"{chunk.sources[-1].id}.json").unlink()
    elif lost == "torn":
        (tmp_path / "5x32x32" / "shard-000001.tar").write_bytes(b"half")
    else:
        (tmp_path / "5x32x32" / lost).unlink()
    encode_chunk(chunk, encoded.spec, encoded.tokenizer, encoded.text, tmp_path)
    assert bytes_by_name(tmp_path) == bytes_by_name(encoded.dataset.folder)


@pytest.mark.parametrize("change", ["caption", "spec", "file"])
def test_a_chunk_made_from_other_inputs_is_made_again(encoded: Encoded, tmp_path: Path, change: str) -> None:
    shutil.copytree(encoded.dataset.folder, tmp_path, dirs_exist_ok=True)
    chunk, spec = plan_chunks(encoded.sources, encoded.spec)[0], encoded.spec
    first = chunk.sources[0]
    if change == "caption":
        chunk = replace(chunk, sources=(replace(first, caption="another"), *chunk.sources[1:]))
    elif change == "file":
        longer = tmp_path / "longer.mp4"
        longer.write_bytes(Path(first.path).read_bytes() + b"\0\0\0\x08free")
        chunk = replace(chunk, sources=(replace(first, path=str(longer)), *chunk.sources[1:]))
    else:
        spec = replace(spec, max_clips=1)
    record = encode_chunk(chunk, spec, encoded.tokenizer, encoded.text, tmp_path)
    assert record.work != encoded.records[0].work


def test_records_survive_json_and_name_every_outcome(encoded: Encoded, synthetic_videos: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    shutil.copytree(synthetic_videos, videos)
    (videos / "broken.mp4").write_bytes(b"not a video")
    folder = tmp_path / "dataset"
    made = encode_folder(videos, folder)
    outcomes = {source.name: source for record in made.records for source in record.sources}
    assert len(outcomes) == 13
    assert (outcomes["broken.mp4"].status, outcomes["broken.mp4"].reason[:12]) == ("failed", "Invalid data")
    assert outcomes["clip-00000.mp4"].clips == {"5x32x32": 4, "9x48x48": 2}
    assert outcomes["clip-00000.mp4"].values["9x48x48"][0]["luma_std"] > 0
    for outcome in outcomes.values():
        assert SourceRecord.from_json(asdict(outcome)) == outcome
    summary = made.dataset.manifest.sources
    assert (summary.total, summary.ok, list(summary.failed)) == (13, 12, ["broken.mp4"])


def deadly_clips_or_failure(source: Source, spec: EncodeSpec, stall: int) -> SourceClips:
    """As the real one, but one source makes the decoder crash."""
    if source.name == "clip-00002.mp4":
        os.kill(os.getpid(), signal.SIGKILL)
    return clips_of(source.path, spec)


@pytest.mark.timeout(120)
def test_a_source_whose_decoding_kills_is_an_outcome_of_careful_decoding(encoded: Encoded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_clips_or_failure", deadly_clips_or_failure)
    deadly, harmless = (next(s for s in encoded.sources if s.name == f"clip-{number:05d}.mp4") for number in (2, 3))
    with pytest.raises(StopIteration) as end:
        next(decode_source(deadly, encoded.spec, careful=True))
    assert (end.value.value.status, end.value.value.reason) == ("failed", "decoding it kills the process (SIGKILL, 3 times)")
    assert next(decode_source(harmless, encoded.spec, careful=True))


def test_small_pieces_give_the_same_bytes(encoded: Encoded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "PIECE_BYTES", 1)
    assert len(list(decode_source(encoded.sources[0], encoded.spec))) == 6
    for chunk in plan_chunks(encoded.sources, encoded.spec):
        encode_chunk(chunk, encoded.spec, encoded.tokenizer, encoded.text, tmp_path)
    assert bytes_by_name(tmp_path).items() <= bytes_by_name(encoded.dataset.folder).items()


def test_the_sample_for_fitting_comes_from_train_sources_alone(encoded: Encoded) -> None:
    held_out = held_out_rule(encoded.sources, encoded.spec)
    train = [source for source in encoded.sources if not held_out(source)]
    everything = LinearTokenizer.fit(sample_for_fit(encoded.sources, encoded.spec))
    held = [replace(source, path="/gone.mp4") if source not in train else source for source in encoded.sources]
    assert LinearTokenizer.fit(sample_for_fit(held, encoded.spec)).fingerprint == everything.fingerprint
    assert len(list(sample_for_fit(encoded.sources, encoded.spec, limit=2))) == 4


def test_a_folder_without_a_readable_video_is_named_with_the_first_reasons(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.mp4").write_bytes(b"words")
    sources = list_sources(tmp_path).sources
    with pytest.raises(UserError, match=rf"no readable video in {tmp_path}: .*\.mp4: Invalid data.*and 2 more"):
        list(sample_for_fit(sources, replace(SPEC, held_out=0), videos=str(tmp_path)))


def test_encoding_and_loading_never_import_torch(encoded: Encoded) -> None:
    code = "import sys, data_pipeline.encode, data_pipeline.text.hashing\n"
    code += f"import data_pipeline.loader as l; d = l.open_dataset({str(encoded.dataset.folder)!r})\n"
    code += "d.split('5x32x32', 'train', 0).fetch([0]); d.tokenizer; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(manifest.__file__).parents[1])
