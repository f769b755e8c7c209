"""evaluation.html: one self-contained page of an evaluation, with its worst, median and best clips side by side. Pure text from values."""

from __future__ import annotations

import base64
import html
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.write_video import write_mp4
from trainer.inspection.chart import Line, chart
from trainer.inspection.page import document, section, table

UNITS = {
    "psnr": "PSNR of generated frames, dB (higher is nearer to the truth)",
    "ssim": "SSIM of generated frames (higher is nearer)",
    "moving_error": "squared error of the next latent frame over moving pixels (lower is better)",
    "dynamic_degree": "dynamic degree: share of clips that move, by VBench's rule on optical flow",
    "flow": "optical flow of the fastest blocks, shares of the shorter side per frame",
    "flicker": "flicker: change from frame to frame where the truth stands still, levels (lower is calmer)",
    "background_stability": "background stability: PSNR against the given frame where the truth never moves, dB",
}


def page(result: dict[str, Any], shown: Sequence[tuple[str, str, bytes]]) -> str:
    """The whole page; `shown` are (rank, caption, mp4) of the clips to look at."""
    names = list(result["models"])
    columns = [*names, *(["difference"] if result["difference"] else []), "copying", "truth"]
    parts = [
        f"<h1>Evaluation on {len(result['clips'])} held-out clips of {result['bucket']}</h1>",
        f"<p>{html.escape(about(result))}</p>",
        section("Measures", table(["", *columns], rows(result, names))),
        section("Drift over the generated frames", "".join(drift(result, kind) for kind in ("psnr", "ssim"))),
        section("Held-out loss", table(["model", "bucket", "mean", "by latent frame", "by noise, little to much"], losses(result))),
        section("Worst, median and best clip", "".join(video(result, *clip) for clip in shown)),
    ]
    return document("Evaluation", "".join(parts))


def about(result: dict[str, Any]) -> str:
    """Who was compared, and how to read the intervals."""
    ways = []
    for name, model in result["models"].items():
        settings = ", ".join(f"{key} {value}" for key, value in model["sampling"].items())
        ways.append(f"{name}: {model['model']} ({settings})")
    seeds = ", ".join(map(str, result["seeds"]))
    interval = "Intervals: where the mean of as many other seeds lies, in 95 of 100 cases; of a difference, where the true one lies."
    return f"{'; '.join(ways)}. Seeds {seeds}; {result['given']} latent frame(s) given. {interval}"


def rows(result: dict[str, Any], names: list[str]) -> list[list[str]]:
    """One row per measure: every model with its interval, copying the last frame, the truth itself."""
    found = []
    gap = [""] if result["difference"] else []
    for measure, title in UNITS.items():
        cells = [interval(result["models"][name]["measures"][measure]) for name in names]
        if result["difference"]:
            cells.append(interval(result["difference"][measure]))
        found.append([title, *cells, number(result["copying"][measure]), number(result["truth"][measure])])
        if measure == "moving_error":
            means = [number(result["models"][name]["moving_error_of_mean_sample"]) for name in names]
            found.append([f"the same, of the mean of {len(result['seeds'])} samples", *means, *gap, *found[-1][-2:]])
    distances = [number(result["models"][name]["fvd"]) or "not measured" for name in names]
    return [*found, ["FVD", *distances, *gap, "", ""]]


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def interval(value: dict[str, Any]) -> str:
    around = f" [{value['low']:.4g}, {value['high']:.4g}]" if value["low"] is not None else ""
    return number(value["mean"]) + around


def drift(result: dict[str, Any], kind: str) -> str:
    """A curve per model, and copying's."""
    first = result["shown"]
    named = {**{name: model["curves"] for name, model in result["models"].items()}, "copying": result["copying_curves"]}
    lines = [Line(name, [(first + place, value) for place, value in enumerate(curves[kind])]) for name, curves in named.items()]
    return chart({"psnr": "PSNR against the truth, dB", "ssim": "SSIM against the truth"}[kind] + ", by video frame", lines)


def losses(result: dict[str, Any]) -> list[list[str]]:
    found = []
    for name, model in result["models"].items():
        for bucket, loss in model["losses"].items():
            by_frame = ", ".join(number(value) or "given" for value in loss["by_frame"])
            by_noise = ", ".join(number(level["loss"]) for level in loss["by_noise_level"])
            found.append([name, bucket, number(loss["mean"]), by_frame, by_noise])
    return found


def video(result: dict[str, Any], rank: str, caption: str, data: bytes) -> str:
    """One clip: truth and every model's, side by side in one video."""
    order = " | ".join(["truth", *result["models"]])
    source = base64.b64encode(data).decode()
    label = html.escape(f"{rank}: {caption}", quote=True)
    return (
        f'<figure><video controls loop muted playsinline preload="auto" aria-label="{label}" src="data:video/mp4;base64,{source}"></video>'
        f"<figcaption>{label} ({html.escape(order)})</figcaption></figure>"
    )


def side_by_side(videos: Sequence[np.ndarray], fps: float) -> bytes:
    """An mp4 of videos [F, H, W, 3] beside each other."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_mp4(path, np.concatenate(videos, axis=2), fps)
        return path.read_bytes()
