"""Which layout a stage runs in on a cluster: of all that fit the devices' memory, the one whose step is shortest. Pure.

Called by the `plan` command; refuses with the binding constraint.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from data_pipeline.errors import UserError
from trainer.planner import Layout, usable
from trainer.planning.cost import Cluster, Cost, step_cost
from trainer.planning.memory import Memory, Numerics, estimate
from trainer.planning.workload import Workload
from trainer.units import MAX_PADDING, padding

RESERVE = 0.1  # of a device's memory: the estimate's error, the context, communication buffers, fragmentation
SHORTEST = 1024  # tokens that a sequence-parallel rank must at least be left with
CHECKPOINTING = ("none", "selective", "full")
LARGEST_WORLD = 16_384


@dataclass(frozen=True)
class Plan:
    """A stage's layout with what it holds and costs."""

    work: Workload
    layout: Layout
    memory: Memory
    cost: Cost

    @property
    def used(self) -> int:
        """Devices at work; the others of the world are idle."""
        return self.layout.dp * self.layout.tp * self.layout.sp


@dataclass(frozen=True)
class Planner:
    """The fixed side of a search: the cluster, the numerics and the largest micro-batch the recipe allows."""

    cluster: Cluster
    numerics: Numerics
    largest_micro_batch: int

    @property
    def room(self) -> float:
        """Bytes of a device that a plan may fill."""
        return self.cluster.memory * (1.0 - RESERVE)

    def choose(self, work: Workload) -> Plan:
        """The plan with the shortest step; of equals the simplest. Raises UserError when nothing fits."""
        plans = self.candidates(work)
        if not plans:
            raise UserError(self.refusal(work))
        return min(plans, key=simplicity)

    def candidates(self, work: Workload) -> list[Plan]:
        """Every shape and kind of checkpointing that fits, each with its best micro-batch."""
        return [plan for layout in shapes(work, self.cluster) for mode in CHECKPOINTING if (plan := self.fill(work, layout, mode))]

    def fill(self, work: Workload, layout: Layout, mode: str) -> Plan | None:
        """The shape with the fastest micro-batch that fits in memory with at most 5 % padding, or None: the largest one, or a smaller
        one whose passes are padded less."""
        share = -(-work.samples // layout.dp)
        fewest = low = -(-share // self.largest_micro_batch)
        high = share
        while low < high:  # with fewer passes a device needs more memory ...
            middle = (low + high) // 2
            low, high = (low, middle) if self.fits(work, passes(work, layout, mode, middle)) else (middle + 1, high)
        best: Plan | None = None
        rows = math.inf  # that a device computes in all passes
        largest = passes(work, layout, mode, low).micro_batch
        for size in (passes(work, layout, mode, fewest).micro_batch, *range(largest, 0, -1)):  # ... but a single pass keeps no gradients
            filled = replace(layout, micro_batch=size, accumulation=-(-work.samples // (layout.dp * size)), checkpointing=mode)
            if size * filled.accumulation < rows and padding(work.samples, layout.dp, size) <= MAX_PADDING and self.fits(work, filled):
                plan, rows = self.plan(work, filled), size * filled.accumulation
                best = plan if best is None or plan.cost.seconds < best.cost.seconds else best
        return best

    def fits(self, work: Workload, layout: Layout) -> bool:
        return estimate(work, layout, self.numerics).total <= self.room

    def plan(self, work: Workload, layout: Layout) -> Plan:
        """The figures of a given layout, whether it fits or not."""
        return Plan(work, layout, estimate(work, layout, self.numerics), step_cost(work, layout, self.cluster, self.numerics))

    def leanest(self, work: Workload) -> Plan:
        """The layout that needs the least memory."""
        layouts = (passes(work, layout, "full", -(-work.samples // layout.dp)) for layout in shapes(work, self.cluster))
        return min((self.plan(work, layout) for layout in layouts), key=lambda plan: plan.memory.total)

    def refusal(self, work: Workload) -> str:
        """Why nothing fits, in one line."""
        plan = self.leanest(work)
        parts = {name: getattr(plan.memory, name) for name in ("weights", "optimizer", "gradients", "activations")}
        largest, layout = max(parts, key=parts.__getitem__), plan.layout
        remedy = "fewer or smaller frames" if largest == "activations" else "a higher plan.world or a smaller model.size"
        return (
            f"stage {work.stage}: its leanest layout on {self.cluster.world} devices (tp {layout.tp}, sp {layout.sp}, "
            f"ZeRO-{layout.zero}, full checkpointing, 1 sample per pass) needs {plan.memory.total / 1e9:.1f} GB per device, "
            f"{parts[largest] / 1e9:.1f} GB of it {largest}, but {self.room / 1e9:.1f} GB of plan.memory can be filled; "
            f"give devices with more memory, or {remedy}"
        )

    def on(self, world: int) -> Planner:
        """The same on another number of devices."""
        return replace(self, cluster=replace(self.cluster, world=world))


def shapes(work: Workload, cluster: Cluster) -> Iterator[Layout]:
    """Every division of the world into dp, tp, sp and ZeRO that the model and the sequences allow; micro-batches are still to fill."""
    heads, unit = work.model.heads, math.gcd(*(sequence.tokens for sequence in work.sequences))
    for tp in divisors(math.gcd(heads, cluster.per_node)):
        for sp in divisors(heads // tp):
            dp = usable(cluster.world, [work.samples], tp * sp) // (tp * sp)
            if not dp or unit % sp or (sp > 1 and work.longest.tokens < sp * SHORTEST):
                continue
            for zero in (1, 2, 3):
                yield Layout(dp, tp, sp, zero, 1, 1, megatron_sp=tp > 1 and unit % (tp * sp) == 0)


def divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def passes(work: Workload, layout: Layout, mode: str, count: int) -> Layout:
    """The shape with its share of the samples in at most `count` passes, and a kind of checkpointing."""
    micro_batch = -(-work.samples // (layout.dp * count))
    return replace(layout, micro_batch=micro_batch, accumulation=-(-work.samples // (layout.dp * micro_batch)), checkpointing=mode)


def simplicity(plan: Plan) -> tuple[float, ...]:
    """Order of preference: the shorter step; within 1 % the fewer degrees, the lower ZeRO stage and the less recomputed."""
    layout = plan.layout
    return (
        round(math.log(plan.cost.seconds) / 0.01),
        layout.tp * layout.sp,
        layout.sp,
        layout.zero,
        CHECKPOINTING.index(layout.checkpointing),
    )


def largest_useful(planner: Planner, work: Workload) -> tuple[int, str]:
    """(devices, what binds): the most devices, by powers of two, that all have work and compute for at least half of a step's time."""

    @cache
    def plan(world: int) -> Plan | None:
        return min(planner.on(world).candidates(work), key=simplicity, default=None)

    def too_large(world: int) -> bool:
        found = plan(world)
        return found is not None and (found.used <= world // 2 or found.cost.compute < found.cost.seconds / 2)

    worlds = [2**power for power in range(LARGEST_WORLD.bit_length())]
    place = bisect_left(worlds, True, key=too_large)
    last, larger = plan(worlds[max(place, 1) - 1]), plan(worlds[place]) if place < len(worlds) else None
    if last is None:
        return 0, "memory"
    if larger is None:
        return last.used, f"the search, which ends at {LARGEST_WORLD:,} devices"
    if larger.used <= last.used:
        degrees = f"dp {last.layout.dp} x tp {last.layout.tp} x sp {last.layout.sp}"
        return last.used, f"{work.samples} samples per step: no more than {degrees} divide them, the heads and the tokens"
    name, share = dearest(larger)
    return last.used, f"{name}: {share:.0%} of a step on {larger.used:,} devices"


def dearest(plan: Plan) -> tuple[str, float]:
    """What takes most of a step besides computing, and its share."""
    cost = plan.cost
    parts = {"communication": cost.communication, "recomputation": cost.recompute, "the optimiser": cost.update}
    name = max(parts, key=parts.__getitem__)
    return name, parts[name] / cost.seconds
