"""report.html: one self-contained page per run, from its own files: is it learning, is it fast, what happened, what does it look like.

Charts are inline SVG, pictures are embedded; nothing is loaded from a network and no script runs.
"""

from __future__ import annotations

import base64
import html
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trainer.events import read_events, standing
from trainer.inspection.chart import Line, chart
from trainer.metrics import read_metrics

Record = dict[str, Any]
STYLE = """
:root{color-scheme:light dark;--line:#8884;--muted:#777}
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:0 auto;padding:1rem}
h1{font-size:1.5rem;margin:.5rem 0}h2{font-size:1.15rem;margin:2rem 0 .5rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.2rem .8rem .2rem 0;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
.muted{color:var(--muted)}img{max-width:100%;image-rendering:auto}svg{width:100%;height:auto}
figure{margin:0 0 1rem}figcaption{color:var(--muted)}
"""


def write(run: Path) -> Path:
    """Write <run>/report.html from metrics.jsonl, events.jsonl and the newest samples; returns its path."""
    path = run / "report.html"
    temporary = path.with_suffix(".part")
    temporary.write_text(page(run.name, read_metrics(run), read_events(run)))
    temporary.replace(path)
    return path


def page(name: str, metrics: Sequence[Record], happened: Sequence[Record]) -> str:
    """The whole page as text."""
    samples = next((event for event in reversed(happened) if event["event"] == "samples"), None)
    true_now = standing(happened)
    parts = [
        f"<h1>{html.escape(name)}</h1>",
        headline(metrics, happened),
        samples_section(samples),
        section("Is it learning?", loss_charts(metrics, true_now)),
        section("Is it fast?", speed_charts(metrics)),
        trace_links(happened),
        section("Stages", stage_table(metrics, true_now)),
        section("Data", data_table(happened)),
        section("What happened", event_table(happened)),
    ]
    viewport = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    head = f"{viewport}<title>{html.escape(name)}</title><style>{STYLE}</style>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body><main>{"".join(parts)}</main></body></html>\n'


def section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def headline(metrics: Sequence[Record], happened: Sequence[Record]) -> str:
    """Steps, workers, generations, and the time spent training and sampling."""
    if not metrics:
        return "<p>No step was made yet.</p>"
    steps = sum(step["step_seconds"] for step in metrics)
    sampling = sum(event["seconds"] for event in happened if event["event"] == "samples")
    generations = sum(event["event"] == "layout" for event in happened)
    last = metrics[-1]
    return (
        f"<p>{last['step']} steps on {last['world_size']} workers in {generations} generations: "
        f"{steps:.0f} s in training steps, {sampling:.0f} s sampling.</p>"
    )


def samples_section(samples: Record | None) -> str:
    """The contact sheet and its figures."""
    sheet = Path(samples["folder"]) / "contact-sheet.png" if samples else None
    if samples is None or sheet is None or not sheet.exists():
        return ""
    picture = base64.b64encode(sheet.read_bytes()).decode()
    text = (
        f"Held-out clips after step {samples['step']}: PSNR {samples['psnr']:.1f} dB over the generated frames, "
        f"{samples['psnr_copy_last_frame']:.1f} dB for repeating the given frame."
    )
    return section(
        "What does it look like?",
        f'<figure><img alt="contact sheet: truth above, generated below" src="data:image/png;base64,{picture}">'
        f"<figcaption>{text}</figcaption></figure>",
    )


def stage_starts(metrics: Sequence[Record]) -> list[tuple[float, str]]:
    """(first step, name) of every stage, for the charts' marks."""
    starts: dict[str, float] = {}
    for step in metrics:
        starts.setdefault(step["stage"], step["step"])
    return [(step, name) for name, step in starts.items()]


def loss_charts(metrics: Sequence[Record], happened: Sequence[Record]) -> str:
    """Training and held-out loss over steps; training loss by target frame."""
    if not metrics:
        return ""
    training = Line("training", [(step["step"], step["loss"]) for step in metrics if step["loss"] is not None])
    held_out = Line("held-out", [(event["step"], event["held_out_loss"]) for event in happened if event["event"] == "evaluation"])
    frames = max(len(step["loss_by_frame"]) for step in metrics)
    by_frame = [
        Line(
            f"frame {frame}",
            [(s["step"], value) for s in metrics if len(s["loss_by_frame"]) > frame and (value := s["loss_by_frame"][frame]) is not None],
        )
        for frame in range(frames)
    ]
    marks = stage_starts(metrics)
    return chart("loss per supervised token", [training.smoothed(), held_out], marks) + chart(
        "loss by target latent frame", [line.smoothed() for line in by_frame if line.points], marks
    )


def speed_charts(metrics: Sequence[Record]) -> str:
    """Throughput, and where a step's time goes."""
    if not metrics:
        return ""

    def series(name: str, value: Callable[[Record], float]) -> Line:
        return Line(name, [(step["step"], value(step)) for step in metrics])

    marks = stage_starts(metrics)
    tokens = [
        series("tokens/s", lambda s: s["tokens_per_second"]),
        series("supervised tokens/s", lambda s: s["supervised_tokens_per_second"]),
    ]
    seconds = [
        series("compute", lambda s: s["step_seconds"]),
        series("data wait", lambda s: s["data_seconds"]),
        series("commit", lambda s: s["checkpoint_seconds"]),
    ]
    return chart("tokens per second", [line.smoothed() for line in tokens], marks) + chart("seconds per step", seconds, marks)


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


def stage_table(metrics: Sequence[Record], happened: Sequence[Record]) -> str:
    """One row per stage: steps, last losses, why it ended."""
    rows = []
    for _, name in stage_starts(metrics):
        steps = [step for step in metrics if step["stage"] == name]
        held_out = [event["held_out_loss"] for event in happened if event["event"] == "evaluation" and event["stage"] == name]
        reason = next((event["reason"] for event in reversed(happened) if event["event"] == "promotion" and event["stage"] == name), "")
        losses = [step["loss"] for step in steps[-10:] if step["loss"] is not None]
        rows.append(
            [name, len(steps), f"{sum(losses) / len(losses):.4f}" if losses else "", f"{held_out[-1]:.4f}" if held_out else "", reason]
        )
    return table(["stage", "steps", "loss (last 10)", "held-out loss", "promoted by"], rows)


def data_table(happened: Sequence[Record]) -> str:
    """How the inputs fared, with every unreadable file by name."""
    start = next((event for event in reversed(happened) if event["event"] == "start"), None)
    if start is None:
        return ""
    sources = start["sources"]
    rows = [["videos", sources["total"]], ["used", sources["ok"]]]
    rows += [[f"rejected: {reason}", count] for reason, count in sources["rejected"].items()]
    rows += [[f"unreadable: {name}", reason] for name, reason in sources["failed"].items()]
    rows += [[f"damaged: {name}", reason] for name, reason in sources["damaged"].items()]
    return table(["", ""], rows)


def event_table(happened: Sequence[Record]) -> str:
    """Every event but the evaluations, which are in the chart."""
    told = [event for event in happened if event["event"] not in ("evaluation", "start")]
    rows = []
    for event in told:
        details = ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("time", "event", "seconds", "folder"))
        rows.append([time.strftime("%H:%M:%S", time.gmtime(event["time"])), event["event"], textwrap.shorten(details, 400)])
    return table(["UTC", "event", ""], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """An HTML table of escaped cells."""
    if not rows:
        return ""
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    titles = "".join(f"<th>{html.escape(title)}</th>" for title in head)
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{cells}</tbody></table></div>'
