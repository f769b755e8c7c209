"""A line chart as inline SVG: axes from zero, a band per stage, event marks, a legend of buttons. Pure text; pages are made of it.

chart.js, which every page carries, adds the reading line (pointer and arrow keys) and lets the legend hide lines. Without it the chart
is whole, but still.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 780, 270, 64, 16, 26, 30
COLOURS = 8  # of page.py's style, by number
POINTS = 1200  # per line: more cannot be seen, and a page stays small


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

    def thinned(self, limit: int = POINTS) -> Line:
        """At most `limit` points, evenly spaced, the first and the last among them."""
        count = len(self.points)
        if count <= limit:
            return self
        return Line(self.name, [self.points[round(place * (count - 1) / (limit - 1))] for place in range(limit)])


@dataclass(frozen=True)
class Axes:
    """From data to places on the picture: x from 0 to `right`, y from 0 to `top`."""

    right: float
    top: float

    def place(self, x: float, y: float) -> tuple[float, float]:
        across, up = (WIDTH - LEFT - RIGHT) / self.right, (HEIGHT - TOP - BOTTOM) / self.top
        return LEFT + min(x, self.right) * across, HEIGHT - BOTTOM - y * up


def chart(title: str, lines: Sequence[Line], bands: Sequence[tuple[float, str]] = (), marks: Sequence[tuple[float, str]] = ()) -> str:
    """A figure with all lines over one x axis; `bands` are (first x, name) of stages, `marks` (x, text) of what happened."""
    lines = [line.thinned() for line in lines if line.points]
    if not lines:
        return ""
    axes = Axes(max(1, *(x for line in lines for x, _ in line.points)), nice(max(y for line in lines for _, y in line.points)))
    picture = [
        *stage_bands(axes, bands),
        *grid(axes),
        *event_marks(axes, marks),
        *(curve(axes, *numbered) for numbered in enumerate(lines)),
    ]
    label = html.escape(f"{title}: {', '.join(line.name for line in lines)}", quote=True)
    reach = f'data-right="{axes.right:g}" data-top="{axes.top:g}" data-left="{LEFT}" data-end="{WIDTH - RIGHT}"'
    opening = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{label}" {reach}'
    data = f' data-high="{TOP}" data-low="{HEIGHT - BOTTOM}">'
    caption = f'<figcaption><strong>{html.escape(title)}</strong><span class="legend">{legend(lines)}</span></figcaption>'
    svg = f'<div class="wide">{opening}{data}{"".join(picture)}</svg></div>'
    return f'<figure class="chart">{caption}{svg}<output class="muted">&nbsp;</output></figure>'


def legend(lines: Sequence[Line]) -> str:
    """A button per line, which hides and shows it."""
    return "".join(
        f'<button type="button" aria-pressed="true"><i style="background:var(--c{number % COLOURS})"></i>{html.escape(line.name)}</button>'
        for number, line in enumerate(lines)
    )


def curve(axes: Axes, number: int, line: Line) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (axes.place(*point) for point in line.points))
    name = html.escape(line.name, quote=True)
    dot = ""
    if len(line.points) == 1:
        x, y = axes.place(*line.points[0])
        dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="var(--c{number % COLOURS})"/>'
    return f'<g data-name="{name}"><polyline points="{path}" fill="none" stroke="var(--c{number % COLOURS})" stroke-width="1.8"/>{dot}</g>'


def grid(axes: Axes) -> list[str]:
    """Five lines across with the values they stand for, and five values of x below."""
    parts = []
    for tick in range(5):
        x, y = axes.place(axes.right * tick / 4, axes.top * tick / 4)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
        parts.append(text(LEFT - 6, y + 4, f"{axes.top * tick / 4:.4g}", anchor="end"))
        parts.append(text(x, HEIGHT - 8, f"{axes.right * tick / 4:.4g}", anchor="middle" if tick < 4 else "end"))
    return parts


def stage_bands(axes: Axes, bands: Sequence[tuple[float, str]]) -> list[str]:
    """A band from each start to the next, every other one shaded, with its name above where there is room for it."""
    parts = []
    for number, (start, name) in enumerate(bands):
        left, _ = axes.place(start, 0)
        right, _ = axes.place(bands[number + 1][0] if number + 1 < len(bands) else axes.right, 0)
        shade = "var(--soft)" if number % 2 else "none"
        box = f'x="{left:.1f}" y="{TOP}" width="{max(0.0, right - left):.1f}" height="{HEIGHT - TOP - BOTTOM}"'
        parts.append(f'<rect {box} fill="{shade}"><title>{html.escape(name)}</title></rect>')
        shown = name if len(name) * 7 < right - left else name[: max(1, int((right - left) / 7) - 1)] + "…"
        parts.append(text(left + 3, TOP - 8, shown))
    return parts


def event_marks(axes: Axes, marks: Sequence[tuple[float, str]]) -> list[str]:
    """A dashed line with its text, which the reading line tells as well."""
    parts = []
    for x, words in marks:
        at, _ = axes.place(x, 0)
        line = f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="var(--mark)" stroke-dasharray="3 3"/>'
        head = f'<path d="M{at - 5:.1f} {TOP}h10l-5 7z" fill="var(--mark)"/>'
        parts.append(f'<g class="mark" data-x="{x:g}"><title>{html.escape(words)}</title>{line}{head}</g>')
    return parts


def nice(value: float) -> float:
    """The smallest of 1, 1.5, 2, 3, 5, 8 times a power of ten that is at least `value`; 1 for nothing."""
    if value <= 0 or not math.isfinite(value):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 1.5, 2, 3, 5, 8, 10) if power * step >= value)


def text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor">{html.escape(words)}</text>'
