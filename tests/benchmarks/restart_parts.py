"""What a restart takes, part by part, at toy size: a small run on Ray hosts of its own meets killed workers and lost nodes, and its own
events tell from the last sign of life to the first step of the next generation. `simulate` takes its constants from here."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from cluster import chaos
from cluster.simulation.constants import PLAIN_NODE, PLAIN_PROCESS
from tests.benchmarks.machine import publish
from trainer.events import read_events

Record = dict[str, Any]
MILESTONES = ("built", "loaded", "stepped")


def restarts(happened: Sequence[Record]) -> list[dict[str, Any]]:
    """Every failure that was followed by a generation that made a step: its cause and the seconds of each part."""
    found = []
    for place, failure in enumerate(happened):
        if failure["event"] == "failure":
            later = happened[place + 1 :]
            group = next((event for event in later if event["event"] == "generation"), None)
            passed = {
                event["name"]: event["at"] for event in later if group and event.get("generation") == group["generation"] and "at" in event
            }
            if group and set(MILESTONES) <= set(passed):
                times = [failure["happened"], failure["time"], group["time"], *(passed[name] for name in MILESTONES)]
                parts = [after - before for before, after in pairwise(times)]
                found.append({"cause": failure["cause"], **dict(zip(("detect", "replan", "start", "load", "step"), parts, strict=True))})
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--minutes", type=float, default=1.7)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="vm-parts-") as root:
        arguments = ["--minutes", f"{given.minutes}", "--seed", f"{given.seed}", "--kinds", "worker,node", "--root", root]
        with contextlib.redirect_stdout(io.StringIO()):
            chaos.command(arguments, dict(os.environ))
        happened = read_events(next(Path(root).glob("chaos-seed-*/chaos")))
    found = restarts(happened)
    publish(result(found))


def result(found: Sequence[Record]) -> dict[str, Any]:
    """Medians by part; gate: from a killed worker to the next completed step in a tenth of what a gang takes that restarts as a whole."""
    processes, nodes = ([each for each in found if (each["cause"] == "signal") == here] for here in (True, False))
    parts = {name: median(each[name] for each in found) for name in ("replan", "start", "load", "step")}
    whole = median(sum(each[name] for name in ("detect", *parts)) for each in processes)
    return {
        "benchmark": "restart_parts",
        "ratio": whole / PLAIN_PROCESS,
        "gate": 0.25,
        "passed": whole <= 0.25 * PLAIN_PROCESS,
        "detect": median(each["detect"] for each in processes),
        "detect_node": median(each["detect"] for each in nodes) if nodes else None,
        **parts,
        "killed_worker_to_next_step": whole,
        "plain_seconds": {"process": PLAIN_PROCESS, "node": PLAIN_NODE},
        "restarts": found,
    }


if __name__ == "__main__":
    main()
