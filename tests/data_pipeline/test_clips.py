from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.buckets import Bucket
from data_pipeline.clips import SLACK, clips_of, resample
from data_pipeline.spec import EncodeSpec

from .conftest import moving_frames

Writer = Callable[..., Path]
SMALL, LONG = Bucket(5, 32, 32), Bucket(9, 48, 48)
SPEC = EncodeSpec(fps=8, buckets=(SMALL, LONG))


@dataclass(frozen=True)
class Shown:
    time: float
    duration: float


def test_every_bucket_gets_its_windows_from_one_pass(write_video: Writer) -> None:
    frames = moving_frames(20, 48, 64)
    found = clips_of(write_video(frames), SPEC)
    assert [clip.frames.shape for clip in found.clips[SMALL]] == [(5, 32, 32, 3)] * 4
    assert [clip.frames.shape for clip in found.clips[LONG]] == [(9, 48, 48, 3)] * 2
    assert [(clip.start, clip.stop) for clip in found.clips[LONG]] == [(0, 1.125), (1.125, 2.25)]
    error = np.abs(found.clips[LONG][1].frames.astype(int) - frames[9:18, :, 8:56])
    assert error.mean() < 4


def test_no_clip_crosses_a_cut(write_video: Writer) -> None:
    scenes = [moving_frames(12, 48, 48), 255 - moving_frames(14, 48, 48, seed=1)]
    found = clips_of(write_video(np.concatenate(scenes)), SPEC)
    assert [clip.start for clip in found.clips[LONG]] == [0, 1.5]
    assert [clip.start for clip in found.clips[SMALL]] == [0, 0.625, 1.5, 2.125]


def test_a_gap_in_time_ends_a_scene(write_video: Writer) -> None:
    times = [125 * n for n in range(6)] + [10_000 + 125 * n for n in range(6)]
    found = clips_of(write_video(moving_frames(12, 48, 48), times), SPEC)
    assert [clip.start for clip in found.clips[SMALL]] == [0, 10]
    assert found.rejected[LONG] == {"too_short": 2}


def test_a_source_that_is_too_small_or_too_short_says_so_per_bucket(write_video: Writer) -> None:
    found = clips_of(write_video(moving_frames(4, 40, 40)), SPEC)
    assert found.rejected == {SMALL: {"too_short": 1}, LONG: {"too_small": 1}}


def test_blank_windows_are_counted_and_the_others_kept(write_video: Writer) -> None:
    frames = moving_frames(10, 32, 32)
    frames[:5] = 0
    found = clips_of(write_video(frames), SPEC)
    assert found.rejected[SMALL] == {"blank": 1}
    assert [clip.start for clip in found.clips[SMALL]] == [0.625]


def test_a_long_source_gives_no_more_than_its_share(write_video: Writer) -> None:
    spec = EncodeSpec(fps=8, buckets=(SMALL,), max_clips=2)
    assert len(clips_of(write_video(moving_frames(40, 32, 32)), spec).clips[SMALL]) == 2


def test_a_variable_rate_plays_at_its_true_speed(write_video: Writer) -> None:
    """30 pictures in the first second and 5 in the next: half of the samples come from each."""
    times = [round(n * 1000 / 30) for n in range(30)] + [1000 + 200 * n for n in range(5)]
    frames = np.stack([np.full((32, 32, 3), 40 + 5 * n, np.uint8) for n in range(35)])
    frames[:, ::4] = 0  # not blank
    found = clips_of(write_video(frames, times), EncodeSpec(fps=8, buckets=(Bucket(13, 32, 32),)))
    (clip,) = found.clips[Bucket(13, 32, 32)]
    levels = np.round((clip.frames[:, 2, 16, 0] - 40.0) / 5)
    due = [max(n for n, time in enumerate(times) if time / 1000 <= tick / 8 + SLACK) for tick in range(13)]
    assert np.abs(levels - due).max() <= 1


@given(
    st.lists(st.integers(1, 900), min_size=1, max_size=40),
    st.floats(0.5, 60, allow_nan=False),
    st.integers(-10_000, 10_000),
)
def test_resampling_shows_at_each_tick_the_last_picture_due(steps: list[int], fps: float, first: int) -> None:
    times = [(first + sum(steps[:n])) / 1000 for n in range(len(steps))]
    pictures = [Shown(time, step / 1000) for time, step in zip(times, steps, strict=True)]
    ticks = list(resample(((0, picture) for picture in pictures), fps))
    for number, (_, time, picture) in enumerate(ticks):
        assert time == pytest.approx(times[0] + number / fps)
        due = [sum(shown <= time + SLACK * factor for shown in times) for factor in (0.999, 1.001)]
        assert due[0] <= times.index(picture.time) + 1 <= due[1]
    end = times[-1] + (steps[-2] if len(steps) > 1 else steps[0]) / 1000
    assert len(ticks) == pytest.approx((end - times[0]) * fps, abs=1.1)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.sampled_from([4.0, 8.0, 10.0]))
def test_each_scene_is_resampled_from_its_own_first_picture(lengths: list[int], fps: float) -> None:
    scenes = [scene for scene, length in enumerate(lengths) for _ in range(length)]
    pictures = [(scene, Shown(number / 10, 0.1)) for number, scene in enumerate(scenes)]
    ticks = list(resample(pictures, fps))
    assert {scene for scene, _, _ in ticks} == set(scenes)
    for scene in set(scenes):
        first = next(picture for own, picture in pictures if own == scene)
        assert next(time for own, time, _ in ticks if own == scene) == first.time
