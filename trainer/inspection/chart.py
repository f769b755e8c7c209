"""A line chart as inline SVG: axes from zero, marks for stages, a legend. Pure text; the report uses it."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 260, 64, 12, 34, 28
COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#97266d", "#4a5568", "#b7791f", "#285e61", "#702459")


@dataclass(frozen=True)
class Line:
    """A named series of (x, y) points."""

    name: str
    points: Sequence[tuple[float, float]]

    def smoothed(self, window: int = 9) -> Line:
        """The running mean over up to `window` points, so that noise does not hide the course."""
        values = [y for _, y in self.points]
        means = [sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))]
        return Line(self.name, [(x, mean) for (x, _), mean in zip(self.points, means, strict=True)])


def chart(title: str, lines: Sequence[Line], marks: Sequence[tuple[float, str]] = ()) -> str:
    """A figure with all lines over one x axis (steps); `marks` are (x, name) of the places where something begins."""
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    right = max(x for line in lines for x, _ in line.points)
    top = nice(max(y for line in lines for _, y in line.points))
    across, up = (WIDTH - LEFT - RIGHT) / max(right, 1), (HEIGHT - TOP - BOTTOM) / top

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x * across, HEIGHT - BOTTOM - y * up

    parts = [text(LEFT, 14, title, weight=600)]
    spacing = min(120.0, (WIDTH - LEFT - RIGHT - 8 * len(title)) / len(lines))
    for tick in range(5):
        _, y = place(0, top * tick / 4)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8884"/>')
        parts.append(text(LEFT - 6, y + 4, f"{top * tick / 4:.4g}", anchor="end"))
        parts.append(text(LEFT + right * tick / 4 * across, HEIGHT - 8, f"{right * tick / 4:.0f}", anchor="middle"))
    for x, name in marks:
        at, _ = place(x, 0)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#888" stroke-dasharray="3 3"/>')
        parts.append(text(at + 3, TOP + 10, name))
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line.points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        parts.append(text(WIDTH - RIGHT - spacing * (len(lines) - 1 - number), 14, line.name, anchor="end", fill=colour))
    opening = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)} over steps" font-size="11">'
    return f"<figure>{opening}{''.join(parts)}</svg></figure>"


def nice(value: float) -> float:
    """The smallest of 1, 1.5, 2, 3, 5, 8 times a power of ten that is at least `value`; 1 for nothing."""
    if value <= 0 or not math.isfinite(value):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 1.5, 2, 3, 5, 8, 10) if power * step >= value)


def text(x: float, y: float, words: str, anchor: str = "start", fill: str = "currentColor", weight: int = 400) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" font-weight="{weight}">{html.escape(words)}</text>'
