"""`rollback <run> --step N`: the run goes on from an earlier commit; what came after it is set aside."""

from __future__ import annotations

import time
from pathlib import Path

from data_pipeline.errors import UserError
from trainer.commands.options import Options
from trainer.lineage import commit_at, roll_back
from trainer.status import check_run, is_live

EXAMPLE = "  python trainer/main.py rollback runs/toy --step N\n  python trainer/main.py recipe=runs/toy/config.yaml"


def command(arguments: list[str], environment: dict[str, str]) -> int:
    """Take the run back and say how to go on."""
    options = Options("rollback", "Let a run go on from an earlier commit. Later ones are set aside, not deleted.", EXAMPLE)
    options.add_argument("run", type=Path, help="the run's folder")
    options.add_argument("--step", type=int, required=True, metavar="N", help="the commit's step")
    given = options.read(arguments)
    run = check_run(given.run)
    if is_live(run, time.time()):
        raise UserError(f"{run} is live: stop it first, then take it back")
    commit = commit_at(run, given.step)
    aside = roll_back(run, commit)
    print(f"{run} stands at step {commit.state.step} again; what came after it is in {aside}")
    print(f"go on: python trainer/main.py recipe={run / 'config.yaml'}")
    return 0
