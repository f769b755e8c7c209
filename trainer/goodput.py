"""Where a run's wall time went: into steps that count, or lost, by cause. Pure: the records of events.jsonl and metrics.jsonl in, seconds
out. The report, the metrics, `status` and `simulate` ask it; it knows no file and no clock.

Each second between two events belongs to what the run was doing then; the seconds of training are shared out to the steps that stand,
their waits for data, their commits, and what a restart threw away. What no record explains is `other` (evaluations, sampling).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.metrics import LOSSES

Record = dict[str, Any]
TRAINING = "training"
STARTING = ("start", "load")


@dataclass(frozen=True)
class Goodput:
    """Seconds of a run: productive ones and, by cause (trainer.metrics.LOSSES), lost ones. Together they are the wall time."""

    productive: float
    lost: dict[str, float]

    @property
    def wall(self) -> float:
        return self.productive + sum(self.lost.values())

    @property
    def ratio(self) -> float:
        """Productive seconds / wall seconds; 0 before there are any."""
        return self.productive / self.wall if self.wall > 0 else 0.0


def goodput(happened: Sequence[Record], metrics: Sequence[Record], until: float | None = None) -> Goodput:
    """The account of a run. happened: its events in order; metrics: the steps that stand; until: the time up to which it lives or, when it
    was killed, lived (Unix seconds); without it the last event is the end. The time between two sessions of a run is nobody's.
    """
    spent = dict.fromkeys((TRAINING, *LOSSES), 0.0)
    for cause, seconds in spans(happened, until):
        spent[cause] += seconds
    left, productive = spent.pop(TRAINING), 0.0
    for cause, seconds in claims(happened, metrics):
        taken = min(seconds, left)
        left -= taken
        if cause == TRAINING:
            productive += taken
        else:
            spent[cause] += taken
    spent["other"] += left
    return Goodput(productive, spent)


def claims(happened: Sequence[Record], metrics: Sequence[Record]) -> Iterator[tuple[str, float]]:
    """(what, seconds) of the training time by what is known of it. A fork's first steps are another run's."""
    inherited = max((event["step"] for event in happened if event["event"] == "fork"), default=0)
    steps = [step for step in metrics if step["step"] > inherited]
    for cause, field in ((TRAINING, "step_seconds"), ("data", "data_seconds"), ("checkpoint", "checkpoint_seconds")):
        yield cause, sum(step[field] for step in steps)
    mean = sum(step["step_seconds"] + step["data_seconds"] for step in steps) / len(steps) if steps else 0.0
    for event in happened:
        yield "recompute", event.get("recomputed_seconds", mean * event.get("recomputed", 0))
        if event["event"] == "failure" and "happened" in event:
            yield "recompute", mean / 2  # of the step that it broke off


def spans(happened: Sequence[Record], until: float | None) -> Iterator[tuple[str, float]]:
    """(what, seconds) of the wall time, in order: a cause of lost time, or training."""
    doing: str | None = None  # nobody steers the run
    since = 0.0
    for event in happened:
        now = max(since, event.get("at", event["time"]))  # the clocks of several processes
        seconds, cause, following = reading(event, doing, now)
        goes_on = event["event"] not in ("start", "rollback") or "happened" in event
        if doing is not None and goes_on:
            told = min(max(seconds, 0.0), now - since)
            yield doing, now - since - told
            yield cause, told
        doing, since = following, now
    if doing is not None and until is not None:
        yield doing, max(0.0, until - since)


def reading(event: Record, doing: str | None, now: float) -> tuple[float, str, str | None]:
    """(the seconds up to now that the event itself explains, their cause, what the run does from now on)."""
    match event["event"], event.get("name"):
        case "start", _:  # with `happened`: in the place of a controller that was killed then
            return now - event.get("happened", now), "detect", "start"
        case "generation", _:
            return 0.0, "other", "other" if "showcase" in event.get("target", "") else "start"
        case "milestone", "built" if doing == "start":
            return 0.0, "other", "load"
        case ("milestone", "loaded") | ("layout", _) if doing in STARTING:
            return 0.0, "other", TRAINING
        case "preflight", _:
            return event["seconds"], "start", doing
        case "samples", _:
            return event["seconds"], "other", doing
        case "wait", _:
            return event["seconds"], "data" if event["what"] == "data" else "replan", doing
        case "failure", _:
            return now - event.get("happened", now), "detect", "replan"
        case (("promotion" | "roll_back" | "resize"), _):
            return 0.0, "other", "replan" if doing == TRAINING else doing
        case (("finish" | "rollback"), _):
            return 0.0, "other", None
        case _:
            return 0.0, "other", doing
