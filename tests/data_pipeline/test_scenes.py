from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.buckets import Bucket
from data_pipeline.clips import clips_of
from data_pipeline.decode import Resizer, VideoFile
from data_pipeline.scenes import BLANK, THUMBNAIL, TRANSITION, SceneDetector, Transition
from data_pipeline.sources import list_sources
from data_pipeline.spec import EncodeSpec

from .conftest import moving_frames

FPS = 24
SHORT = Bucket(5, 48, 64)
SPEC = EncodeSpec(fps=8, buckets=(SHORT,))


def shapes(seed: int, count: int = 60) -> np.ndarray:
    """float [count, 18, 32] in 0..255: a picture of blocks that drifts slowly; other seeds give unrelated ones."""
    blocks = np.random.default_rng(seed).uniform(20, 235, (6, 12))
    wide = np.kron(blocks, np.ones((3, 6)))
    return np.stack(
        [wide[:, at // 6 : at // 6 + 32] * (1 - at % 6 / 6) + wide[:, at // 6 + 1 : at // 6 + 33] * (at % 6 / 6) for at in range(count)]
    )


def mix(one: np.ndarray, two: np.ndarray | float, seconds: float) -> np.ndarray:
    """Pictures between: the first fades into the second over `seconds`."""
    weights = np.linspace(0, 1, round(seconds * FPS) + 2)[1:-1, None, None]
    return (1 - weights) * one + weights * two


def watch(pictures: Iterable[np.ndarray], fps: float = FPS) -> tuple[list[int], list[Transition]]:
    detector = SceneDetector(threshold=0.12)
    numbers = [detector.scene(number / fps, np.round(picture).astype(np.uint8)) for number, picture in enumerate(pictures)]
    return numbers, detector.transitions


def is_inside(found: list[Transition], numbers: list[int], picture: int) -> bool:
    return numbers[picture] == TRANSITION or any(transition.touches(picture / FPS, picture / FPS) for transition in found)


@given(st.integers(0, 1000), st.sampled_from([5, 8, 24, 60]))
@settings(max_examples=20, deadline=None)
def test_one_scene_stays_one_whatever_its_rate(seed: int, fps: int) -> None:
    assert watch(shapes(seed), fps) == ([0] * 60, [])


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_a_hard_cut_starts_a_scene_at_its_very_picture(seed: int) -> None:
    numbers, transitions = watch([*shapes(seed), *shapes(seed + 1)])
    assert numbers == [0] * 60 + [1] * 60
    assert transitions == []


def test_a_cut_between_dark_scenes_is_found_though_little_light_changes() -> None:
    dark = [0.3 * shapes(seed) for seed in (1, 2)]
    assert np.abs(dark[0][-1] - dark[1][0]).mean() / 255 < 0.12
    assert watch(np.concatenate(dark))[0] == [0] * 60 + [1] * 60


@pytest.mark.parametrize("seconds", [0.3, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("level", [0, 255], ids=["black", "white"])
def test_a_fade_out_and_in_belongs_to_no_scene(seconds: float, level: int) -> None:
    one, two = shapes(3), shapes(4)
    out, back = mix(one[-1], level, seconds), mix(np.full((18, 32), float(level)), two[0], seconds)
    numbers, found = watch([*one, *out, *[np.full((18, 32), level)] * 6, *back, *two])
    assert set(numbers[:60]) == {0}
    assert all(is_inside(found, numbers, 60 + n) for n in range(1, len(out)) if out[n].std() / 255 > BLANK)
    first = 60 + len(out) + 6
    blank = next(n for n in range(first, len(numbers)) if numbers[n] != numbers[first - 1])
    late = max(3, len(back) // 10)
    assert all(is_inside(found, numbers, n) for n in range(blank, first + len(back) - late))
    assert numbers[-1] not in (0, TRANSITION, numbers[first - 1])
    assert numbers[-55:] == [numbers[-1]] * 55


@pytest.mark.parametrize("seconds", [0.3, 0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("seed", [5, 6, 9])
def test_a_dissolve_belongs_to_no_scene(seconds: float, seed: int) -> None:
    one, two = shapes(seed), shapes(seed + 100)
    between = mix(one[-1], two[0], seconds)
    numbers, found = watch([*one, *between, *two])
    margin = max(2, len(between) // 5)
    assert all(is_inside(found, numbers, 60 + n) for n in range(margin, len(between) - margin))
    assert numbers[0] == 0 < numbers[-1]
    assert sum(numbers[n] == TRANSITION for n in range(60)) <= 3
    assert numbers[-40:] == [numbers[-1]] * 40


def test_a_change_of_light_and_a_wave_that_passes_are_no_dissolves() -> None:
    scene = shapes(8, 1)[0]
    light = [scene * level for level in np.linspace(0.4, 1, 60)]
    assert watch(light) == ([0] * 60, [])
    waves = moving_frames(60, *THUMBNAIL) @ np.array([0.299, 0.587, 0.114])
    assert watch(waves, 8) == ([0] * 60, [])


def test_a_transition_touches_what_lies_inside_it() -> None:
    transition = Transition(1.0, 2.0)
    assert transition.touches(0, 1.5)
    assert transition.touches(1.5, 1.6)
    assert transition.touches(1.5, 3)
    assert not transition.touches(0, 1)
    assert not transition.touches(2, 3)


@pytest.mark.parametrize("max_clips", [64, 3])
def test_clips_made_before_a_dissolve_was_found_are_taken_back(write_video: Callable[..., Path], max_clips: int) -> None:
    """Two still scenes of 1.5 s, dissolved into each other over 1 s: the clips lie wholly in one of them."""
    one, two = (np.repeat(frames[:1], 36, axis=0) for frames in (moving_frames(1, 48, 64), 255 - moving_frames(1, 48, 64, seed=5)[:, ::-1]))
    weights = np.linspace(0, 1, 26)[1:-1, None, None, None]
    frames = np.concatenate([one, (1 - weights) * one[:1] + weights * two[:1], two]).astype(np.uint8)
    path = write_video(frames, [round(n * 1000 / 24) for n in range(len(frames))])
    found = clips_of(path, EncodeSpec(fps=8, buckets=(SHORT,), max_clips=max_clips))
    assert found.rejected[SHORT]["fade"] >= 1
    assert len(found.clips[SHORT]) == 4 if max_clips == 64 else 3
    for clip in found.clips[SHORT]:
        assert clip.last < 1.55 or clip.start > 2.4
        assert np.abs(np.diff(clip.frames.astype(int), axis=0)).mean() < 1


def test_no_scene_of_the_real_clips_is_taken_for_a_transition(real_videos: Path) -> None:
    found = {}
    for source in list_sources(real_videos, real_videos / "captions.csv").sources:
        if not source.caption:
            continue
        shrink, detector = Resizer(), SceneDetector(threshold=0.12)
        for picture in VideoFile(source.path):
            detector.scene(picture.time, shrink(picture, *THUMBNAIL, "gray"))
        found[source.name] = len(detector.transitions)
    assert len(found) == 22
    assert not any(found.values())
