"""The power law of a study: exact ones are found again, noise shows in the residual, and only the best points count."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.study.law import FEWEST, Law, fit, frontier

POINT = st.tuples(st.floats(1e9, 1e22), st.floats(0.01, 10))


@settings(deadline=None)
@given(st.floats(0.05, 1.5), st.floats(0.1, 5), st.floats(0, 2), st.floats(1e9, 1e20), st.integers(FEWEST, 12))
def test_an_exact_law_is_found_again(b: float, first: float, c: float, start: float, count: int) -> None:
    """`first` is what of the loss is not c at the least compute; the compute grows a hundredfold."""
    compute = np.geomspace(start, 100 * start, count)
    true = Law(first * start**b, b, c, 0.0, count)
    found = fit([(x, true.at(x)) for x in compute])
    assert found is not None
    assert found.points == count
    assert found.residual < 1e-3
    assert all(found.at(x) == pytest.approx(true.at(x), rel=5e-3) for x in compute)


def test_the_numbers_of_a_law_by_example() -> None:
    found = fit([(x, 3e4 * x**-0.5 + 0.25) for x in (1e9, 4e9, 1.6e10, 6.4e10, 2.56e11)])
    assert found is not None
    assert (found.a, found.b, found.c) == (pytest.approx(3e4, rel=0.02), pytest.approx(0.5, rel=2e-3), pytest.approx(0.25, rel=5e-3))


def test_a_law_never_goes_below_zero() -> None:
    falling_faster = [(x, 2.0 - 0.1 * x) for x in (1.0, 5.0, 10.0, 15.0, 18.0)]
    found = fit(falling_faster)
    assert found is not None
    assert found.c >= 0
    assert found.at(1e30) >= 0
    assert found.residual > 0.05


def test_the_residual_is_the_relative_error_that_was_put_in() -> None:
    rng = np.random.default_rng(0)
    points = [(x, (50 * x**-0.3 + 0.1) * (1 + 0.02 * rng.standard_normal())) for x in np.geomspace(1e3, 1e6, 200)]
    found = fit(points)
    assert found is not None
    assert found.residual == pytest.approx(0.02, rel=0.15)


@given(st.lists(POINT, max_size=FEWEST - 1))
def test_too_few_points_have_no_law(points: list[tuple[float, float]]) -> None:
    assert fit(points) is None


@given(st.lists(st.lists(POINT, max_size=6), max_size=4))
def test_the_frontier_falls_and_nothing_is_better_than_it(curves: list[list[tuple[float, float]]]) -> None:
    found, points = frontier(curves), [point for curve in curves for point in curve]
    assert set(found) <= set(points)
    assert all(one[0] <= two[0] and one[1] > two[1] for one, two in pairwise(found))
    assert all(any(best[0] <= x and best[1] <= y for best in found) for x, y in points)


def test_a_law_is_readable() -> None:
    assert str(Law(3e4, 0.5, 0.25, 0.01, 5)) == "L = 3e+04 C^-0.5 + 0.25"
    assert math.isclose(Law(3e4, 0.5, 0.25, 0.01, 5).at(1e8), 3.25)
