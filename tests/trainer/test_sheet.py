"""The contact sheet pixel by pixel, and the figures that go with the samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.trainer.test_measures import drifting
from trainer.inspection.sheet import LABEL, MARGIN, TEXT, Row, contact_sheet
from trainer.inspection.showcase import Samples, figures, psnr, psnr_table, spread_over_sources

SIDE = (20, 24)  # height, width
BLUE = (20, 110, 220)


def video(frames: int, seed: int) -> np.ndarray:
    """Frames of one grey each, so that a pixel tells its frame."""
    greys = np.random.default_rng(seed).permutation(200)[:frames].astype(np.uint8) + 20
    return np.broadcast_to(greys[:, None, None, None], (frames, *SIDE, 3)).copy()


def drawn(rows: list[Row], path: Path, columns: int) -> np.ndarray:
    contact_sheet(rows, path, columns)
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def place(row: int, line: int, column: int) -> tuple[int, int]:
    """(top, left) of a picture: `line` 0 is the truth, 1 what was generated."""
    height, width = SIDE
    block = TEXT + 2 * (height + 2) + MARGIN
    return TEXT + row * block + TEXT + line * (height + 2), LABEL + column * (width + 2)


@pytest.mark.parametrize(("frames", "columns", "shown"), [(17, 9, list(range(0, 17, 2))), (3, 9, [0, 1, 2]), (10, 2, [0, 9]), (1, 9, [0])])
def test_the_frames_are_evenly_spaced_and_stand_where_they_should(tmp_path: Path, frames: int, columns: int, shown: list[int]) -> None:
    rows = [Row(f"clip {number}", video(frames, number), video(frames, 10 + number), 1) for number in range(3)]
    sheet = drawn(rows, tmp_path / "new" / "sheet.png", columns)
    height, width = SIDE
    assert sheet.shape == (TEXT + 3 * (TEXT + 2 * (height + 2) + MARGIN), LABEL + len(shown) * (width + 2) + MARGIN, 3)
    for number, row in enumerate(rows):
        for line, pictures in enumerate((row.truth, row.generated)):
            for column, frame in enumerate(shown):
                top, left = place(number, line, column)
                border = 1 if frame < row.given else 0
                inside = sheet[top + border : top + height - border, left + border : left + width - border]
                assert (inside == pictures[frame, 0, 0]).all()


def test_the_given_frames_and_no_others_are_framed_in_blue(tmp_path: Path) -> None:
    sheet = drawn([Row("clip", video(4, 0), video(4, 1), given=2)], tmp_path / "sheet.png", columns=4)
    height, width = SIDE
    for line in (0, 1):
        for column in range(4):
            top, left = place(0, line, column)
            edges = [sheet[top - 1, left + width // 2], sheet[top + height, left + width // 2], sheet[top + height // 2, left + width]]
            assert [tuple(edge) == BLUE for edge in edges] == [column < 2] * 3


def test_any_caption_fits(tmp_path: Path) -> None:
    frames = video(2, 0)
    sheets = [drawn([Row(caption, frames, frames, 1)], tmp_path / "sheet.png", 9) for caption in ("", "long " * 200, "写真 <b>é")]
    assert len({sheet.shape for sheet in sheets}) == 1


@pytest.mark.parametrize("difference", [1, 5, 255])
def test_psnr_follows_its_definition(difference: int) -> None:
    black = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr(black, black + np.uint8(difference)) == pytest.approx(20 * np.log10(255 / difference))
    assert psnr(black + np.uint8(difference), black) == psnr(black, black + np.uint8(difference))


def test_equal_videos_have_99_decibels() -> None:
    assert psnr(video(3, 0), video(3, 0)) == 99.0


def test_the_table_compares_only_what_was_generated() -> None:
    truth = np.array([10, 12, 14], np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    generated = truth.copy()
    generated[0] = 255  # a given frame does not count
    generated[1:] += 1
    table = psnr_table(Samples(["a", "b"], [truth, truth], [generated, truth], given=1))
    assert table["psnr"] == pytest.approx((20 * np.log10(255) + 99.0) / 2)
    assert table["psnr_copy_last_frame"] == pytest.approx(10 * np.log10(255**2 / ((2**2 + 4**2) / 2)))


def test_the_last_given_frame_is_the_one_that_is_copied() -> None:
    truth = np.array([0, 50, 53], np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    assert psnr_table(Samples(["a"], [truth], [truth], given=2))["psnr_copy_last_frame"] == pytest.approx(20 * np.log10(255 / 3))


def test_the_figures_say_how_many_of_the_samples_move_and_how_many_should() -> None:
    still, moving = drifting(0), drifting(3)
    found = figures(Samples(["a", "b"], [moving, moving], [still, moving], given=1))
    assert (found["dynamic_degree"], found["dynamic_degree_truth"]) == (0.5, 1.0)
    assert found["psnr_copy_last_frame"] < found["psnr"]


def test_every_source_gets_its_turn_before_one_has_two() -> None:
    assert spread_over_sources(["a-0", "a-1", "a-2", "b-0", "c-0", "b-1"], 4) == [0, 3, 4, 1]


def test_a_source_whose_name_has_dashes_is_one_source() -> None:
    assert spread_over_sources(["a-b-0", "a-b-1", "a-c-0"], 2) == [0, 2]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 99)), max_size=20), st.integers(1, 8))
def test_positions_are_distinct_and_sources_as_many_as_possible(clips: list[tuple[str, int]], count: int) -> None:
    keys = [f"{source}-{clip}" for source, clip in clips]
    chosen = spread_over_sources(keys, count)
    assert len(set(chosen)) == len(chosen) == min(count, len(keys))
    assert len({clips[position][0] for position in chosen}) == min(count, len({source for source, _ in clips}))
