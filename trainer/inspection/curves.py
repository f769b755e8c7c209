"""A run's curves: is it learning, is it fast. From the lines of metrics.jsonl and events.jsonl to charts; report.py places them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trainer.inspection.chart import Line, chart

Record = dict[str, Any]
MARKED = ("failure",)  # what is worth a mark in every curve


def stage_starts(metrics: Sequence[Record]) -> list[tuple[float, str]]:
    """(first step, name) of every stage, for the charts' bands."""
    starts: dict[str, float] = {}
    for step in metrics:
        starts.setdefault(step["stage"], step["step"])
    return [(step, name) for name, step in starts.items()]


def event_marks(metrics: Sequence[Record], happened: Sequence[Record]) -> list[tuple[float, str]]:
    """(step, text) of failures and restarts; an event that names no step stands at the one where its successor began."""
    marks = []
    for place, event in enumerate(happened):
        if event["event"] not in MARKED:
            continue
        later = (
            next_event["step"] for next_event in happened[place:] if next_event["event"] in ("layout", "promotion") and "step" in next_event
        )
        step = event.get("step", next(later, metrics[-1]["step"] if metrics else 0))
        marks.append((float(step), f"{event['event']}: {event.get('reason', '')}"))
    return marks


def series(metrics: Sequence[Record], name: str, value: Callable[[Record], float | None]) -> Line:
    """A line over steps, without the steps that have no value."""
    return Line(name, [(step["step"], found) for step in metrics if (found := value(step)) is not None])


def loss_charts(metrics: Sequence[Record], true_now: Sequence[Record], happened: Sequence[Record]) -> str:
    """Training and held-out loss over steps; training loss by target frame; the gradient's norm."""
    if not metrics:
        return ""
    bands, marks = stage_starts(metrics), event_marks(metrics, happened)
    held_out = Line("held-out", [(event["step"], event["held_out_loss"]) for event in true_now if event["event"] == "evaluation"])
    training = series(metrics, "training", lambda step: step["loss"])
    by_frame = [
        series(metrics, f"frame {frame}", lambda step, at=frame: (step["loss_by_frame"][at : at + 1] or [None])[0])
        for frame in range(max(len(step["loss_by_frame"]) for step in metrics))
    ]
    norm = series(metrics, "gradient norm", lambda step: step["grad_norm"])
    return (
        chart("loss per supervised token", [training.smoothed(), held_out], bands, marks)
        + chart("loss by target latent frame", [line.smoothed() for line in by_frame if line.points], bands, marks)
        + chart("gradient norm before clipping", [norm], bands, marks)
    )


def speed_charts(metrics: Sequence[Record], happened: Sequence[Record]) -> str:
    """Throughput, where a step's time goes, and memory."""
    if not metrics:
        return ""
    bands, marks = stage_starts(metrics), event_marks(metrics, happened)
    tokens = [
        series(metrics, "tokens/s", lambda step: step["tokens_per_second"]),
        series(metrics, "supervised tokens/s", lambda step: step["supervised_tokens_per_second"]),
    ]
    seconds = [
        series(metrics, "compute", lambda step: step["step_seconds"]),
        series(metrics, "data wait", lambda step: step["data_seconds"]),
        series(metrics, "commit", lambda step: step["checkpoint_seconds"]),
    ]
    memory = series(metrics, "peak memory", lambda step: step["memory_bytes"] / 2**30)
    return (
        chart("tokens per second", [line.smoothed() for line in tokens], bands, marks)
        + chart("seconds per step", seconds, bands, marks)
        + chart("GiB of memory", [memory], bands, marks)
    )
