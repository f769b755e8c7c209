"""The real clips named by VIDEOMAR_TEST_VIDEOS: 22 with captions, and edge cases under edge/. Read only."""

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.buckets import Bucket
from data_pipeline.decode import DecodeError, Resizer, VideoFile
from data_pipeline.sources import list_sources
from data_pipeline.spec import EncodeSpec

from .conftest import encode_folder

SPEC = EncodeSpec(fps=8, buckets=(Bucket(5, 64, 64), Bucket(17, 96, 96)), max_clips=2, sources_per_shard=8)


def test_every_real_clip_becomes_samples_and_every_outcome_is_told(real_videos: Path, tmp_path: Path) -> None:
    found = list_sources(real_videos, real_videos / "captions.csv")
    assert len(found.sources) - found.without_caption.count == 22
    assert found.unknown_captions.count == 0
    summary = encode_folder(real_videos, tmp_path, SPEC).dataset.manifest.sources
    assert summary.total == len(found.sources) == summary.ok + sum(summary.rejected.values()) + len(summary.failed)
    assert summary.ok >= 22 + 4
    assert {**summary.failed, **summary.damaged}.keys() == {"edge/decord__corrupted.mp4"}
    assert summary.rejected == {"too_short": 2}  # edge/decord__video_0.mov and _90.mov have three pictures


def test_a_rotated_recording_stands_upright(real_videos: Path) -> None:
    flat, upright = (next(iter(VideoFile(real_videos / "edge" / f"decord__video_{n}.mov"))) for n in (0, 90))
    assert (flat.height, flat.width) == (320, 568)
    assert (upright.height, upright.width) == (568, 320)


@pytest.mark.parametrize("name", ["av1_video.mkv", "bt709_full_range.mp4", "h264_10bits.mp4", "h265_10bits.mp4"])
def test_other_codecs_depths_and_ranges_use_the_whole_range_of_pixels(real_videos: Path, name: str) -> None:
    picture = next(iter(VideoFile(real_videos / "edge" / f"torchcodec__{name}")))
    pixels = Resizer()(picture, picture.height // 2, picture.width // 2)
    assert pixels.dtype == np.uint8
    assert pixels.std() > 10
    assert 20 < pixels.mean() < 235


def test_times_run_forward_in_every_file(real_videos: Path) -> None:
    for source in list_sources(real_videos).sources:
        try:
            times = np.array([picture.time for picture in VideoFile(source.path)])
        except DecodeError:
            continue
        assert (np.diff(times) > 0).mean() >= 0.99 or len(times) < 4, source.name
