"""The report's charts: inside their frame for any points, smoothed and thinned as they say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.report_page import Page
from trainer.inspection.chart import COLOURS, HEIGHT, LEFT, POINTS, RIGHT, TOP, WIDTH, Line, chart, nice


def test_an_empty_chart_is_nothing() -> None:
    assert chart("title", []) == ""
    assert chart("title", [Line("line", [])], [(1, "mark")]) == ""


def test_a_chart_starts_at_zero_and_keeps_its_points_inside() -> None:
    page = Page(chart("title", [Line("up", [(0, 0.0), (100, 2.0)]), Line("flat", [(50, 1.0)])]))
    up, flat = page.coordinates()
    bottom, top = up[0][1], up[1][1]
    assert up == [(LEFT, bottom), (WIDTH - RIGHT, TOP)]
    assert flat == [(LEFT + (WIDTH - LEFT - RIGHT) / 2, (bottom + top) / 2)]
    assert bottom < HEIGHT
    assert {"0", "25", "50", "75", "100", "0.5", "1", "1.5", "2"} <= set(page.of("text"))


def test_a_chart_of_one_point_or_of_zeros_can_be_drawn() -> None:
    for points in ([(0, 0.0)], [(1, 3.0)], [(5, 0.0), (6, 0.0)]):
        ((x, y), *_), *_ = Page(chart("title", [Line("line", points)])).coordinates()
        assert LEFT <= x <= WIDTH - RIGHT
        assert TOP <= y <= HEIGHT


def test_more_lines_than_colours_can_be_drawn() -> None:
    lines = [Line(f"frame {number}", [(0, 1.0), (1, number)]) for number in range(COLOURS + 3)]
    assert len(Page(chart("title", lines)).coordinates()) == len(lines)


def test_smoothing_is_the_mean_of_the_points_so_far() -> None:
    line = Line("loss", [(step, float(step)) for step in range(6)])
    assert line.smoothed(3).points == [(0, 0.0), (1, 0.5), (2, 1.0), (3, 2.0), (4, 3.0), (5, 4.0)]
    assert line.smoothed(1).points == list(line.points)
    assert Line("nothing", []).smoothed().points == []


@given(st.floats(1e-9, 1e12))
def test_a_nice_number_is_the_next_round_one(value: float) -> None:
    found = nice(value)
    mantissa = float(f"{found:e}".partition("e")[0])
    assert value <= found <= 2 * value * (1 + 1e-12)
    assert any(mantissa == pytest.approx(step) for step in (1, 1.5, 2, 3, 5, 8))


@pytest.mark.parametrize(("value", "found"), [(1, 1), (1.01, 1.5), (0.021, 0.03), (2.0, 2), (640, 800), (801, 1000), (9, 10)])
def test_nice_numbers_by_example(value: float, found: float) -> None:
    assert nice(value) == pytest.approx(found)


@pytest.mark.parametrize("value", [0.0, -3.0, float("nan"), float("inf")])
def test_nothing_to_show_is_scaled_to_one(value: float) -> None:
    assert nice(value) == 1.0


def test_a_long_run_is_drawn_with_as_many_points_as_can_be_seen() -> None:
    line = Line("loss", [(step, 1.0) for step in range(100_000)]).thinned()
    assert len(line.points) == POINTS
    assert (line.points[0][0], line.points[-1][0]) == (0, 99_999)
    assert len({x for x, _ in line.points}) == POINTS
