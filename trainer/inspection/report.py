"""report.html: one self-contained page per run, from its own files: is it learning, is it fast, what happened, what does it look like now.

Charts are inline SVG, pictures and the one small script are embedded; nothing is loaded from a network.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.events import read_events, standing
from trainer.goodput import goodput
from trainer.inspection import encoded
from trainer.inspection.chronicle import counts, data_table, event_table, samples_wall, stage_table, trace_links
from trainer.inspection.curves import loss_charts, speed_charts
from trainer.inspection.page import document, section
from trainer.inspection.verdict import time_bars, verdict
from trainer.metrics import read_metrics

Record = dict[str, Any]


def write(run: Path) -> Path:
    """Write <run>/report.html from metrics.jsonl, events.jsonl and the samples; returns its path."""
    path = run / "report.html"
    temporary = path.with_suffix(".part")
    temporary.write_text(page(run, read_metrics(run), read_events(run)))
    temporary.replace(path)
    return path


def page(run: Path, metrics: Sequence[Record], happened: Sequence[Record]) -> str:
    """The whole page as text."""
    true_now = standing(happened)
    parts = [
        f"<h1>{html.escape(run.name)}</h1>",
        headline(metrics, happened),
        section("What does it look like now?", samples_wall(run, happened)),
        section("Is it learning?", told(verdict(metrics, true_now)) + loss_charts(metrics, true_now, happened)),
        section("Is it fast?", speed(metrics, happened) + trace_links(happened)),
        section("Stages", stage_table(metrics, true_now)),
        section("Data", data_table(happened) + encoded.summary(run)),
        section("What happened", event_table(happened)),
    ]
    return document(run.name, "".join(parts))


def told(text: str) -> str:
    return f"<p>{html.escape(text)}</p>" if text else ""


def headline(metrics: Sequence[Record], happened: Sequence[Record]) -> str:
    """Steps, workers, and what happened how often."""
    if not metrics:
        return told("No step was made yet.")
    last = metrics[-1]
    return (
        f"<p>{last['step']} steps, the last on {last['world_size']} workers, in stage {html.escape(last['stage'])}; {counts(happened)}.</p>"
    )


def speed(metrics: Sequence[Record], happened: Sequence[Record]) -> str:
    """Where the time went, then the curves."""
    return (time_bars(goodput(happened, metrics)) if metrics else "") + speed_charts(metrics, happened)
