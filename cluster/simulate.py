"""`simulate`: a recipe's days on clusters that need not be there, in virtual time: our restarts beside those of a gang that restarts as a
whole. The planner, the curriculum, the policy for moving and the account of the time are the ones of a real run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from cluster.simulation.constants import PLAIN_NODE, PLAIN_PROCESS, measured, our_price, plain_price, predicted, told
from cluster.simulation.virtual import Cluster, Job, Price, Virtual
from cluster.simulation.weather import SECONDS, faults
from data_pipeline.errors import UserError
from trainer import config as configs
from trainer.commands.plan import planner_of, with_recipe
from trainer.config import RunConfig
from trainer.events import read_events
from trainer.goodput import Goodput
from trainer.metrics import LOSSES, read_metrics
from trainer.planning.search import simplicity
from trainer.planning.workload import workload
from trainer.sizing import planned_model
from trainer.status import check_run

POLICIES = ("ours", "plain")
STEP = 8  # between the sizes of the clusters that are simulated
HELP = """usage: python trainer/main.py simulate [key=value ...]

A recipe on simulated clusters of 8, 64, ... simulate.world devices: goodput and lost time, with our restarts and with plain ones, where a
fault restarts the whole job. Nothing is started. With simulate.measured=<run> it predicts the goodput of that run from its own constants.

examples:
  python trainer/main.py simulate recipe=videomar-1.4b simulate.world=4096 simulate.mtbf_hours=2
  python trainer/main.py simulate simulate.measured=runs/toy

