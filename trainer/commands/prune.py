"""`prune <run>`: which commits a run can do without, what deleting them frees, and with --yes the deleting."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from data_pipeline.errors import UserError
from trainer import config as configs
from trainer.checkpoint.commit import prune, resume_point, superseded
from trainer.commands.options import Options
from trainer.status import check_run, is_live

EXAMPLE = "  python trainer/main.py prune runs/toy --keep 1\n  python trainer/main.py prune runs/toy --keep 1 --yes"


def command(arguments: list[str], environment: dict[str, str]) -> int:
    """List what would go, or delete it."""
    options = Options("prune", "Delete a run's old commits, unfinished ones, and what rollbacks have set aside.", EXAMPLE)
    options.add_argument("run", type=Path, help="the run's folder")
    options.add_argument("--keep", type=int, metavar="N", help="permanent commits that stay beside the newest one (train.keep_commits)")
    options.add_argument("--yes", action="store_true", help="delete; without it the command only says what it would")
    given = options.read(arguments)
    if given.keep is not None and given.keep < 0:
        options.error(f"--keep {given.keep}: give 0 or more")
    run = check_run(given.run)
    if is_live(run, time.time()):
        raise UserError(f"{run} is live, and prunes its commits itself: stop it first")
    newest = resume_point(run).commit
    if newest is None:
        raise UserError(f"{run} has no whole commit: nothing in it is superseded")
    keep = configs.saved(run).train.keep_commits if given.keep is None else given.keep
    old, aside = superseded(run, newest, keep), sorted((run / "set-aside").glob("*"))
    for folder in (*old, *aside):
        print(f"{'delete' if given.yes else 'would delete'} {folder.relative_to(run)}: {freed(folder) / 1e6:.1f} MB")
    if given.yes:
        prune(run, newest, keep)
        for folder in aside:
            shutil.rmtree(folder)
    total = sum(map(freed, () if given.yes else (*old, *aside)))
    print(f"{run} keeps {newest.name}" + ("" if given.yes or not total else f"; --yes frees {total / 1e6:.1f} MB"))
    return 0


def freed(folder: Path) -> int:
    """Bytes that go with a folder; a file that a fork shares does not."""
    found = (path.stat() for path in folder.rglob("*") if path.is_file())
    return sum(each.st_size for each in found if each.st_nlink == 1)
