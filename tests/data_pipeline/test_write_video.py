from pathlib import Path

import av
import numpy as np
import pytest

from data_pipeline.decode import Resizer, VideoFile
from data_pipeline.order import keyed_generator
from data_pipeline.synthetic import draw_scene, render
from data_pipeline.write_video import write_mp4

from .conftest import moving_frames


def test_what_is_written_plays_back_at_its_rate(tmp_path: Path) -> None:
    frames = moving_frames(9, 32, 48)
    write_mp4(tmp_path / "a.mp4", frames, fps=12.5)
    pictures = list(VideoFile(tmp_path / "a.mp4"))
    assert [picture.time for picture in pictures] == pytest.approx([n / 12.5 for n in range(9)], abs=1e-3)
    played = np.stack([Resizer()(picture, 32, 48) for picture in pictures])
    assert np.abs(played.astype(int) - frames).mean() < 5
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_mp4(tmp_path / name, moving_frames(5, 32, 32), fps=8)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="48x33: both sides must be even"):
        write_mp4(tmp_path / "odd.mp4", moving_frames(2, 33, 48), fps=8)
    with pytest.raises(ValueError):
        write_mp4(tmp_path / "floats.mp4", moving_frames(2, 32, 32).astype(float), fps=8)
    assert list(tmp_path.iterdir()) == []


def test_the_same_frames_give_the_same_bytes_however_often(tmp_path: Path) -> None:
    frames = render(draw_scene(keyed_generator("synthetic", 0, 11)), 96, 34, 8)
    written = set()
    for number in range(12):
        write_mp4(tmp_path / f"{number}.mp4", frames, 8)
        written.add((tmp_path / f"{number}.mp4").read_bytes())
    assert len(written) == 1
