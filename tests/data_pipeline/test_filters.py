import numpy as np
import pytest

from data_pipeline.filters import FilterThresholds, clip_values, rejection

from .conftest import moving_frames


def test_values_say_what_they_measure() -> None:
    black = np.zeros((5, 16, 16, 3), np.uint8)
    moving = moving_frames(5, 32, 32)
    still = np.repeat(moving[:1], 5, axis=0)
    assert clip_values(black) == {"luma_mean": 0, "luma_std": 0, "motion": 0, "sharpness": 0}
    assert clip_values(black + 255)["luma_mean"] == pytest.approx(1)
    assert clip_values(still)["motion"] == 0 < clip_values(moving)["motion"]
    noise = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), dtype=np.uint8)
    assert clip_values(moving)["sharpness"] < clip_values(noise)["sharpness"]


def test_a_single_frame_has_no_motion() -> None:
    assert clip_values(moving_frames(1, 16, 16))["motion"] == 0


def test_blank_clips_are_rejected_and_still_ones_kept_unless_a_threshold_says_otherwise() -> None:
    black = clip_values(np.zeros((5, 16, 16, 3), np.uint8))
    still = clip_values(np.repeat(moving_frames(1, 16, 16), 5, axis=0))
    assert rejection(black, FilterThresholds()) == "blank"
    assert rejection(still, FilterThresholds()) is None
    assert rejection(still, FilterThresholds(min_motion=0.01)) == "still"
    assert rejection(still, FilterThresholds(min_sharpness=0.9)) == "blurred"
