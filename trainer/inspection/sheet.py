"""The contact sheet: per video one row of the given frame, one of the truth and one of what was generated.

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
    """One video on the sheet: uint8 frames [F, H, W, 3] of the truth and of the generated video; the first `given` frames were given."""

    caption: str
    truth: np.ndarray
    generated: np.ndarray
    given: int


def contact_sheet(rows: list[Row], path: Path, columns: int = 9) -> None:
    """Write the sheet: at most `columns` evenly spaced frames per video, the given ones framed, the generated row below the truth."""
    height, width = rows[0].truth.shape[1:3]
    shown = np.unique(np.linspace(0, len(rows[0].truth) - 1, min(columns, len(rows[0].truth))).round().astype(int))
    block = TEXT + 2 * (height + 2) + MARGIN
    sheet = Image.new("RGB", (LABEL + len(shown) * (width + 2) + MARGIN, TEXT + len(rows) * block), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for column, frame in enumerate(shown):
        draw.text((LABEL + column * (width + 2), 2), f"frame {frame}", "black", font)
    for number, row in enumerate(rows):
        top = TEXT + number * block
        draw.text((4, top + 2), row.caption[: (sheet.width - 8) // 7], "black", font)
        for line, (label, frames) in enumerate((("truth", row.truth), ("generated", row.generated))):
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
