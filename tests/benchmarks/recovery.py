"""How long a run of the toy model stands still: from a fault, or a stage's end, to the next completed step, each second by where it went.

Two hosts of one CPU each on this machine, killed and started for real. Prints medians; the gates are seconds on two quiet cores. Beside
it what Ray Train's own gang takes for the same, where it is installed.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from cluster.hosts import Hosts, trainers
from tests.benchmarks import ray_train
from tests.benchmarks.machine import publish
from tests.cluster.elastic import finish, happened, recipe, start, stepped
from tests.e2e.job import wait_until
from trainer.heartbeat import MILESTONES

GATES = {"worker": 3.0, "stage": 4.0, "node": 12.0, "growth": 6.0}
ROUNDS = 3
LENGTHS = {"short": 60 + 600 * ROUNDS, "longer": 60, "larger": 60}
Parts = dict[str, float]


def parts(run: Path, began: float) -> Parts:
    """Seconds from a moment (Unix) to the first completed step of the next generation: until it was noticed, until the generation was
    drawn, and then by milestone."""
    (first, *_) = [event for event in happened(run, "milestone", name="stepped") if event["at"] > began]
    of = first["generation"]
    failures = [event["detected"] for event in happened(run, "failure") if event["time"] >= began]
    moments = [("", began), *[("detect", moment) for moment in failures[:1]]]
    moments += [("draw", event["time"]) for event in happened(run, "generation", generation=of)]
    moments += [(name, event["at"]) for name in MILESTONES for event in happened(run, "milestone", name=name, generation=of)]
    found = {name: then - before for (_, before), (name, then) in pairwise(moments)}
    return found | {"total": moments[-1][1] - began}


def after(run: Path, process: Any, fault: Callable[[], float]) -> Parts:
    """What a fault costs; it returns when it happened (Unix)."""
    began = fault()
    wait_until(lambda: any(event["at"] > began for event in happened(run, "milestone", name="stepped")), process)
    time.sleep(2.0)  # some steps, so that the next fault meets a run in its stride
    return parts(run, began)


def measured(folder: Path, hosts: Hosts) -> dict[str, list[Parts]]:
    """Every kind, ROUNDS times in one run; stage changes at its end."""
    run = folder / "runs" / "recovery"
    process = start([*recipe(folder, "recovery", LENGTHS), "cluster.min_workers=1"], hosts)
    found: dict[str, list[Parts]] = {kind: [] for kind in GATES}

    def kill_worker() -> float:
        os.kill(trainers(run)[1], signal.SIGKILL)
        return time.time()

    def kill_node() -> float:
        hosts.kill(1)
        return time.time()

    def grow() -> float:
        """From the commit at which the old generation leaves; the new seat has warmed up while training went on."""
        seen = len(happened(run, "resize", to=2))
        hosts.add(1)
        wait_until(lambda: len(happened(run, "resize", to=2)) > seen, process)
        resized = happened(run, "resize", to=2)[-1]["time"]
        return max(float(event["time"]) for event in happened(run, "commit") if event["time"] <= resized)

    wait_until(stepped(run, "short", 20), process)
    for _ in range(ROUNDS):
        for kind, fault in (("worker", kill_worker), ("node", kill_node), ("growth", grow)):
            found[kind].append(after(run, process, fault))
    finish(process, 900.0)
    found["stage"] = [parts(run, event["time"]) for event in happened(run, "promotion")[:-1]]
    return found


def beside(folder: Path) -> dict[str, float] | str:
    """The same for Ray Train's own gang, on hosts of its own."""
    if not ray_train.is_installed():
        return 'not measured: pip install "ray[train]"'
    with Hosts(2, 1, dict(os.environ)) as hosts:
        return ray_train.seconds(hosts, folder)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="vm-") as folder:
        with Hosts(2, 1, dict(os.environ)) as hosts:
            found = measured(Path(folder), hosts)
        other = beside(Path(folder) / "ray-train")
    seconds = {kind: {name: median(one.get(name, 0.0) for one in all_of_it) for name in all_of_it[0]} for kind, all_of_it in found.items()}
    ratios = {kind: seconds[kind]["total"] / gate for kind, gate in GATES.items()}
    passed = max(ratios.values()) <= 1
    told = {"gates": GATES, "passed": passed, "seconds": seconds, "ratios": ratios, "ray_train_seconds": other}
    publish({"benchmark": "recovery", "ratio": max(ratios.values()), "gate": 1.0, **told})
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
