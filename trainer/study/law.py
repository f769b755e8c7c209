"""The power law L = a C^-b + c of held-out loss L over compute C (FLOPs), fitted to the best that runs have reached. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

FEWEST = 4  # points: one more than the law has numbers
EXPONENTS = (0.01, 4.0)  # b is looked for between these
GRID, ZOOMS = 64, 5

Curve = Sequence[tuple[float, float]]  # (FLOPs, held-out loss)


@dataclass(frozen=True)
class Law:
    """residual: the root mean square of the relative errors of the `points` it is fitted to."""

    a: float
    b: float
    c: float
    residual: float
    points: int

    def at(self, compute: float) -> float:
        """The loss that it tells for so many FLOPs."""
        return float(self.a * compute**-self.b + self.c)

    def __str__(self) -> str:
        return f"L = {self.a:.4g} C^-{self.b:.3g} + {self.c:.4g}"


def frontier(curves: Iterable[Curve]) -> list[tuple[float, float]]:
    """The points that no other reaches or beats with as little compute, by compute: their losses fall."""
    found: list[tuple[float, float]] = []
    for compute, loss in sorted(point for curve in curves for point in curve):
        if not found or loss < found[-1][1]:
            found.append((compute, loss))
    return found


def fit(points: Curve) -> Law | None:
    """The law of least squared relative error, with c at least 0; None for fewer than FEWEST points. Computes and losses are positive.

    For a given b the other two numbers are the solution of a linear problem, so only b is searched for: on a grid, again and again
    between the neighbours of the best.
    """
    if len(points) < FEWEST:
        return None
    compute, loss = (np.array(values, np.float64) for values in zip(*points, strict=True))
    unit = float(np.exp(np.log(compute).mean()))  # of compute, so that powers of it stay near 1
    low, high = EXPONENTS
    for _ in range(ZOOMS):
        grid = np.geomspace(low, high, GRID)
        errors = [solved(b, compute / unit, loss)[2] for b in grid]
        best = int(np.argmin(errors))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, GRID - 1)]
    b = float(grid[best])
    scale, c, residual = solved(b, compute / unit, loss)
    return Law(scale * unit**b, b, c, residual, len(points))


def solved(b: float, compute: np.ndarray, loss: np.ndarray) -> tuple[float, float, float]:
    """(a, c, residual) of the best law with this b."""
    terms = np.stack([compute**-b / loss, 1 / loss], axis=1)
    a, c = np.linalg.lstsq(terms, np.ones(len(loss)), rcond=None)[0]
    if c < 0:
        a, c = terms[:, 0].sum() / np.square(terms[:, 0]).sum(), 0.0
    return float(a), float(c), float(np.sqrt(np.square(terms @ (a, c) - 1).mean()))
