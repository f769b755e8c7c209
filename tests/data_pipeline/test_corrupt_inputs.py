"""What becomes of files that are damaged or odd: every one is generated here, encoded, and its outcome stated. Nothing is lost silently."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest

from data_pipeline.buckets import Bucket
from data_pipeline.chunks import Chunk
from data_pipeline.encode import encode_chunk
from data_pipeline.records import TRAIN, SourceRecord
from data_pipeline.sources import list_sources
from data_pipeline.spec import EncodeSpec

from .conftest import Encoded, moving_frames, write_streams, write_turned

Writer = Callable[..., Path]
SPEC = EncodeSpec(fps=8, buckets=(Bucket(5, 32, 32),))
SHORTEST = EncodeSpec(fps=8, buckets=(Bucket(1, 32, 32), Bucket(5, 32, 32)))
FRAMES = moving_frames(20, 48, 64)


@dataclass(frozen=True)
class Outcome:
    """What a source record says: clips of the 5-frame bucket, and whether packets were lost."""

    status: str
    clips: int
    reason: str = ""
    damaged: bool = False


@pytest.fixture
def outcome(encoded: Encoded, tmp_path: Path) -> Callable[..., Outcome]:
    numbers = itertools.count()

    def encode(path: Path, spec: EncodeSpec = SPEC) -> Outcome:
        sources = list_sources(path).sources
        folder = tmp_path / f"dataset-{next(numbers)}"  # a chunk is known by the names and sizes of its files, not by their content
        record = encode_chunk(Chunk(TRAIN, 0, sources), spec, encoded.tokenizer, encoded.text, folder)
        assert [source.name for source in record.sources] == [path.name]
        (source,) = record.sources
        assert record.clips == sum(source.clips.values())
        return _told(source)

    return encode


def _told(source: SourceRecord) -> Outcome:
    return Outcome(source.status, source.clips.get("5x32x32", 0), source.reason, source.decode_errors > 0)


def test_a_truncated_mp4_fails_because_its_index_was_at_the_end(write_video: Writer, outcome: Callable[..., Outcome]) -> None:
    path = write_video(FRAMES)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    told = outcome(path)
    assert (told.status, told.clips) == ("failed", 0)
    assert "Invalid data" in told.reason


@pytest.mark.parametrize("name", ["cut.mkv", "cut.ts"])
def test_a_truncated_stream_gives_the_clips_before_the_cut(write_video: Writer, outcome: Callable[..., Outcome], name: str) -> None:
    path = write_video(FRAMES, name=name)
    whole = outcome(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    told = outcome(path)
    assert told.status == "ok"
    assert 0 < told.clips < whole.clips == 4


def test_an_empty_file_fails(tmp_path: Path, outcome: Callable[..., Outcome]) -> None:
    (tmp_path / "empty.mp4").touch()
    assert outcome(tmp_path / "empty.mp4") == Outcome("failed", 0, "Invalid data found when processing input")


def test_garbage_in_the_middle_costs_the_pictures_there_and_is_counted(write_video: Writer, outcome: Callable[..., Outcome]) -> None:
    path = write_video(moving_frames(40, 64, 64), gop=4)
    with av.open(str(path)) as container:
        packets = [(packet.pos or 0, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    start, stop = packets[16][0], sum(packets[18])
    content[start:stop] = np.random.default_rng(0).bytes(stop - start)
    path.write_bytes(content)
    told = outcome(path)
    assert (told.status, told.damaged) == ("ok", True)
    assert 6 <= told.clips <= 8


def test_garbage_between_the_packets_of_a_transport_stream_is_skipped(write_video: Writer, outcome: Callable[..., Outcome]) -> None:
    path = write_video(FRAMES, name="noisy.ts")
    content = path.read_bytes()
    middle = len(content) // 2 // 188 * 188
    path.write_bytes(content[:middle] + np.random.default_rng(0).bytes(40_000) + content[middle:])
    told = outcome(path)
    assert told.status == "ok"
    assert 3 <= told.clips <= 4


def test_sound_without_a_picture_fails(tmp_path: Path, outcome: Callable[..., Outcome]) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    assert outcome(path) == Outcome("failed", 0, "no video stream")


def test_of_two_video_streams_the_one_that_players_show_is_used(tmp_path: Path, outcome: Callable[..., Outcome]) -> None:
    large, small = moving_frames(20, 48, 48), moving_frames(20, 16, 16)
    assert outcome(write_streams(tmp_path / "large first.mp4", [large, small])) == Outcome("ok", 4)
    assert outcome(write_streams(tmp_path / "small first.mp4", [small, large])) == Outcome("rejected", 0, "too_small")


def test_a_variable_rate_is_cut_by_time(write_video: Writer, outcome: Callable[..., Outcome]) -> None:
    """20 pictures in the first 0.5 s, 5 in the next 2 s: 2.5 s are 20 ticks, whatever the number of pictures."""
    times = [25 * n for n in range(20)] + [500 + 400 * n for n in range(5)]
    assert outcome(write_video(moving_frames(25, 48, 64), times)) == Outcome("ok", 4)


def test_a_rotated_file_is_measured_upright(write_video: Writer, outcome: Callable[..., Outcome]) -> None:
    tall = EncodeSpec(fps=8, buckets=(Bucket(5, 64, 48),))
    path = write_video(FRAMES)
    assert outcome(path, tall) == Outcome("rejected", 0, "too_small")
    write_turned(path)
    assert outcome(path, tall).status == "ok"


def test_ten_bits_per_colour_are_read(write_video: Writer, outcome: Callable[..., Outcome]) -> None:
    assert outcome(write_video(FRAMES, pixels="yuv420p10le")) == Outcome("ok", 4)


def test_a_transport_stream_that_does_not_start_at_zero_is_read_whole(write_video: Writer, outcome: Callable[..., Outcome]) -> None:
    assert outcome(write_video(FRAMES, name="recording.ts")) == Outcome("ok", 4)


def test_odd_sizes_are_read(write_video: Writer, outcome: Callable[..., Outcome]) -> None:
    assert outcome(write_video(moving_frames(20, 33, 51), pixels="yuv444p")) == Outcome("ok", 4)


def test_a_single_frame_is_a_clip_of_one_frame_and_too_short_for_more(write_video: Writer, outcome: Callable[..., Outcome]) -> None:
    path = write_video(FRAMES[:1])
    assert outcome(path) == Outcome("rejected", 0, "too_short")
    assert outcome(path, SHORTEST).status == "ok"


def test_the_content_decides_what_a_file_is_not_its_extension(write_video: Writer, tmp_path: Path, outcome: Callable[..., Outcome]) -> None:
    path = write_video(FRAMES)
    assert outcome(path.rename(tmp_path / "really an mp4.avi")) == Outcome("ok", 4)
    words = tmp_path / "words.mp4"
    words.write_bytes(b"these are words, not pictures\n" * 50)
    assert outcome(words) == Outcome("failed", 0, "Invalid data found when processing input")


def test_four_empty_gigabytes_fail_and_four_behind_a_video_do_no_harm(
    write_video: Writer, tmp_path: Path, outcome: Callable[..., Outcome]
) -> None:
    hole = tmp_path / "hole.mp4"
    with hole.open("wb") as file:
        file.truncate(4 << 30)
    assert outcome(hole) == Outcome("failed", 0, "Invalid data found when processing input")
    path = write_video(FRAMES)
    with path.open("r+b") as file:
        file.truncate(4 << 30)
    assert outcome(path) == Outcome("ok", 4)


def test_a_path_with_spaces_and_unicode_is_a_path_like_any_other(write_video: Writer, outcome: Callable[..., Outcome]) -> None:
    assert outcome(write_video(FRAMES, name="möwe & 海/ein #%20 Video's 🎬.mp4")) == Outcome("ok", 4)


def test_a_folder_of_all_of_them_names_each_failure(tmp_path: Path, write_video: Writer, encoded: Encoded) -> None:
    good, cut = write_video(FRAMES, name="in/good.mp4"), write_video(FRAMES, name="in/cut.mp4")
    cut.write_bytes(cut.read_bytes()[:400])
    (tmp_path / "in" / "empty.mkv").touch()
    sources = list_sources(good.parent).sources
    record = encode_chunk(Chunk(TRAIN, 0, sources), SPEC, encoded.tokenizer, encoded.text, tmp_path / "dataset")
    assert {source.name: source.status for source in record.sources} == {"cut.mp4": "failed", "empty.mkv": "failed", "good.mp4": "ok"}
