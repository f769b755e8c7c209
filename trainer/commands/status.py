"""`status <run>`: where a run stands, how fast it goes, what it loses time to, what failed last. From the run's folder alone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.commands.options import Options
from trainer.config import saved
from trainer.status import check_run, status

EXAMPLE = "  python trainer/main.py status runs/toy\n  python trainer/main.py status runs/toy --watch 5"
CLEAR = "\x1b[H\x1b[J"


def command(arguments: list[str], environment: dict[str, str]) -> int:
    """Print the status, once or again and again until the run is over."""
    options = Options("status", "Where a run stands: stage, step, layout, time to go, goodput, last failures.", EXAMPLE)
    options.add_argument("run", type=Path, help="the run's folder, as in runs/toy")
    options.add_argument("--json", action="store_true", help="one JSON object instead of text")
    options.add_argument("--watch", type=float, metavar="SECONDS", help="again every so many seconds, while the run lives")
    given = options.read(arguments)
    if given.watch is not None and given.watch <= 0:
        options.error(f"--watch {given.watch:g}: give seconds above 0")
    run = check_run(given.run)
    stages = saved(run).curriculum.stages
    while True:
        now = time.time()
        found = status(run, stages, now)
        text = json.dumps(found) if given.json else "\n".join(lines(found, now))
        print(text if given.json or not given.watch else CLEAR + text, flush=True)
        if not given.watch or found["state"] != "running":
            return 0
        time.sleep(given.watch)


def lines(found: dict[str, Any], now: float) -> Iterator[str]:
    """The status in words."""
    word = f", last heard of {clock(now - found['last_word'])} ago" if found["last_word"] else ""
    yield f"{found['run']}: {found['state']}{word}"
    speed = f", {found['step_seconds']:.3g} s per step" if found["step_seconds"] else ""
    losses = [f"{name} {found[key]:.4f}" for name, key in (("loss", "loss"), ("held-out loss", "held_out_loss")) if found[key] is not None]
    yield "  " + ", ".join([f"step {found['step']}{speed}", *losses])
    if found["layout"]:
        degrees = ", ".join(f"{name} {value}" for name, value in found["layout"].items())
        yield f"  layout  {found['world']} workers: {degrees}; generation {found['generation']}"
    yield from map(stage_line, found["stages"])
    if found["commit"]:
        yield f"  commit  of step {found['commit']['step']}, {clock(now - found['commit']['time'])} ago"
    lost = sorted(((seconds, cause) for cause, seconds in found["goodput"]["lost"].items() if seconds >= 0.05), reverse=True)
    spent = "; lost: " + ", ".join(f"{cause} {seconds:.1f} s" for seconds, cause in lost) if lost else ""
    yield f"  goodput {found['goodput']['ratio']:.1%} of {clock(found['goodput']['wall'])}{spent}"
    for failure in found["failures"]:
        yield f"  failure {clock(now - failure['time'])} ago, generation {failure['generation']}: {failure['reason']}"


def stage_line(stage: dict[str, Any]) -> str:
    """One stage: how far, how long still, and its data's readiness where that is told."""
    parts = [f"{stage['steps']}/{stage['max_steps']} steps"]
    if stage["state"] == "done":
        parts.append(f"done ({stage['ended']})")
    elif stage["eta_seconds"] is not None:
        parts.append(f"at most {clock(stage['eta_seconds'])} to go")
    if stage["readiness"] is not None and stage["state"] != "done":
        parts.append(f"data {stage['readiness']:.0%} ready")
    return f"  stage   {stage['name']}: {', '.join(parts)}" + (" <- now" if stage["state"] == "training" else "")


def clock(seconds: float) -> str:
    """3:07 or 2:05:09."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
