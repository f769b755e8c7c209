"""How a video was drawn, as a picture: when each token was revealed, frame by frame, and the temperature and guidance it was drawn with.

A PNG from arrays; called by `sample --explain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from model.reveal import reveal_schedule
from model.sampling import SamplingConfig

CELL, MARGIN, LABEL, PLOT = 96, 10, 80, 150
EARLY, LATE = np.array([13, 8, 135]), np.array([240, 200, 60])  # colours of the first and the last iteration


def iterations_of(order: np.ndarray, iterations: int) -> np.ndarray:
    """[S]: the number, from 0, of the iteration that revealed each token, from the random order of a unit."""
    found = np.empty(len(order), np.int64)
    for number, (start, stop) in enumerate(reveal_schedule(iterations, len(order))):
        found[order[start:stop]] = number
    return found


def frame_maps(orders: Sequence[np.ndarray], grid: tuple[int, int], iterations: int) -> list[np.ndarray]:
    """[h, w] per generated latent frame: the iteration that revealed each token; a unit may hold several frames."""
    maps = (iterations_of(order, iterations).reshape(-1, *grid) for order in orders)
    return [frame for unit in maps for frame in unit]


def unit_of_frames(orders: Sequence[np.ndarray], tokens: int) -> list[int]:
    """Per generated frame how many were generated before its unit began: what its temperature goes by."""
    starts, done = [], 0
    for order in orders:
        starts += [done] * (len(order) // tokens)
        done += len(order) // tokens
    return starts


def explanation(orders: Sequence[np.ndarray], grid: tuple[int, int], given: int, config: SamplingConfig, path: Path) -> None:
    """Write the picture: one map per generated frame, then temperature by frame and guidance by iteration."""
    maps, tokens = frame_maps(orders, grid, config.iterations), grid[0] * grid[1]
    temperatures = [config.tau(start) for start in unit_of_frames(orders, tokens)]
    scale = max(1, CELL // max(grid))
    width, height = grid[1] * scale, grid[0] * scale
    across = max(LABEL + len(maps) * (width + MARGIN) + MARGIN, 560)
    top = 46 + height + MARGIN
    sheet = Image.new("RGB", (across, top + PLOT + 30), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    schedule, unit = reveal_schedule(config.iterations, len(orders[0])), len(orders[0])
    steps, weights = len(schedule), [config.guidance_schedule(config.guidance, unit - stop, unit) for _, stop in schedule]
    draw.text((MARGIN, 4), f"reveal order: dark first, light last, {steps} iterations per unit of frames", "black", font)
    for place, (shown, temperature) in enumerate(zip(maps, temperatures, strict=True)):
        x = LABEL + place * (width + MARGIN)
        draw.text((x, 28), f"{given + place}: {temperature:.3f}", "black", font)
        sheet.paste(Image.fromarray(coloured(shown, steps)).resize((width, height), Image.Resampling.NEAREST), (x, 46))
    draw.text((4, 28), "frame: tau", "black", font)
    half = (across - 3 * MARGIN) // 2
    plot(draw, (MARGIN, top, half, PLOT), temperatures, "temperature by frame", font)
    plot(draw, (2 * MARGIN + half, top, half, PLOT), weights, "guidance by iteration", font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def coloured(iterations_hw: np.ndarray, steps: int) -> np.ndarray:
    """uint8 [h, w, 3] between the colours of early and late."""
    share = (iterations_hw / max(steps - 1, 1))[..., None]
    return (EARLY + share * (LATE - EARLY)).astype(np.uint8)


def plot(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    values: Sequence[float],
    title: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """A line through the values, from zero up, in a box (x, y, width, height)."""
    x, y, width, height = box
    draw.text((x, y), f"{title}: {values[0]:.3f} to {values[-1]:.3f}", "black", font)
    bottom, top = y + height, y + 20
    draw.line((x, bottom, x + width, bottom), fill=(150, 150, 150))
    high = max(max(values), 1e-9)
    points = [(x + width * place / max(len(values) - 1, 1), bottom - (bottom - top) * value / high) for place, value in enumerate(values)]
    if len(points) > 1:
        draw.line(points, fill=(43, 108, 176), width=2)
    for px, py in points:
        draw.ellipse((px - 2, py - 2, px + 2, py + 2), fill=(43, 108, 176))
