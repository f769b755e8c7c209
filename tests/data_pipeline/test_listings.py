"""Every kind of place that videos come from, made here and then decoded through the same door."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_pipeline import storage
from data_pipeline.buckets import Bucket
from data_pipeline.clips import clips_of
from data_pipeline.entry_table import Unmatched
from data_pipeline.errors import UserError
from data_pipeline.estimate import Header, check_buckets, estimate, read_header, unfit
from data_pipeline.manifest import dataset_fingerprint
from data_pipeline.sources import IMAGE, VIDEO, Source, list_sources
from data_pipeline.spec import EncodeSpec
from data_pipeline.storage import S3Path
from tests.s3 import S3Server

from .conftest import encode_folder, moving_frames

BUCKET, STILL = Bucket(5, 32, 32), Bucket(1, 32, 32)
SPEC = EncodeSpec(fps=8, buckets=(BUCKET,))


@pytest.fixture
def videos(write_video: Callable[..., Path]) -> list[Path]:
    return [write_video(moving_frames(10, 32, 48, seed=seed), name=f"in/{name}.mp4") for seed, name in enumerate(("a", "sub/b", "c"))]


def clips(source: Source) -> int:
    return len(clips_of(source.open(), SPEC).clips[BUCKET])


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def test_a_glob_names_what_it_matches_from_its_fixed_part_on(videos: list[Path]) -> None:
    root = videos[0].parent
    assert [source.name for source in list_sources(f"{root}/**/*.mp4").sources] == ["a.mp4", "c.mp4", "sub/b.mp4"]
    (only,) = list_sources(f"{root}/[a]*.mp4").sources
    assert (only.name, clips(only)) == ("a.mp4", 2)
    with pytest.raises(UserError, match=r"no video in .*\*\.mkv"):
        list_sources(f"{root}/*.mkv")


@pytest.mark.parametrize("pattern", ["*.mp4", "**/*.mp4", "./*.mp4"])
def test_a_glob_may_begin_where_the_user_is(videos: list[Path], pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(videos[0].parent)
    names = [source.name for source in list_sources(pattern).sources]
    assert names == (["a.mp4", "c.mp4", "sub/b.mp4"] if "**" in pattern else ["a.mp4", "c.mp4"])


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_table_names_files_with_their_captions_and_licences(videos: list[Path], tmp_path: Path, suffix: str) -> None:
    rows = [{"file": f"in/{name}", "caption": f"it is {name}", "licence": "CC0"} for name in ("sub/b.mp4", "a.mp4")]
    table = tmp_path / f"list{suffix}"
    if suffix == ".csv":
        table.write_text("file,caption,licence\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    elif suffix == ".jsonl":
        table.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), table)
    found = list_sources(table).sources
    assert [(source.name, source.caption, source.licence) for source in found] == [
        ("in/a.mp4", "it is a.mp4", "CC0"),
        ("in/sub/b.mp4", "it is sub/b.mp4", "CC0"),
    ]
    assert [clips(source) for source in found] == [2, 2]


def test_tars_of_videos_are_read_in_place_with_their_captions(videos: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    with tarfile.open(folder / "one.tar", "w") as tar:
        add(tar, "x.txt", b"a caption\n")
        add(tar, "x.mp4", videos[0].read_bytes())
        add(tar, "deep/y.mp4", videos[1].read_bytes())
        add(tar, "deep/y.json", json.dumps({"text": "another", "license": "MIT"}).encode())
    shutil.copy(videos[2], folder / "plain.mp4")
    found = list_sources(folder).sources
    assert [(source.name, source.caption, source.licence) for source in found] == [
        ("one.tar/deep/y.mp4", "another", "MIT"),
        ("one.tar/x.mp4", "a caption", ""),
        ("plain.mp4", "", ""),
    ]
    assert [clips(source) for source in found] == [2, 2, 2]
    assert [source.id for source in list_sources(folder / "one.tar").sources] == [source.id for source in found[:2]]


def test_a_hugging_face_data_set_on_disk_gives_its_rows(videos: list[Path], tmp_path: Path) -> None:
    """As `datasets` saves one: arrow streams, listed in state.json, videos as bytes beside a path."""
    folder = tmp_path / "saved"
    folder.mkdir()
    rows = [{"video": {"bytes": path.read_bytes(), "path": path.name}, "caption": path.stem} for path in videos]
    for number, part in enumerate((rows[:2], rows[2:])):
        table = pa.Table.from_pylist(part)
        with pa.OSFile(str(folder / f"data-{number:05d}-of-00002.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=1)
    state = {"_data_files": [{"filename": f"data-{number:05d}-of-00002.arrow"} for number in (0, 1)]}
    (folder / "state.json").write_text(json.dumps(state))
    found = list_sources(folder).sources
    assert [source.caption for source in found] == ["a", "b", "c"]
    assert [clips(source) for source in found] == [2, 2, 2]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=2)
    found = list_sources(tmp_path / "rows.parquet").sources
    assert [(source.caption, clips(source)) for source in found] == [("a", 2), ("b", 2), ("c", 2)]


def told(sources: Sequence[Source]) -> list[tuple[str, ...]]:
    return [(source.id, source.name, source.caption, source.licence) for source in sources]


def test_what_stands_in_s3_is_what_would_stand_on_a_disk(videos: list[Path], tmp_path: Path, bucket: S3Path) -> None:
    folder = videos[0].parent
    with tarfile.open(folder / "one.tar", "w") as tar:
        add(tar, "x.txt", b"a caption\n")
        add(tar, "x.mp4", videos[0].read_bytes())
        add(tar, "deep/y.mp4", videos[1].read_bytes())
        add(tar, "deep/y.json", json.dumps({"text": "another", "license": "MIT"}).encode())
    (folder / "notes.md").write_text("no video")
    (folder / "list.csv").write_text("file,caption\nsub/b.mp4,it is b\n")
    rows = [{"video": {"bytes": path.read_bytes(), "path": path.name}, "caption": path.stem} for path in videos]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet", row_group_size=2)
    captions = tmp_path / "captions.csv"
    captions.write_text("file,caption\nc.mp4,it is c\n")
    storage.copy_tree(folder, bucket / "in", last="")
    storage.write_bytes(bucket / "captions.csv", captions.read_bytes())
    for name in ("", "a.mp4", "one.tar", "list.csv", "rows.parquet", "sub"):
        here, there = list_sources(folder / name).sources, list_sources(str(bucket / "in" / name)).sources
        assert told(there) == told(here), name
        assert [clips(source) for source in there] == [2] * len(here), name
    with_captions = list_sources(str(bucket / "in"), str(bucket / "captions.csv"))
    assert told(with_captions.sources) == told(list_sources(folder, captions).sources)
    with pytest.raises(UserError, match=rf"no video in {bucket}/in/gone.mp4"):
        list_sources(str(bucket / "in" / "gone.mp4"))
    with pytest.raises(UserError, match=rf"captions file {bucket}/gone.csv cannot be read: No such file"):
        list_sources(str(bucket / "in"), str(bucket / "gone.csv"))


def test_of_a_tar_in_s3_the_videos_are_not_fetched_to_list_it_nor_is_anything_asked_per_video(
    tmp_path: Path, bucket: S3Path, s3_server: S3Server
) -> None:
    with tarfile.open(tmp_path / "large.tar", "w") as tar:
        for number in range(3):
            add(tar, f"{number}.mp4", bytes(3 << 20))
        add(tar, "empty.mp4", b"")
    storage.copy_tree(tmp_path, bucket / "in", last="")
    size, spans, before = (tmp_path / "large.tar").stat().st_size, list[str](), len(s3_server.requests)

    def note(request: dict[str, Any]) -> None:
        if request["REQUEST_METHOD"] == "GET" and request["PATH_INFO"].endswith(".tar"):
            spans.append(request.get("HTTP_RANGE") or f"bytes=0-{size - 1}")

    s3_server.gate = note
    sources = list_sources(str(bucket / "in")).sources
    assert [source.bytes for source in sources] == [size] * 4
    first, last = ([int(text) for text in texts] for texts in zip(*(span.removeprefix("bytes=").split("-") for span in spans), strict=True))
    assert sum(last) - sum(first) < size / 4
    listed = len(s3_server.requests)
    assert listed - before < 20
    dataset_fingerprint(sources, SPEC)
    assert len(s3_server.requests) == listed
    (empty,) = (source.open() for source in sources if source.name.endswith("empty.mp4"))
    assert isinstance(empty, io.BytesIO)
    assert empty.read() == b""


def test_sizes_of_files_in_s3_that_a_table_names_are_asked_for_once(bucket: S3Path, tmp_path: Path, s3_server: S3Server) -> None:
    for number in range(5):
        storage.write_bytes(bucket / f"{number}.mp4", bytes(number))
    (tmp_path / "list.csv").write_text("file\n" + "".join(f"{bucket / f'{number}.mp4'}\n" for number in range(6)))
    before = len(s3_server.requests)
    sources = list_sources(tmp_path / "list.csv").sources
    assert [source.size() for source in sources] == [0, 1, 2, 3, 4, -1]
    assert [method for method, _ in s3_server.requests[before:]] == ["HEAD"] * 6


def test_stills_are_one_frame_clips_of_their_own_kind(videos: list[Path], tmp_path: Path) -> None:
    folder = videos[0].parent
    Image.fromarray(moving_frames(1, 40, 60)[0]).save(folder / "photo.PNG")
    assert "photo.PNG" not in {source.name for source in list_sources(folder).sources}
    found = {source.name: source for source in list_sources(folder, images=True).sources}
    assert {name: source.kind for name, source in found.items()} == {
        "a.mp4": VIDEO, "c.mp4": VIDEO, "photo.PNG": IMAGE, "sub/b.mp4": VIDEO
    }  # fmt: skip
    made = clips_of(found["photo.PNG"].open(), EncodeSpec(fps=8, buckets=(STILL, BUCKET)))
    assert (len(made.clips[STILL]), made.rejected[BUCKET]) == (1, {"too_short": 1})


def test_a_captions_file_overrules_what_the_place_tells(videos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"file": "in/a.mp4", "caption": "old"}\n{"file": "in/c.mp4", "caption": "kept"}\n')
    (tmp_path / "captions.csv").write_text("file,caption\nin/a.mp4,new\n")
    found = list_sources(tmp_path / "list.jsonl", tmp_path / "captions.csv")
    assert [source.caption for source in found.sources] == ["new", "kept"]
    assert found.without_caption == Unmatched()


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.csv", b"title\nx\n", "row 1: no value in a column file or video"),
        ("a.jsonl", b'{"file": "x.mp4"}\nwords\n', "cannot be read"),
        ("a.jsonl", b'{"file": "x.mp4"}\n{"file": "x.mp4"}\n', "x.mp4 more than once"),
        ("a.parquet", b"words", "cannot be read"),
        ("a.tar", b"words" * 300, "is not a tar of videos"),
        ("state.json", b"{}", "does not list the files"),
    ],
)
def test_a_place_that_cannot_be_listed_is_named_with_the_reason(tmp_path: Path, name: str, content: bytes, named: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}.*{named}|{named}"):
        list_sources(tmp_path if name == "state.json" else tmp_path / name)


def test_a_parquet_without_videos_says_what_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"title": "x"}]), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="no column file or video or path or image; it has title"):
        list_sources(tmp_path / "rows.parquet")


def test_a_source_that_is_gone_from_its_tar_fails_alone(videos: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    with tarfile.open(folder / "one.tar", "w") as tar:
        add(tar, "good.mp4", videos[0].read_bytes())
        add(tar, "words.mp4", b"these are words")
    made = encode_folder(folder, tmp_path / "dataset", EncodeSpec(fps=8, buckets=(BUCKET,), held_out=0.0001, channels=8))
    assert made.dataset.manifest.sources.ok == 1
    assert list(made.dataset.manifest.sources.failed) == ["one.tar/words.mp4"]


def test_the_estimate_is_near_what_encoding_gives(synthetic_videos: Path, tmp_path: Path) -> None:
    made = encode_folder(synthetic_videos, tmp_path, EncodeSpec(fps=8, buckets=(BUCKET, Bucket(9, 48, 48))))
    expected = estimate(made.sources, made.spec)
    clips = sum(made.dataset.manifest.clips(bucket, split) for bucket in made.dataset.manifest.buckets for split in ("train", "held_out"))
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.tar"))
    assert expected.sources == 12
    assert expected.hours == pytest.approx(12 * 2.5 / 3600, rel=0.01)
    assert expected.clips == clips
    assert expected.bytes == pytest.approx(size, rel=0.3)


def test_a_bucket_that_no_source_can_fill_is_refused_before_any_work_with_the_counts(videos: list[Path], tmp_path: Path) -> None:
    for name in ("words.mp4", "more words.mp4"):  # one of which is held out
        (videos[0].parent / name).write_bytes(b"words")
    sources = list_sources(videos[0].parent).sources
    check_buckets(sources, SPEC, "in")
    with pytest.raises(UserError, match=r"no video in in fits bucket 17x32x32 \(too_short 3, unreadable 1\)"):
        check_buckets(sources, EncodeSpec(fps=8, buckets=(BUCKET, Bucket(17, 32, 32))), "in")
    with pytest.raises(UserError, match=r"bucket 5x64x64 \(too_small 3, unreadable 1\)"):
        check_buckets(sources, EncodeSpec(fps=8, buckets=(Bucket(5, 64, 64),)), "in")


def test_headers_are_not_trusted_to_the_last_frame_nor_for_the_way_up() -> None:
    header = Header(seconds=1.9, height=320, width=640)
    assert unfit(header, Bucket(17, 640, 320), fps=8) is None
    assert unfit(header, Bucket(21, 320, 320), fps=8) == "too_short"
    assert unfit(Header(0, 320, 640), Bucket(21, 320, 320), fps=8) is None
    assert unfit(None, BUCKET, fps=8) == "unreadable"


def test_no_real_clip_that_fills_a_bucket_is_called_unfit(real_videos: Path) -> None:
    buckets = (Bucket(17, 96, 96), Bucket(33, 240, 320))
    for source in list_sources(real_videos, real_videos / "captions.csv").sources:
        found = clips_of(source.open(), EncodeSpec(fps=8, buckets=buckets, max_clips=1)).clips if source.caption else {}
        assert not any(clips and unfit(read_header(source), bucket, 8) for bucket, clips in found.items()), source.name
