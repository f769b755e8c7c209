"""Videos for VBench-I2V under the names it expects, and its scores where it is installed. Its image suite and weights are the user's.

Layout and names: vbench2_beta_i2v/README.md of VBench: five videos per prompt, "<prompt>-<index>.mp4", all in one folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError

INFO = "vbench2_i2v_full_info.json"
RATIOS = {"1-1": 1.0, "8-5": 8 / 5, "7-4": 7 / 4, "16-9": 16 / 9}
VIDEOS_PER_PROMPT = 5


@dataclass(frozen=True)
class Prompt:
    """One video to be made: where it starts, what it is told, which of the five it is, and its file's name."""

    image: Path
    text: str
    index: int

    @property
    def name(self) -> str:
        return f"{self.text}-{self.index}.mp4"


def nearest_ratio(height: int, width: int) -> str:
    """The crop of the image suite that is nearest to a size."""
    return min(RATIOS, key=lambda name: abs(RATIOS[name] - width / height))


def prompts(suite: Path, ratio: str, limit: int | None = None) -> list[Prompt]:
    """All videos of a suite's folder (vbench2_beta_i2v of a VBench checkout, with its data downloaded). Raises UserError."""
    path, images = suite / INFO, suite / "data" / "crop" / ratio
    try:
        entries = json.loads(path.read_text())
        pairs = dict.fromkeys((str(entry["image_name"]), str(entry["prompt_en"])) for entry in entries)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not VBench-I2V's list of prompts ({type(error).__name__}): give the folder vbench2_beta_i2v") from None
    if not images.is_dir():
        raise UserError(f"{images} does not exist: get VBench-I2V's images first (vbench2_beta_i2v/download_data.sh)")
    chosen = list(pairs)[:limit]
    return [Prompt(images / image, text, index) for image, text in chosen for index in range(VIDEOS_PER_PROMPT)]


def make_videos(wanted: list[Prompt], folder: Path, make: Callable[[Prompt, Path], None]) -> int:
    """Make what is not there yet, so that an interrupted export goes on; returns how many were made."""
    missing = [prompt for prompt in wanted if not (folder / prompt.name).exists()]
    for prompt in missing:
        make(prompt, folder / prompt.name)
    return len(missing)


def scores(suite: Path, videos: Path, ratio: str, device: str) -> dict[str, Any] | None:
    """VBench-I2V's own scores of a folder of videos, or None where it is not installed."""
    if find_spec("vbench2_beta_i2v") is None:
        return None
    bench = import_module("vbench2_beta_i2v").VBenchI2V(device, str(suite / INFO), str(videos.parent))
    bench.evaluate(videos_path=str(videos), name="videomar", resolution=ratio)
    found: dict[str, Any] = json.loads((videos.parent / "videomar_eval_results.json").read_text())
    return found
