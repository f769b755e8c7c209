"""`plan`: the layout of every stage of a recipe on a cluster that need not be there. Imports no torch, so it answers at once."""

from __future__ import annotations

import re
from dataclasses import replace

from data_pipeline.errors import UserError
from trainer import config as configs
from trainer.config import RECIPES, RunConfig
from trainer.planning.cost import DEVICES, Cluster
from trainer.planning.memory import Numerics
from trainer.planning.search import Plan, Planner, largest_useful
from trainer.planning.table import reasons, table
from trainer.planning.workload import workload
from trainer.sizing import planned_model

UNITS = {"": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}

HELP = """usage: python trainer/main.py plan [key=value ...]

The layout, memory, step time and communication of every stage on a cluster that need not be there, and the largest one that is of use.

examples:
  python trainer/main.py plan model.size=videomar-1.4b plan.world=64 plan.memory=80GB plan.per_node=8
  python trainer/main.py plan recipe=videomar-256 plan.world=8

Keys are those of the recipe: see README.md, Recipes and keys."""


def command(arguments: list[str], environment: dict[str, str]) -> int:
    """Print the plan of a recipe; without `recipe=` that of the model's size, where one is shipped."""
    config = configs.load(with_recipe(arguments))
    print(report(config))
    return 0


def report(config: RunConfig) -> str:
    """The whole answer. Raises UserError with the constraint that binds when a stage cannot run."""
    planner, model = planner_of(config), planned_model(config)
    cluster, section = planner.cluster, config.plan
    plans = [planner.choose(workload(config, model, stage)) for stage in config.curriculum.stages]
    lines = [
        f"{config.model.size} by recipe {config.recipe} on {section.world:,} {section.device} of {cluster.memory / 1e9:.0f} GB, "
        f"{section.per_node} to a node; {section.precision} at {section.efficiency:.0%} of {cluster.device.flops / 1e12:.0f} TFLOP/s",
        "",
        table(plans, planner),
        "",
        *(line for plan in plans for line in reasons(plan, planner)),
        "",
        *(scaling(planner, plan) for plan in plans),
    ]
    return "\n".join(lines)


def scaling(planner: Planner, plan: Plan) -> str:
    """How far a stage scales, and why no further."""
    devices, bound = largest_useful(planner, plan.work)
    return f"{plan.work.stage}: largest useful world {devices:,} devices; bound by {bound}"


def with_recipe(arguments: list[str]) -> list[str]:
    """The arguments, with the shipped recipe that is named like the model when they name none."""
    values = dict(argument.partition("=")[::2] for argument in arguments)
    size = values.get("model.size", "")
    shipped = "recipe" not in values and re.fullmatch(r"[\w.-]+", size) and (RECIPES / f"{size}.yaml").is_file()
    return [f"recipe={size}", *arguments] if shipped else arguments


def planner_of(config: RunConfig) -> Planner:
    """The planner that the recipe's `plan` section describes."""
    section = config.plan
    device = DEVICES[section.device]
    memory = device.memory if section.memory is None else parse_bytes("plan.memory", section.memory)
    cluster = Cluster(section.world, section.per_node, memory, replace(device, memory=memory), section.efficiency)
    return Planner(cluster, Numerics(section.precision), config.train.micro_batch)


def parse_bytes(key: str, text: str) -> float:
    """Bytes of a size such as 80GB or 79.5 GiB. Raises UserError naming the key."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?b|)", text.strip(), re.IGNORECASE)
    if not match or not float(match[1]):
        raise UserError(f"{key}={text}: not a size in bytes; write it as 80GB or 80GiB")
    return float(match[1]) * UNITS[match[2].upper()]
