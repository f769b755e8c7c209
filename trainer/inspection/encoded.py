"""What of the videos was encoded: clips by bucket, those left out, and first pictures of some, decoded from their latents.

Written where a tokenizer is at hand (showcase.py), read by report.py, which has none.
"""

from __future__ import annotations

import base64
import html
import io
import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline import storage
from data_pipeline.loader import Dataset, SampleSet
from data_pipeline.records import HELD_OUT, TRAIN
from trainer.inspection.page import table

FILE = "encoded.json"
SHOWN, SIDE, QUALITY = 8, 160, 70  # pictures, their longer side in pixels, JPEG's quality: together below 300 kB, whatever they show


def write(run: Path, dataset: Dataset, clips: SampleSet, positions: Sequence[int]) -> None:
    """<run>/encoded.json, with the clips at these positions as pictures."""
    latents = clips.fetch(positions).latents
    pictures = [
        {"caption": clips.caption(position), "jpeg": jpeg(dataset.decode(latent[:1])[0])}
        for position, latent in zip(positions, latents, strict=True)
    ]
    storage.write_json(run / FILE, {"buckets": counts(dataset), "pictures": pictures})


def counts(dataset: Dataset) -> list[dict[str, Any]]:
    """Per bucket the clips to train on, those held out, and how many are left out by reason."""
    manifest, found = dataset.manifest, []
    for bucket in manifest.buckets:
        left_out: Counter[str] = Counter()
        for reasons in manifest.exclusions.get(bucket, {}).values():
            left_out.update({reason: len(rows) for reason, rows in reasons.items()})
        found.append({"bucket": bucket, **{split: manifest.clips(bucket, split) for split in (TRAIN, HELD_OUT)}, "left_out": left_out})
    return found


def jpeg(frame: np.ndarray) -> str:
    """A uint8 frame [H, W, 3], made small, as base64."""
    picture, file = Image.fromarray(frame), io.BytesIO()
    picture.thumbnail((SIDE, SIDE))
    picture.save(file, "JPEG", quality=QUALITY)
    return base64.b64encode(file.getvalue()).decode()


def summary(run: Path) -> str:
    """The counts as a table and the pictures with their captions; nothing for a run that has not come so far."""
    if not (run / FILE).exists():
        return ""
    told = json.loads((run / FILE).read_text())
    rows = [[row["bucket"], row[TRAIN], row[HELD_OUT], reasons(row["left_out"])] for row in told["buckets"]]
    figures = "".join(figure(picture["caption"], picture["jpeg"]) for picture in told["pictures"])
    return table(["clips of", "to train on", "held out", "left out"], rows, "clips") + f'<div class="clips">{figures}</div>'


def reasons(left_out: dict[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in sorted(left_out.items()))


def figure(caption: str, picture: str) -> str:
    """One clip, whose caption stands below it and is its alternative text."""
    told, source = html.escape(caption, quote=True), f"data:image/jpeg;base64,{picture}"
    shown = html.escape(textwrap.shorten(caption, 120))
    return f'<figure><img alt="first picture of a clip: {told}" src="{source}"><figcaption>{shown}</figcaption></figure>'
