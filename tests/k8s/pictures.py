"""Dashboards as PNG, from a Prometheus's answers to the panels' own queries, so that a README can show them.

`python -m tests.k8s.pictures FOLDER` plays the monitored run and writes one picture per dashboard.
"""

from __future__ import annotations

import math
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from k8s.generate.boards import BOARDS
from k8s.generate.panels import Board, Panel

from .matrix import CHART
from .services import Prometheus

INK, PAPER, GRID = "#d8d9da", "#181b1f", "#2c3235"
COLOURS = ("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#fade2a", "#96d98d", "#ffa6b0")
ROWS = {"stat": 1}  # in units of a stat's height; the others have two
VARIABLE = re.compile(r"{{(\w+)}}")
Expressions = Callable[[Panel], list[str]]
Answers = list[tuple[str, list[tuple[float, float]]]]  # (legend, points of seconds and value)


def draw(board: Board, source: Prometheus, expressions: Expressions, span: tuple[float, float], folder: Path) -> Path:
    """The dashboard's picture; panels stand as Grafana's 24 columns put them."""
    places, rows = layout(board)
    step = max(1.0, round((span[1] - span[0]) / 400))
    mpl.rcParams.update({"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "font.size": 7})
    figure = Figure(figsize=(15, 1.35 * rows + 0.4), dpi=72, facecolor="#111217")
    grid = figure.add_gridspec(
        rows, 24, left=0.035, right=0.99, top=1 - 0.5 / (1.35 * rows + 0.4), bottom=0.3 / (1.35 * rows + 0.4), hspace=0.75, wspace=3.0
    )
    figure.suptitle(f"videomar / {board.title}", x=0.01, ha="left", y=0.995, va="top", fontsize=10)
    for panel, (row, column) in zip(board.panels, places, strict=True):
        axes = figure.add_subplot(grid[row : row + ROWS.get(panel.kind, 2), column : column + panel.width])
        answers = [
            answer
            for expression, (_, legend) in zip(expressions(panel), panel.queries, strict=True)
            for answer in points(source.range(expression, *span, step), legend, span[0], step)
        ]
        (number if panel.kind == "stat" else curves)(axes, panel, answers)
    path = folder / f"{board.name}.png"
    figure.savefig(path, facecolor=figure.get_facecolor(), pil_kwargs={"optimize": True})
    return path


def layout(board: Board) -> tuple[list[tuple[int, int]], int]:
    """((row, column) of each panel, rows in all)."""
    places, row, column, height = [], 0, 0, 0
    for panel in board.panels:
        if column + panel.width > 24:
            row, column, height = row + height, 0, 0
        places.append((row, column))
        column, height = column + panel.width, max(height, ROWS.get(panel.kind, 2))
    return places, row + height


def points(found: list[dict[str, Any]], legend: str, start: float, step: float) -> Answers:
    """Series with their legends filled in, times in seconds since `start`; a gap in the data stays one in the line."""
    answers = []
    for series in found:
        told: list[tuple[float, float]] = []
        for when, value in series["values"]:
            if told and when - start - told[-1][0] > 2 * step:
                told.append((when - start - step, math.nan))
            told.append((when - start, float(value)))
        answers.append((filled(legend, series["metric"]), told))
    return answers


def filled(legend: str, labels: dict[str, str]) -> str:
    return VARIABLE.sub(lambda name: labels.get(name[1], ""), legend).strip()


def curves(axes: Any, panel: Panel, answers: Answers) -> None:
    style(axes, panel)
    if not answers:
        axes.text(0.5, 0.5, "needs GPUs (DCGM's exporter)" if panel.gpu else "no data", ha="center", transform=axes.transAxes, alpha=0.6)
        return
    for colour, (legend, series) in zip(COLOURS * 10, answers, strict=False):
        times, values = zip(*series, strict=True)
        axes.plot(
            times,
            values,
            color=colour,
            label=legend,
            linewidth=1.1,
            drawstyle="steps-post" if panel.kind == "steps" else "default",
            marker="." if len(times) < 3 else None,
        )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value, panel.unit)))
    axes.legend(loc="upper left", fontsize=5.5, ncols=2, framealpha=0.3, facecolor=PAPER, edgecolor="none", labelcolor=INK)


def number(axes: Any, panel: Panel, answers: Answers) -> None:
    """The last value of each series, large."""
    style(axes, panel)
    axes.set_xticks([])
    axes.set_yticks([])
    newest = max((series[-1][0] for _, series in answers), default=0.0)
    shown = [(legend, series[-1][1]) for legend, series in answers if series[-1][0] == newest and not math.isnan(series[-1][1])]
    text = "   ".join(
        f"{legend} {written(value, panel.unit)}" if "state" not in panel.title.lower() else legend for legend, value in shown[-2:]
    )
    axes.text(0.5, 0.45, text, ha="center", va="center", fontsize=10, color=COLOURS[0], transform=axes.transAxes)


def style(axes: Any, panel: Panel) -> None:
    axes.set_facecolor(PAPER)
    axes.set_title(panel.title, loc="left", fontsize=7.5, pad=3)
    axes.grid(color=GRID, linewidth=0.5)
    for spine in axes.spines.values():
        spine.set_color(GRID)


def written(value: float, unit: str) -> str:
    """A value in its unit, short."""
    if unit == "percentunit":
        return f"{value:.0%}"
    if unit in ("bytes", "Bps"):
        return f"{value / 2**20:,.0f} MiB" + ("/s" if unit == "Bps" else "")
    suffix = {"s": " s", "dB": " dB", "percent": " %"}.get(unit, "")
    return f"{value:.3g}{suffix}" if abs(value) < 1000 else f"{value:,.0f}{suffix}"


def main(folder: Path) -> None:
    """Live through the story and draw every dashboard into `folder`."""
    import helm_python

    from .story import expressions, story

    programs = tuple(str(shutil.which(name)) for name in ("prometheus", "prometheus-alertmanager"))
    with story(helm_python.Chart.load(str(CHART)), (programs[0], programs[1])) as told:
        for board in BOARDS:
            print(draw(board, told.prometheus, expressions, (told.start, told.end), folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