The keys of the sections simulate and plan, and their defaults, stand in trainer/sections.py. --json: one object instead of the text."""


def command(arguments: list[str], environment: dict[str, str]) -> int:
    """Print the table, or the prediction."""
    config = configs.load(with_recipe([argument for argument in arguments if argument != "--json"]))
    if config.simulate.node_share + config.simulate.preempted_share > 1:
        raise UserError("simulate.node_share and simulate.preempted_share are shares of all faults: together at most 1")
    found = prediction(Path(config.simulate.measured)) if config.simulate.measured else simulation(config)
    if "--json" in arguments:
        print(json.dumps(found))
    else:
        print("\n".join(prediction_lines(found) if config.simulate.measured else simulation_lines(config, found)))
    return 0


def simulation(config: RunConfig) -> dict[str, Any]:
    """The clusters from small to large, each with our restarts and with plain ones under the same faults."""
    section, sizes = config.simulate, [config.simulate.world]
    while sizes[0] > STEP:
        sizes.insert(0, sizes[0] // STEP)
    rows = [row(config, size) for size in sizes]
    return {"hours": section.hours, "mtbf_hours": section.mtbf_hours, "runs": section.runs, "clusters": rows}


def row(config: RunConfig, devices: int) -> dict[str, Any]:
    """One cluster: the sums over all simulated runs."""
    section, per_node = config.simulate, config.plan.per_node
    nodes = -(-devices // per_node)
    mtbf = section.mtbf_hours * section.world / devices
    cluster, job = Cluster(nodes, section.spare_nodes, section.hours * SECONDS), job_of(config, per_node)
    for place, stage in enumerate(config.curriculum.stages):
        if job.speed(place, nodes) is None:
            raise UserError(f"simulate: stage {stage.name} does not fit on {devices} devices; see the plan command")
    ours = our_price(config, devices)
    found: dict[str, Any] = {"devices": devices, "mtbf_hours": mtbf}
    for name, price, warned in (("ours", ours, True), ("plain", plain_price(ours), False)):
        found[name] = total(list(lives(config, job, cluster, price, mtbf, warned)), job, nodes)
    found["lost_ratio"] = found["ours"]["lost_seconds"] / found["plain"]["lost_seconds"]
    return found


def lives(
    config: RunConfig, job: Job, cluster: Cluster, price: Price, mtbf_hours: float, warned: bool
) -> Iterator[tuple[Virtual, Goodput]]:
    """The simulated runs of one policy, each with its account."""
    section = config.simulate
    for number in range(section.runs):
        weather = faults(config.seed + number, section.hours, mtbf_hours, section.node_share, section.preempted_share, section.repair_hours)
        run = Virtual(job, cluster, price, weather, warned)
        yield run, run.live()


def total(found: Sequence[tuple[Virtual, Goodput]], job: Job, nodes: int) -> dict[str, Any]:
    """The sums over runs: goodput, progress (the seconds that the steps take on all nodes / wall seconds: steps on fewer nodes are slower,
    which goodput does not see), seconds lost by cause, faults met, steps done, generations, and how many curricula were finished."""
    full = {stage.name: (job.speed(place, nodes) or (0, 0.0))[1] for place, stage in enumerate(job.stages)}
    productive = sum(account.productive for _, account in found)
    lost = {cause: sum(account.lost[cause] for _, account in found) for cause in LOSSES}
    account = Goodput(productive, lost)
    return {
        "goodput": account.ratio,
        "progress": sum(full[step["stage"]] for run, _ in found for step in run.steps) / account.wall,
        "productive_seconds": productive,
        "lost_seconds": account.wall - productive,
        "lost": lost,
        "failures": sum(event["event"] == "failure" for run, _ in found for event in run.events),
        "generations": sum(run.generations for run, _ in found),
        "steps": sum(len(run.steps) for run, _ in found),
        "finished": sum(run.committed.stage == len(run.job.stages) for run, _ in found),
    }


def job_of(config: RunConfig, per_node: int) -> Job:
    """What is trained, as fast as the planner says."""
    planner, model = planner_of(config), planned_model(config)

    @cache
    def speed(stage: int, nodes: int) -> tuple[int, float] | None:
        work = workload(config, model, config.curriculum.stages[stage])
        plan = min(planner.on(nodes * per_node).candidates(work), key=simplicity, default=None) if nodes else None
        return (plan.used, plan.cost.seconds) if plan else None

    return Job(config.curriculum.stages, config.train.commit_every, speed)


def simulation_lines(config: RunConfig, found: dict[str, Any]) -> Iterator[str]:
    """The answer in words."""
    section, plan = config.simulate, config.plan
    yield (
        f"{config.model.size} by recipe {config.recipe} on {plan.device}, {plan.per_node} to a node, {section.spare_nodes} spare; at most "
        f"{section.hours:g} h; sums of {section.runs} runs, seed {config.seed}"
    )
    yield (
        f"faults: {section.mtbf_hours:g} h apart on {section.world:,} devices, fewer on fewer; {section.node_share:.0%} take a node for "
        f"{section.repair_hours:g} h on average, {section.preempted_share:.0%} more with notice; no stage ends before its max_steps"
    )
    yield (
        f"a step: the planner, at plan.efficiency {plan.efficiency:g} of the peak; a commit: every train.commit_every = "
        f"{config.train.commit_every} steps"
    )
    yield from told(section)
    yield (
        f"  plain: {PLAIN_PROCESS:g} s from a killed worker and {PLAIN_NODE:g} s from a lost node to the new group (Ray Train 2.60), then "
        "building and loading as ours; told as detect"
    )
    yield ""
    causes = [cause for cause in LOSSES if any(row[policy]["lost"][cause] >= 0.5 for row in found["clusters"] for policy in POLICIES)]
    table = [("devices", "restarts", "goodput", "progress", "faults", "steps", "lost", *causes)]
    for row in found["clusters"]:
        for policy in POLICIES:
            one = row[policy]
            parts = [f"{one['lost'][cause]:,.0f}" for cause in causes]
            table.append(
                (
                    f"{row['devices']:,}",
                    policy,
                    f"{one['goodput']:.2%}",
                    f"{one['progress']:.2%}",
                    f"{one['failures']}",
                    f"{one['steps']:,}",
                    f"{one['lost_seconds']:,.0f} s",
                    *parts,
                )
            )
    yield from aligned(table)
    yield ""
    for row in found["clusters"]:
        yield f"{row['devices']:,} devices: time lost with our restarts / with plain ones = {row['lost_ratio']:.2f}"


def aligned(table: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        yield "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))


def prediction(run: Path) -> dict[str, Any]:
    """What the simulator says of a run that was, from the run's own constants and fault times, beside what it was."""
    found = measured(read_events(check_run(run)), read_metrics(run))
    said = predicted(configs.saved(run), found)
    return {
        "run": str(run),
        "faults": len(found.faults),
        "constants": asdict(found.price) | {"step_seconds": found.step_seconds},
        "measured": asdict(found.account) | {"ratio": found.account.ratio},
        "predicted": asdict(said) | {"ratio": said.ratio},
        "error": said.ratio / found.account.ratio - 1.0,
    }


def prediction_lines(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['run']}: {found['faults']} faults; constants measured in its own records:"
    for name, value in found["constants"].items():
        shown = ", ".join(f"{stage} {seconds:.3g}" for stage, seconds in value.items()) if isinstance(value, dict) else f"{value:.3g}"
        yield f"  {name} {shown}"
    for kind in ("measured", "predicted"):
        account = found[kind]
        lost = ", ".join(f"{cause} {seconds:.1f}" for cause, seconds in account["lost"].items() if seconds >= 0.05)
        yield f"{kind:9} goodput {account['ratio']:.2%}: {account['productive']:.1f} s productive; lost {lost}"
    yield f"error {found['error']:+.1%}"
