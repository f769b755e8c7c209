"""What there is to say about a run right now, from its folder alone. `status`, `runs`, `rollback` and `prune` ask it, and who steers a run.

Reads files only: whether a process on another host lives is judged by when the run last said something.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from trainer import lease
from trainer.curriculum import Stage, tokens_to_go
from trainer.events import read_events, standing
from trainer.goodput import Goodput, goodput
from trainer.metrics import last_line, metrics_path, read_metrics

Record = dict[str, Any]
SILENT_SECONDS = 600.0  # after which a run whose process cannot be seen from here counts as stopped
RECENT_STEPS = 20
LISTED = 3


def last_word(run: Path) -> float:
    """When the run last wrote an event or a step, Unix seconds; 0 for never."""
    paths = (run / "events.jsonl", metrics_path(run))
    return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)


def is_live(run: Path, now: float) -> bool:
    """Whether a process steers the run; one on another host is believed to as long as it is heard of, be it only by its lease."""
    owner = lease.owner(run)
    if owner is None or has_finished(run):
        return False
    alive = lease.is_alive(owner)
    return now - max(last_word(run), lease.heard(run)) < SILENT_SECONDS if alive is None else alive


def has_finished(run: Path) -> bool:
    """Whether its last session has come to its end."""
    return session(read_events(run))[-1:] == ["finish"]


def state_of(run: Path, happened: Sequence[Record], now: float) -> str:
    """new, running, finished, failed or stopped."""
    if is_live(run, now):
        return "running"
    kinds = session(happened)
    return {"finish": "finished", "failure": "failed"}.get(kinds[-1], "stopped") if kinds else "new"


def session(happened: Sequence[Record]) -> list[str]:
    """The kinds of the events since the run was last started or taken back; none before it ever was."""
    kinds = [event["event"] for event in happened]
    begun = [place for place, kind in enumerate(kinds) if kind in ("start", "rollback")]
    return kinds[begun[-1] :] if begun else []


def account(run: Path, now: float) -> Goodput:
    """Where the run's wall time went so far."""
    return goodput(read_events(run), read_metrics(run), now if is_live(run, now) else last_word(run))


def status(run: Path, stages: Sequence[Stage], now: float) -> Record:
    """Everything, ready for JSON: times in Unix seconds, durations in seconds, unknown values None."""
    happened, metrics = read_events(run), read_metrics(run)
    true_now, state = standing(happened), state_of(run, happened, now)
    last, recent = metrics[-1] if metrics else {}, metrics[-RECENT_STEPS:]
    spent = goodput(happened, metrics, now if state == "running" else last_word(run))
    commits = [event for event in true_now if event["event"] == "commit"]
    layout = next((event for event in reversed(true_now) if event["event"] == "layout"), {})
    return {
        "run": str(run),
        "state": state,
        "last_word": last_word(run),
        "step": last.get("step", 0),
        "stages": stage_rows(stages, metrics, true_now),
        "loss": last.get("loss"),
        "held_out_loss": held_out(true_now),
        "layout": {key: layout[key] for key in ("dp", "tp", "sp", "zero", "micro_batch", "accumulation") if key in layout},
        "world": last.get("world_size"),
        "generation": max((event["generation"] for event in happened if event["event"] == "generation"), default=0),
        "step_seconds": sum(step["step_seconds"] + step["data_seconds"] for step in recent) / len(recent) if recent else None,
        "commit": {key: commits[-1][key] for key in ("step", "time")} if commits else None,
        "goodput": {"ratio": spent.ratio, "wall": spent.wall, **asdict(spent)},
        "failures": [
            {key: event.get(key) for key in ("time", "generation", "cause", "reason")} for event in happened if event["event"] == "failure"
        ][-LISTED:],
    }


def held_out(true_now: Sequence[Record]) -> float | None:
    """The last evaluation."""
    return next((event["held_out_loss"] for event in reversed(true_now) if event["event"] == "evaluation"), None)


def stage_rows(stages: Sequence[Stage], metrics: Sequence[Record], true_now: Sequence[Record]) -> list[Record]:
    """Per stage: name, state (done, training, ahead), steps, max_steps, readiness of its data where known, seconds to go at the present
    speed in tokens if it does not end before its max_steps."""
    done = {event["stage"]: event["reason"] for event in true_now if event["event"] == "promotion"}
    ready = readiness(true_now)
    recent = metrics[-RECENT_STEPS:]
    busy = sum(step["step_seconds"] + step["data_seconds"] for step in recent)
    rate = sum(step["tokens"] for step in recent) / busy if busy else None  # latent tokens per second
    rows = []
    for stage in stages:
        steps = sum(step["stage"] == stage.name for step in metrics)
        state = "done" if stage.name in done else "training" if steps or len(rows) == len(done) else "ahead"
        left = 0.0 if state == "done" else tokens_to_go([stage], 0, steps) / rate if rate else None
        row = {"name": stage.name, "state": state, "steps": steps, "max_steps": stage.promotion.max_steps, "eta_seconds": left}
        rows.append(row | {"ended": done.get(stage.name), "readiness": ready})
    return rows


def readiness(true_now: Sequence[Record]) -> float | None:
    """Share of the data set's sources that are encoded, by the last word on it; None where there is none, or of several data sets."""
    told = {event["dataset"]: event for event in true_now if event["event"] == "data"}
    if len(told) != 1:
        return None
    (last,) = told.values()
    return last["sources"]["total"] / max(1, last["sources"]["total"] + last["pending"])


def overview(run: Path, now: float) -> Record:
    """A line of `runs`; of metrics.jsonl only the end is read."""
    happened, last = read_events(run), last_line(run)
    names = {"step": last.get("step", 0), "stage": last.get("stage"), "held_out_loss": held_out(standing(happened))}
    return {"run": run.name, "state": state_of(run, happened, now), **names, "last_word": last_word(run)}


def runs_under(root: Path) -> list[Path]:
    """The folders of all runs directly under a root, by name."""
    return sorted(path.parent for path in root.glob("*/config.yaml"))


def check_run(folder: Path) -> Path:
    """The run's folder. Raises UserError naming the runs beside it when it is none."""
    if (folder / "config.yaml").is_file():
        return folder
    beside = ", ".join(path.name for path in runs_under(folder.parent)) if folder.parent.is_dir() else ""
    raise UserError(f"{folder} is no run's folder: it has no config.yaml" + (f"; runs there: {beside}" if beside else ""))
