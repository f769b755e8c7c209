from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data_pipeline.decode import DecodeError, Picture, Resizer, VideoFile
from data_pipeline.tokenizers.quality import psnr

from .conftest import moving_frames, write_turned

Writer = Callable[..., Path]


def decoded(path: Path) -> tuple[list[Picture], int]:
    video = VideoFile(path)
    return list(video), video.errors


def test_pictures_come_in_order_with_their_times_sizes_and_colours(write_video: Writer) -> None:
    frames = moving_frames(10, 48, 64)
    pictures, errors = decoded(write_video(frames))
    assert [round(picture.time, 3) for picture in pictures] == [round(0.125 * n, 3) for n in range(10)]
    assert {(picture.height, picture.width) for picture in pictures} == {(48, 64)}
    assert errors == 0
    resize = Resizer()
    assert min(psnr(resize(picture, 48, 64), frame) for picture, frame in zip(pictures, frames, strict=True)) > 30


def test_a_variable_rate_keeps_its_own_times(write_video: Writer) -> None:
    times = [0, 40, 300, 310, 700, 1500]
    pictures, _ = decoded(write_video(moving_frames(6, 32, 32), times))
    assert [round(picture.time * 1000) for picture in pictures] == times


def test_a_path_with_spaces_and_unicode_is_a_path_like_any_other(write_video: Writer) -> None:
    assert len(decoded(write_video(moving_frames(3, 32, 32), name="möwe & 海/ein Video.mp4"))[0]) == 3


def test_a_single_frame_and_odd_sizes_decode(write_video: Writer) -> None:
    (picture,), _ = decoded(write_video(moving_frames(1, 33, 51), pixels="yuv444p"))
    assert (picture.height, picture.width) == (33, 51)
    assert Resizer()(picture, 17, 25).shape == (17, 25, 3)


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), 3), ((0, -1, 1, 0), 1), ((-1, 0, 0, -1), 2)], ids=["90", "270", "180"])
def test_a_rotated_file_is_turned_upright(write_video: Writer, matrix: tuple[int, ...], turns: int) -> None:
    frames = moving_frames(2, 32, 64)
    path = write_video(frames)
    write_turned(path, matrix)
    picture = decoded(path)[0][0]
    expected = np.rot90(frames[0], turns)
    assert (picture.height, picture.width) == expected.shape[:2]
    assert psnr(Resizer()(picture, *expected.shape[:2]), expected) > 30


def test_pixels_that_are_not_square_are_stretched(tmp_path: Path) -> None:
    path = tmp_path / "anamorphic.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(moving_frames(1, 32, 32)[0], format="rgb24")))
        container.mux(stream.encode())
    assert (decoded(path)[0][0].height, decoded(path)[0][0].width) == (32, 64)


def test_one_broken_packet_costs_only_the_pictures_that_need_it(write_video: Writer) -> None:
    path = write_video(moving_frames(40, 64, 64), gop=4)
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][16]
        position, size = packet.pos or 0, packet.size
    box = bytearray(path.read_bytes())
    box[position : position + size] = b"\xff" * size
    path.write_bytes(box)
    pictures, errors = decoded(path)
    assert errors >= 1
    assert 32 <= len(pictures) < 40


def test_a_truncated_file_fails_or_gives_the_pictures_it_has(write_video: Writer) -> None:
    path = write_video(moving_frames(20, 64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])  # mp4 keeps its index at the end: nothing is left
    with pytest.raises(DecodeError, match="Invalid data"):
        decoded(path)
    path = write_video(moving_frames(20, 64, 64), name="cut.mkv")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 0 < len(decoded(path)[0]) < 20


@pytest.mark.parametrize("content", [b"", b"these are words, not pictures\n" * 50], ids=["empty", "text"])
def test_what_is_no_video_is_an_error_with_a_reason(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(content)
    with pytest.raises(DecodeError, match="Invalid data"):
        decoded(path)


def test_a_missing_file_and_a_file_without_pictures_are_errors_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match="No such file"):
        decoded(tmp_path / "gone.mp4")
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(DecodeError, match="no video stream"):
        decoded(path)
