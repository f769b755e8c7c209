"""What happens to a simulated cluster: faults at seeded times, the same whatever the run does about them. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass

SECONDS = 3600.0  # per hour


@dataclass(frozen=True)
class Fault:
    """At `time` (seconds since the start) something breaks. kind: process (the node stays), node (it is away for `repair` seconds) or
    preempted (as node, but it says so in time for a commit). place: where, from 0 to 1 over all nodes. Of a fault that was measured:
    detect and replan, seconds until the group had ended and from there to the next one's start."""

    time: float
    kind: str
    place: float = 0.0
    repair: float = 0.0
    detect: float | None = None
    replan: float | None = None


def faults(seed: int, hours: float, mtbf_hours: float, node_share: float, preempted_share: float, repair_hours: float) -> tuple[Fault, ...]:
    """Faults of so many hours: exponential times between them with the mean of the whole cluster, and repairs with their mean."""
    draw, found, time = random.Random(seed), [], 0.0
    while True:
        time += draw.expovariate(1.0 / (mtbf_hours * SECONDS))
        if time >= hours * SECONDS:
            return tuple(found)
        sort = draw.random()
        kind = "node" if sort < node_share else "preempted" if sort < node_share + preempted_share else "process"
        found.append(Fault(time, kind, draw.random(), draw.expovariate(1.0 / (repair_hours * SECONDS))))
