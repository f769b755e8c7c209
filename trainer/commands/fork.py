"""`fork <run> --step N key=value ... run.name=new`: a new run that goes on from a commit of another with changed keys."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_pipeline.errors import UserError
from trainer import config as configs
from trainer.commands.options import Options
from trainer.config import RunConfig
from trainer.lineage import check_fork, commit_at, fork
from trainer.recipe_changes import Change, changes
from trainer.status import check_run

EXAMPLE = (
    "  python trainer/main.py fork runs/toy --step N train.lr=1e-3 run.name=slower\n  python trainer/main.py recipe=runs/slower/config.yaml"
)


def command(arguments: list[str], environment: dict[str, str]) -> int:
    """Make the new run and say how to start it."""
    options = Options(
        "fork", "A new run that goes on from a commit of another, with changed keys. The commit is shared, not moved.", EXAMPLE
    )
    options.add_argument("run", type=Path, help="the folder of the run to go on from")
    options.add_argument("--step", type=int, metavar="N", help="the commit's step (default: the newest)")
    options.add_argument("key=value", nargs="*", help="keys that change, as in train.lr=1e-3; run.name=... is the new run's")
    overrides = [argument for argument in arguments if "=" in argument and not argument.startswith(("-", "step="))]
    given = options.read([argument for argument in arguments if argument not in overrides])
    run = check_run(given.run)
    origin = configs.saved(run)
    config, changed = changed_config(run, origin, overrides)
    commit = commit_at(run, given.step)
    check_fork(commit, origin, config, changed)
    target = fork(run, commit, config, changed)
    print(f"{target} goes on from step {commit.state.step} of {run}" + (" with" if changed else ""))
    for change in changed:
        print(f"  {change}")
    if any(change.key == "seed" for change in changed) and any(commit.state.samples.values()):
        print("  another seed deals the epoch that has begun anew: some of its samples are seen twice, others not")
    print(f"start it: python trainer/main.py recipe={target / 'config.yaml'}")
    return 0


def changed_config(run: Path, origin: RunConfig, overrides: list[str]) -> tuple[RunConfig, list[Change]]:
    """(the run's recipe with other keys, what they change): beside it and on its data, unless they say otherwise. Raises UserError."""
    values = dict(map(configs.split_override, overrides))
    if "run.name" not in values:
        raise UserError("fork: give the new run a name: run.name=...")
    tree: dict[str, Any] = origin.model_dump(mode="json")
    tree["run"]["root"] = str(run.absolute().parent)
    tree["data"]["root"] = tree["data"]["root"] or str(run.absolute().parent / "datasets")
    before = copy.deepcopy(tree)
    for key, value in values.items():
        configs.place(tree, key, value)
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(configs.explain(error)) from None
    return config, changes(before, config.model_dump(mode="json"))
