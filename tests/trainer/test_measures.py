"""The measures of videos on pictures whose answer is known, and intervals against their definition."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import UserError
from trainer.inspection.evaluation import measures, vbench
from trainer.inspection.evaluation.fvd import frechet
from trainer.inspection.evaluation.intervals import nan_mean, of_mean, of_repeat


def noise(frames: int, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (frames, height, width, 3), np.uint8)


def drifting(pixels: int, frames: int = 6) -> np.ndarray:
    """A textured picture that moves to the right by so many pixels per frame."""
    picture = np.kron(noise(1, 16, 24)[0], np.ones((4, 4, 1), np.uint8))
    return np.stack([np.roll(picture, pixels * frame, axis=1) for frame in range(frames)])


def a_square_moves(frames: int = 9) -> np.ndarray:
    video = np.full((frames, 48, 48, 3), 40, np.uint8)
    for frame in range(frames):
        video[frame, 16:32, 4 + 3 * frame : 16 + 3 * frame] = 220
    return video


def test_psnr_and_ssim_of_equal_frames_are_the_highest() -> None:
    video = noise(3)
    assert measures.psnr_by_frame(video, video).tolist() == [99.0] * 3
    assert measures.ssim_by_frame(video, video) == pytest.approx([1.0] * 3)


def test_psnr_is_that_of_the_mean_squared_error() -> None:
    video = np.full((2, 16, 16, 3), 100, np.uint8)
    assert measures.psnr_by_frame(video + np.uint8(5), video) == pytest.approx([10 * math.log10(255**2 / 25)] * 2)


def test_ssim_falls_with_noise_and_sees_structure() -> None:
    clean = drifting(0, 1)
    slight, strong = (np.clip(clean + np.random.default_rng(0).normal(0, s, clean.shape), 0, 255).astype(np.uint8) for s in (5, 60))
    values = [measures.ssim_by_frame(other, clean)[0] for other in (slight, strong, noise(1, *clean.shape[1:3]))]
    assert 1 > values[0] > values[1] > values[2]
    assert abs(values[2]) < 0.1


@pytest.mark.parametrize("pixels", [0, 1, 3, 5])
def test_flow_is_the_speed_of_what_moves(pixels: int) -> None:
    assert measures.flow(drifting(pixels)) * 64 == pytest.approx([pixels] * 5)


def test_a_still_video_with_noise_does_not_move() -> None:
    still = np.clip(100 + np.random.default_rng(0).normal(0, 2, (5, 48, 48, 3)), 0, 255).astype(np.uint8)
    speeds = measures.flow(still)
    assert not measures.is_dynamic(speeds)
    assert speeds.max() == 0.0


def test_a_video_is_dynamic_when_enough_of_its_frames_move_fast() -> None:
    assert measures.is_dynamic(measures.flow(drifting(3)))
    assert not measures.is_dynamic(measures.flow(drifting(1)))
    assert measures.is_dynamic(np.array([0.1] * 4 + [0.0] * 12))
    assert not measures.is_dynamic(np.array([0.1] * 3 + [0.0] * 13))


def test_what_moved_is_where_the_truth_left_the_given_frame() -> None:
    where = measures.moved(a_square_moves(), 1)
    assert not where[0].any()
    assert where[1].sum() == 16 * 6  # three columns uncovered, three covered
    assert not where[:, :16].any()


def test_the_error_of_moving_pixels_is_of_the_next_latent_frame_only() -> None:
    truth = a_square_moves()
    copied = np.repeat(truth[:1], 9, axis=0)
    assert measures.moving_error(copied, truth, 1, 4) == pytest.approx(180.0**2)
    better = truth.copy()
    better[5:] = 0  # later frames do not count
    assert measures.moving_error(better, truth, 1, 4) == 0.0
    assert math.isnan(measures.moving_error(copied, copied, 1, 4))


def test_flicker_and_background_are_judged_where_the_truth_stands_still() -> None:
    truth = a_square_moves()
    assert measures.flicker(truth, truth) == 0.0
    assert measures.background_stability(truth, truth, 1) == 99.0
    flickering = truth.copy()
    flickering[1::2] += 10
    assert measures.flicker(flickering, truth) == pytest.approx(10.0)
    assert measures.background_stability(flickering, truth, 1) == pytest.approx(10 * math.log10(255**2 / 50))
    blinking = np.stack([np.full((48, 48, 3), 255 * (frame % 2), np.uint8) for frame in range(9)])
    assert math.isnan(measures.flicker(truth, blinking))


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=40))
def test_an_interval_is_students_and_a_repeat_s_is_wider_by_the_root_of_two(values: list[float]) -> None:
    mean, repeat = vars(of_mean(values)), vars(of_repeat(values))
    half = mean["high"] - mean["mean"]
    assert half == pytest.approx(mean["mean"] - mean["low"], abs=1e-6)
    assert repeat["high"] - mean["mean"] == pytest.approx(half * math.sqrt(2), abs=1e-6)
    if len(values) == 2:
        assert half == pytest.approx(12.706 * abs(values[0] - values[1]) / 2, rel=1e-3, abs=1e-6)


def test_intervals_cover_as_often_as_they_say() -> None:
    drawn = np.random.default_rng(0).normal(3, 2, (2000, 2, 4))
    covered = 0
    for first, second in drawn:
        found = vars(of_repeat(list(first)))
        covered += found["low"] <= second.mean() <= found["high"]
    assert 0.93 < covered / len(drawn) < 0.97


def test_what_is_not_known_is_left_out() -> None:
    nan = math.nan
    assert of_mean([1.0, nan]).mean == 1.0
    assert of_mean([nan]).mean is None
    assert nan_mean(np.array([[1.0, nan], [3.0, nan]]), 0).tolist()[0] == 2.0


def test_frechet_distance_is_that_of_gaussians() -> None:
    draw = np.random.default_rng(0).standard_normal((4000, 2))
    assert frechet(draw, draw) == pytest.approx(0.0, abs=1e-6)
    assert frechet(draw, draw + np.array([3.0, 0.0])) == pytest.approx(9.0, abs=1e-6)
    assert frechet(draw, draw * 2.0) == pytest.approx(2.0, rel=0.1)  # (2 - 1)^2 in each of two directions


def suite(folder: Path) -> Path:
    entries = [
        {"image_name": "a cat.jpg", "prompt_en": "a cat, camera pans left", "dimension": ["camera_motion"]},
        {"image_name": "a cat.jpg", "prompt_en": "a cat", "dimension": ["i2v_subject"]},
        {"image_name": "a cat.jpg", "prompt_en": "a cat", "dimension": ["dynamic_degree"]},
    ]
    (folder / "data" / "crop" / "1-1").mkdir(parents=True)
    (folder / vbench.INFO).write_text(json.dumps(entries))
    return folder


def test_vbench_gets_five_videos_per_prompt_under_its_own_names(tmp_path: Path) -> None:
    wanted = vbench.prompts(suite(tmp_path), "1-1")
    assert [prompt.name for prompt in wanted] == [
        f"{text}-{index}.mp4" for text in ("a cat, camera pans left", "a cat") for index in range(5)
    ]
    assert wanted[0].image == tmp_path / "data" / "crop" / "1-1" / "a cat.jpg"
    made = vbench.make_videos(wanted, tmp_path, lambda prompt, path: path.touch())
    assert (made, vbench.make_videos(wanted, tmp_path, lambda prompt, path: path.touch())) == (10, 0)


def test_vbench_s_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not VBench-I2V's list of prompts"):
        vbench.prompts(tmp_path, "1-1")
    with pytest.raises(UserError, match="get VBench-I2V's images first"):
        vbench.prompts(suite(tmp_path), "16-9")
    assert vbench.scores(tmp_path, tmp_path / "videos", "1-1", "cpu") is None


def test_the_nearest_crop_is_chosen() -> None:
    assert [vbench.nearest_ratio(*size) for size in ((96, 96), (480, 768), (480, 832), (480, 854))] == ["1-1", "8-5", "7-4", "16-9"]
