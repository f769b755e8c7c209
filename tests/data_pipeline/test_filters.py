import numpy as np
import pytest

from data_pipeline.filters import FilterThresholds, clip_values, rejection, source_rejection

from .conftest import moving_frames


def test_values_say_what_they_measure() -> None:
    black = np.zeros((5, 16, 16, 3), np.uint8)
    moving = moving_frames(5, 32, 32)
    still = np.repeat(moving[:1], 5, axis=0)
    assert clip_values(black) == {"luma_mean": 0, "luma_std": 0, "motion": 0, "sharpness": 0, "black": 1, "border": 1}
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


def test_bars_along_the_edges_are_measured() -> None:
    letterbox = moving_frames(5, 40, 60)
    letterbox[:, :10] = letterbox[:, 36:] = 16
    assert clip_values(letterbox)["border"] == pytest.approx(14 / 40)
    window = moving_frames(5, 40, 60)
    window[:, :4] = window[:, :, 30:] = 255
    assert clip_values(window)["border"] == pytest.approx(1 - 36 / 40 * 30 / 60)
    assert clip_values(moving_frames(5, 40, 60))["border"] == 0


def test_frames_that_show_nothing_are_a_fraction() -> None:
    frames = moving_frames(8, 16, 16)
    frames[2:4] = 5
    assert clip_values(frames)["black"] == 0.25


@pytest.mark.parametrize(
    ("threshold", "reason"),
    [
        ({"max_black": 0.1}, "black"),
        ({"min_luma": 0.6}, "dark"),
        ({"max_luma": 0.3}, "bright"),
        ({"max_motion": 0.001}, "restless"),
        ({"max_border": 0.2}, "bordered"),
    ],
)
def test_each_threshold_has_a_reason_and_no_default_rejects(threshold: dict[str, float], reason: str) -> None:
    frames = moving_frames(8, 40, 40)
    frames[0], frames[:, :10] = 0, 0
    values = clip_values(frames)
    assert rejection(values, FilterThresholds()) is None
    assert rejection(values, FilterThresholds(**threshold)) == reason


def test_a_source_is_rejected_as_a_whole_for_its_length_or_size() -> None:
    limits = FilterThresholds(min_seconds=2, max_seconds=60, min_side=100)
    found = {source_rejection(*source, limits) for source in ((10, 99), (1.9, 100), (61, 100), (2, 100), (60, 100))}
    assert found == {"small_source", "brief_source", "long_source", None}
    assert source_rejection(0.1, 1, FilterThresholds()) is None


@pytest.mark.parametrize(
    "change", [{"min_motion": -1}, {"max_seconds": float("inf")}, {"min_seconds": 5, "max_seconds": 5}, {"duplicate_bits": -1}]
)
def test_a_threshold_that_cannot_be_is_refused_by_name(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"filters\.{list(change)[-1]}"):
        FilterThresholds(**change)
