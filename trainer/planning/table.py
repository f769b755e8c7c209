"""A plan in words: a table of the stages, and why each runs as it does. Called by the `plan` command."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from trainer.planner import Layout
from trainer.planning.search import CHECKPOINTING, Plan, Planner, simplicity

# Memory and what is sent are per device, PFLOP are of all devices together.
COLUMNS = (
    "stage",
    "devices",
    "dp x tp x sp",
    "ZeRO",
    "checkpointing",
    "micro x passes",
    "tokens/step",
    "memory",
    "PFLOP",
    "s/step",
    "MFU",
    "sent",
)


def table(plans: Sequence[Plan], planner: Planner) -> str:
    """The stages side by side, as aligned text that is also a Markdown table."""
    rows = [COLUMNS, *(row(plan, planner) for plan in plans)]
    widths = [max(len(line[place]) for line in rows) for place in range(len(COLUMNS))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def row(plan: Plan, planner: Planner) -> tuple[str, ...]:
    layout, cost, cluster = plan.layout, plan.cost, planner.cluster
    return (
        plan.work.stage,
        f"{plan.used}",
        f"{layout.dp} x {layout.tp}{'+SP' if layout.megatron_sp else ''} x {layout.sp}",
        f"{layout.zero}",
        layout.checkpointing,
        f"{layout.micro_batch} x {layout.accumulation}",
        f"{plan.work.tokens_per_step:,}",
        f"{plan.memory.total / 1e9:.1f} GB",
        f"{cost.flops / 1e15:,.0f}",
        f"{cost.seconds:.3g}",
        f"{cost.flops / (cost.seconds * plan.used * cluster.device.flops):.0%}",
        f"{cost.sent / 1e9:.1f} GB",
    )


def reasons(plan: Plan, planner: Planner) -> Iterator[str]:
    """Why the plan is what it is: what the device holds, and what every other choice would have cost."""
    memory, layout, candidates = plan.memory, plan.layout, planner.candidates(plan.work)
    yield (
        f"{plan.work.stage}: {memory.total / 1e9:.1f} of {planner.room / 1e9:.1f} GB, most in {memory.moment}: weights "
        f"{memory.weights / 1e9:.1f}, optimiser {memory.optimizer / 1e9:.1f}, gradients {memory.gradients / 1e9:.1f}, "
        f"activations {memory.activations / 1e9:.1f}. A step computes {plan.cost.compute:.3g} s, recomputes {plan.cost.recompute:.2g}, "
        f"sends {plan.cost.communication:.2g} and updates {plan.cost.update:.2g}"
    )
    for label, matches in others(layout):
        found = [candidate for candidate in candidates if matches(candidate.layout)]
        cost = f"{min(found, key=simplicity).cost.seconds:.3g} s" if found else "does not fit"
        yield f"  {label} {cost}"
    if plan.used < planner.cluster.world:
        yield f"  {planner.cluster.world - plan.used} devices stay idle: {plan.work.samples} samples per step do not divide further"


def others(layout: Layout) -> Iterator[tuple[str, Callable[[Layout], bool]]]:
    """What could have been chosen instead, and which layouts are of that kind."""
    for mode in CHECKPOINTING:
        if mode != layout.checkpointing:
            yield f"checkpointing {mode} instead of {layout.checkpointing}:", lambda other, mode=mode: other.checkpointing == mode
    if layout.tp > 1:
        yield f"without the tensor parallelism of {layout.tp}:", lambda other: other.tp == 1
    else:
        yield "with tensor parallelism:", lambda other: other.tp > 1
    if layout.sp > 1:
        yield f"without the sequence parallelism of {layout.sp}:", lambda other: other.sp == 1
    else:
        yield "with sequence parallelism:", lambda other: other.sp > 1
    for zero in (1, 2, 3):
        if zero != layout.zero:
            yield f"ZeRO-{zero} instead of {layout.zero}:", lambda other, zero=zero: other.zero == zero
