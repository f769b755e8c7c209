"""The contact sheet: per video a row of frames of the truth, where it is known, and one of what was generated.

A PNG from arrays; knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN, LABEL, TEXT = 8, 84, 18


@dataclass(frozen=True)
class Row:
    """One video on the sheet: uint8 frames [F, H, W, 3] of the truth (None: unknown) and of the generated video, whose first `given`
    frames were given."""

    caption: str
    truth: np.ndarray | None
    generated: np.ndarray
    given: int

    @property
    def lines(self) -> list[tuple[str, np.ndarray]]:
        """What is drawn below each other, by name."""
        return [("truth", self.truth)] * (self.truth is not None) + [("generated", self.generated)]


def contact_sheet(rows: list[Row], path: Path, columns: int = 9) -> None:
    """Write the sheet: at most `columns` evenly spaced frames per video, the given ones framed, the generated row below the truth."""
    count, height, width = rows[0].generated.shape[:3]
    shown = np.unique(np.linspace(0, count - 1, min(columns, count)).round().astype(int))
    block = TEXT + len(rows[0].lines) * (height + 2) + MARGIN
    sheet = Image.new("RGB", (LABEL + len(shown) * (width + 2) + MARGIN, TEXT + len(rows) * block), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for column, frame in enumerate(shown):
        draw.text((LABEL + column * (width + 2), 2), f"frame {frame}", "black", font)
    for number, row in enumerate(rows):
        top = TEXT + number * block
        draw.text((4, top + 2), row.caption[: (sheet.width - 8) // 7], "black", font)
        for line, (label, frames) in enumerate(row.lines):
            y = top + TEXT + line * (height + 2)
            draw.text((4, y + height // 2 - 6), label, "black", font)
            for column, frame in enumerate(shown):
                x = LABEL + column * (width + 2)
                sheet.paste(Image.fromarray(frames[frame]), (x, y))
                if frame < row.given:
                    draw.rectangle((x - 1, y - 1, x + width, y + height), outline=(20, 110, 220), width=2)
    draw.text((4, 2), "blue: given", (20, 110, 220), font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
