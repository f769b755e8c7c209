"""Where a run's wall time went, and in a sentence each whether it learns and whether it is fast. Pure; from its own records."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

Record = dict[str, Any]


def wall_seconds(happened: Sequence[Record]) -> float:
    """Seconds during which a process steered the run: from every start to the last event before the next."""
    starts = [place for place, event in enumerate(happened) if event["event"] == "start"]
    return sum(happened[stop - 1]["time"] - happened[start]["time"] for start, stop in pairwise([*starts, len(happened)]))


def breakdown(metrics: Sequence[Record], happened: Sequence[Record]) -> dict[str, float]:
    """{what: seconds} of the wall time since the data was ready; what steps went on that a restart threw away is not in the steps."""
    if not metrics:
        return {}
    mean = sum(step["step_seconds"] + step["data_seconds"] for step in metrics) / len(metrics)
    parts = {
        "training steps": sum(step["step_seconds"] for step in metrics),
        "waiting for data": sum(step["data_seconds"] for step in metrics),
        "commits": sum(step["checkpoint_seconds"] for step in metrics),
        "sampling": sum(event["seconds"] for event in happened if event["event"] == "samples"),
        "starting generations": sum(sum(event.get("seconds", {}).values()) for event in happened if event["event"] == "layout"),
        "steps done again": mean * sum(event.get("recomputed", 0) for event in happened if event["event"] == "layout"),
    }
    return parts | {"everything else": max(0.0, wall_seconds(happened) - sum(parts.values()))}


def rows(parts: dict[str, float]) -> list[list[str]]:
    """A row per part with its share; parts of no time are left out."""
    total = sum(parts.values())
    return [[name, f"{seconds:.1f} s", f"{seconds / total:.1%}"] for name, seconds in parts.items() if seconds > 0]


def verdict(metrics: Sequence[Record], true_now: Sequence[Record]) -> str:
    """Is it learning? The held-out loss of the last stage's first and last evaluation, or the training loss where there is none."""
    if not metrics:
        return ""
    stage = metrics[-1]["stage"]
    values = [event["held_out_loss"] for event in true_now if event["event"] == "evaluation" and event["stage"] == stage]
    kind = "held-out loss"
    if len(values) < 2:
        values, kind = [step["loss"] for step in metrics if step["stage"] == stage and step["loss"] is not None], "training loss"
    if len(values) < 2:
        return f"Stage {stage} has made too few steps to tell whether it learns."
    change = values[-1] / values[0] - 1 if values[0] else 0.0
    word = "fell" if change < 0 else "rose"
    return f"In stage {stage} the {kind} {word} from {values[0]:.4f} to {values[-1]:.4f} ({change:+.1%}); its best was {min(values):.4f}."
