"""Is it learning, is it fast: a sentence on the losses, and where the wall time went as bars. report.py places them. Pure."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from trainer.goodput import Goodput

Record = dict[str, Any]
IN_WORDS = {
    "detect": "noticing failures",
    "start": "starting generations",
    "load": "loading commits",
    "data": "waiting for data",
    "checkpoint": "standing still for commits",
    "recompute": "steps thrown away",
    "replan": "between generations",
    "other": "everything else: evaluation, sampling",
}


def time_bars(account: Goodput) -> str:
    """The goodput in a sentence, and a bar for the steps that count and for each cause of lost time; nothing before any time was spent."""
    if account.wall <= 0:
        return ""
    shares = [("steps that count", account.productive), *((IN_WORDS[cause], seconds) for cause, seconds in account.lost.items())]
    rows = "".join(bar(name, seconds, seconds / account.wall) for name, seconds in shares if seconds >= 0.05)
    region = '<div class="wide" tabindex="0" role="region" aria-label="where the time went">'
    return (
        f"<p>Goodput {account.ratio:.1%}: {account.productive:.1f} of {account.wall:.1f} s of wall time went into steps that count.</p>"
        f'{region}<table class="bars"><tbody>{rows}</tbody></table></div>'
    )


def bar(name: str, seconds: float, share: float) -> str:
    width = f'<div class="bar" style="width:{share:.1%}"></div>'
    return f"<tr><td>{html.escape(name)}</td><td>{seconds:.1f} s</td><td>{share:.1%}</td><td>{width}</td></tr>"


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
