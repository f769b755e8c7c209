"""What happened to a run, as tables and pictures: stages, data with its rejects, events, samples over time. report.py places them."""

from __future__ import annotations

import base64
import html
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.inspection.curves import stage_starts
from trainer.inspection.page import table

Record = dict[str, Any]
SHEETS = 6  # that a page embeds, newest first
UNTOLD = ("time", "event", "seconds", "folder", "data_folder", "sources", "spec")


def samples_wall(run: Path, happened: Sequence[Record]) -> str:
    """The newest contact sheet with its figures, and the older ones behind a fold each, newest first."""
    latest = {event["step"]: event for event in happened if event["event"] == "samples"}
    figures = [figure for step in sorted(latest, reverse=True) if (figure := sheet(run, latest[step]))]
    if not figures:
        return ""
    older = "".join(f"<details><summary>{caption}</summary>{figure}</details>" for caption, figure in figures[1:SHEETS])
    return figures[0][1] + older


def sheet(run: Path, samples: Record) -> tuple[str, str] | None:
    """(title, figure) of one set of samples, None when its picture is gone. A run that was moved has them beside it."""
    folders = (Path(samples["folder"]), run / "samples" / Path(samples["folder"]).name)
    path = next((folder / "contact-sheet.png" for folder in folders if (folder / "contact-sheet.png").exists()), None)
    if path is None:
        return None
    picture = base64.b64encode(path.read_bytes()).decode()
    text = (
        f"Held-out clips after step {samples['step']}: PSNR {samples['psnr']:.1f} dB over the generated frames, "
        f"{samples['psnr_copy_last_frame']:.1f} dB for repeating the given frame."
    )
    image = f'<img alt="contact sheet after step {samples["step"]}: truth above, generated below" src="data:image/png;base64,{picture}">'
    scrolls = f'<div class="wide" tabindex="0" role="region" aria-label="contact sheet">{image}</div>'
    figure = f"<figure>{scrolls}<figcaption>{text}</figcaption></figure>"
    return f"after step {samples['step']}", figure


def trace_links(happened: Sequence[Record]) -> str:
    """Where the traces of profiled steps are, and how much of a step was communication."""
    parts = []
    for event in happened:
        if event["event"] == "profile":
            (first, last), name = event["steps"], html.escape(Path(event["trace"]).name)
            parts.append(
                f"<p>Steps {first} to {last} were profiled: {event['communication_seconds']:.3f} s of communication a step; "
                f'<a href="profile/">a trace per rank</a>, e.g. {name}, for chrome://tracing or Perfetto.</p>'
            )
    return "".join(parts)


def stage_table(metrics: Sequence[Record], true_now: Sequence[Record]) -> str:
    """One row per stage: steps, last losses, why it ended."""
    rows = []
    for _, name in stage_starts(metrics):
        steps = [step for step in metrics if step["stage"] == name]
        held_out = [event["held_out_loss"] for event in true_now if event["event"] == "evaluation" and event["stage"] == name]
        reason = next((event["reason"] for event in reversed(true_now) if event["event"] == "promotion" and event["stage"] == name), "")
        losses = [step["loss"] for step in steps[-10:] if step["loss"] is not None]
        last = f"{sum(losses) / len(losses):.4f}" if losses else ""
        rows.append([name, len(steps), last, f"{held_out[-1]:.4f}" if held_out else "", reason])
    return table(["stage", "steps", "loss (last 10)", "held-out loss", "promoted by"], rows, "stages")


def data_table(happened: Sequence[Record]) -> str:
    """How the inputs fared, with every unreadable file by name."""
    start = next((event for event in reversed(happened) if event["event"] in ("start", "data")), None)
    if start is None:
        return ""
    sources = start["sources"]
    rows = [["videos", sources["total"]], ["used", sources["ok"]]]
    rows += [[f"rejected: {reason}", count] for reason, count in sources["rejected"].items()]
    rows += [[f"unreadable: {name}", reason] for name, reason in sources["failed"].items()]
    rows += [[f"damaged: {name}", reason] for name, reason in sources["damaged"].items()]
    return table(["", ""], rows, "data")


def event_table(happened: Sequence[Record]) -> str:
    """Every event but the evaluations, which are in the chart."""
    rows = []
    for event in happened:
        if event["event"] in ("evaluation", "start", "data"):
            continue
        details = ", ".join(f"{key} {shown(value)}" for key, value in event.items() if key not in UNTOLD)
        rows.append([time.strftime("%H:%M:%S", time.gmtime(event["time"])), event["event"], textwrap.shorten(details, 400)])
    found = table(["UTC", "event", ""], rows, "events")
    return f"<details open><summary>{len(rows)} events</summary>{found}</details>" if found else ""


def shown(value: object) -> str:
    """A value of an event, short."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def counts(happened: Sequence[Record]) -> str:
    """How often what happened, in a sentence."""
    kinds = {"layout": "generation", "failure": "failure", "promotion": "promotion", "commit": "commit"}
    found = [(sum(event["event"] == kind for event in happened), word) for kind, word in kinds.items()]
    return html.escape(", ".join(f"{count} {word}{'' if count == 1 else 's'}" for count, word in found))
