"""`study`: a recipe with every combination of some keys' values, run by run, then the law of held-out loss over compute.

Each run is a `train` of its own in a process of its own, as a user would start it: stopped, the same command goes on with it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from data_pipeline import storage
from data_pipeline.errors import UserError
from trainer import config as configs
from trainer import weights
from trainer.commands.options import Options
from trainer.config import RunConfig
from trainer.events import read_events
from trainer.planning.memory import parameters
from trainer.recipe_changes import changes, check_continues
from trainer.sizing import planned_model
from trainer.status import state_of
from trainer.study.axes import Axis, Point, parse_axes, points
from trainer.study.compute import outcome
from trainer.study.law import fit, frontier
from trainer.study.page import page, text

MAIN = Path(__file__).parents[1] / "main.py"
EXAMPLE = (
    "  python trainer/main.py study recipe=toy --axis width=96,128,192 --axis supervision=one_frame,all_frames\n"
    "  python trainer/main.py study recipe=toy run.name=rates --axis train.lr=1e-3,2e-3\n"
    "(the runs are in runs/toy-study/, with study.json and study.html; the same command again goes on, finished runs are not repeated)"
)


@dataclass(frozen=True)
class Member:
    """One run of the study: its place among the axes, the arguments of its `train`, and what they mean."""

    point: Point
    arguments: list[str]
    config: RunConfig

    @property
    def finished(self) -> bool:
        folder = self.config.run_folder
        return folder.is_dir() and state_of(folder, read_events(folder), time.time()) == "finished"


def command(arguments: list[str], environment: dict[str, str]) -> int:
    """Run what has not finished yet, one after the other; 1 when a run has failed."""
    options = Options("study", "Run a recipe with every combination of some keys' values and fit loss against compute.", EXAMPLE)
    options.add_argument(
        "--axis", action="append", required=True, metavar="KEY=V,V", help="a key, or its last part where that is enough, and its values"
    )
    options.add_argument("key=value", nargs="*", help="keys of the recipe that are the same in all runs; run.name=... is the study's")
    own, overrides = divided(arguments)
    given = options.read(own)
    axes, overrides = parse_axes(given.axis), [*overrides, *getattr(given, "key=value")]
    study, folder = study_of(axes, overrides)
    members = [member(point, overrides, study, folder) for point in points(axes)]
    for each in members:
        check(each)
    states: dict[str, str] = {}
    for number, each in enumerate(members, 1):
        states[each.point.name] = state = "finished" if each.finished else trained(each, f"{number} of {len(members)}", environment)
        if state != "finished":
            print(f"run {each.point.name} {state}; the study goes on without it", file=sys.stderr, flush=True)
        told = record(study, axes, [one for one in members if one.point.name in states], states)
        storage.write_json(folder / "study.json", told)
        storage.write_bytes(folder / "study.html", page(told).encode())
    print(f"{text(told)}\nnumbers {folder / 'study.json'}\npage    {folder / 'study.html'}")
    return int(any(state != "finished" for state in states.values()))


def divided(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the options and what follows --axis, the overrides of the recipe)."""
    own: list[str] = []
    overrides: list[str] = []
    for before, argument in pairwise(["", *arguments]):
        is_own = before == "--axis" or argument.startswith(("-", "axis=")) or "=" not in argument
        (own if is_own else overrides).append(argument)
    return own, overrides


def study_of(axes: Sequence[Axis], overrides: Sequence[str]) -> tuple[RunConfig, Path]:
    """(the recipe that all runs share, the study's folder). Raises UserError."""
    config = configs.load(list(overrides))
    given = dict(map(configs.split_override, overrides))
    if doubled := next((axis.key for axis in axes if axis.key in given), None):
        raise UserError(f"--axis {doubled}: {doubled}={given[doubled]} is given as well; leave one of them out")
    if "run.name" not in given:
        config = config.model_copy(update={"run": config.run.model_copy(update={"name": f"{config.run.name}-study"})})
    if (config.run_folder / "config.yaml").exists():
        raise UserError(f"{config.run_folder} is a run's folder: choose another run.name for the study")
    return config, config.run_folder


def member(point: Point, overrides: Sequence[str], study: RunConfig, folder: Path) -> Member:
    """A run in the study's folder, on the data sets that all share. Raises UserError for a value that the recipe refuses."""
    shared = study.data.root or f"{study.run.root}/datasets"
    places = [f"run.root={folder}", f"run.name={point.name}", f"data.root={shared}"]
    arguments = [*overrides, *point.overrides, *places]  # of a key that stands twice the last value holds
    return Member(point, arguments, weights.resolved(configs.load(arguments)))


def check(each: Member) -> None:
    """Raises UserError when a run cannot be: no such model, or another recipe's run is in its folder."""
    planned_model(each.config)
    folder = each.config.run_folder
    if (folder / "config.yaml").is_file():
        check_continues(folder, changes(configs.saved(folder).model_dump(mode="json"), each.config.model_dump(mode="json")))


def trained(each: Member, place: str, environment: dict[str, str]) -> str:
    """The state of a run after its `train`: finished, or what has become of it."""
    print(f"run {place}: {each.point.name}", flush=True)
    with subprocess.Popen([sys.executable, str(MAIN), "train", *each.arguments], env=environment) as process:
        try:
            code = process.wait()
        except (KeyboardInterrupt, SystemExit) as stop:
            if isinstance(stop, SystemExit):  # a signal to this process alone; a terminal's Ctrl-C has reached the run as well
                process.terminate()
            process.wait()
            raise
    if code == 0 and each.finished:
        return "finished"
    return f"failed: its train ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}"


def record(study: RunConfig, axes: Sequence[Axis], members: Sequence[Member], states: dict[str, str]) -> dict[str, Any]:
    """study.json: the runs so far with their curves, and a law per family."""
    runs = []
    for each in members:
        run = {"run": each.point.name, "values": each.point.values, "family": each.point.family, "state": states[each.point.name]}
        reached = outcome(each.config, each.config.run_folder) if run["state"] == "finished" else {}
        runs.append(run | {"parameters": parameters(planned_model(each.config))} | reached)
    return {
        "study": study.run.name,
        "recipe": study.recipe,
        "axes": {axis.key: list(axis.values) for axis in axes},
        "runs": runs,
        "laws": [law_of(family, runs) for family in dict.fromkeys(run["family"] for run in runs)],
    }


def law_of(family: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The law of the runs that differ in scales alone, None where they have too few points."""
    best = frontier(run["curve"] for run in runs if run["family"] == family and run["state"] == "finished")
    law = fit(best)
    return {"family": family, "points": len(best), "law": asdict(law) if law else None}
