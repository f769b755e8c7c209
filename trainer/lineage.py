"""A run's commits as places to go on from: a fork starts another run at one, a rollback takes the run itself back to one.

Called by the commands of these names. Nothing that a run has made is deleted or changed here; what is set aside can be moved back.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from data_pipeline.errors import UserError
from trainer import config as configs
from trainer import events, lease
from trainer.checkpoint.commit import Commit, commit_folder, commits, fault_of, generation_starts, write_marker
from trainer.checkpoint.files import has_sizes, is_sound, write_durably
from trainer.config import RunConfig
from trainer.curriculum import Stage
from trainer.journal import check_holds
from trainer.metrics import cut_back, last_step, metrics_path
from trainer.recipe_changes import Change, covered

# Keys that say which tensors a commit holds, or which samples its positions count: with another value it cannot be gone on from.
TENSORS = ("model", "train.head", "train.conditions", "train.lora", "train.freeze", "train.init")
SAMPLES = ("data",)
INHERITED = ("evaluation", "promotion", "skip")  # events of steps that a fork has behind it


def commit_at(run: Path, step: int | None) -> Commit:
    """The run's sound commit of a step, or its newest one. Raises UserError naming the steps there are."""
    published, starts = last_step(run), generation_starts(events.read_events(run))
    found = [commit for commit in commits(run) if fault_of(commit, published, starts, lambda folder, files: True) is None]
    if not found:
        raise UserError(f"{run} has no commit yet: train first")
    wanted = [commit for commit in found if step is None or commit.state.step == step]
    if not wanted:
        steps = ", ".join(str(number) for number in sorted({commit.state.step for commit in found}))
        raise UserError(f"--step {step}: {run} has no commit of this step; it has those of steps {steps}")
    if not is_sound(wanted[0].folder, wanted[0].files):
        raise UserError(f"{wanted[0].folder} is damaged, a file does not have its checksum: choose another --step")
    return wanted[0]


def check_fork(commit: Commit, origin: RunConfig, config: RunConfig, changed: Sequence[Change]) -> None:
    """Raises UserError when the commit is no place to go on from with the changed keys, or the new run's folder is not free."""
    if config.run_folder.exists() and any(config.run_folder.iterdir()):
        raise UserError(f"{config.run_folder} is there already: choose another run.name")
    fixed = [change for change in changed if not change.free]
    for keys, why in ((TENSORS, "the commit holds other tensors"), (SAMPLES, "the commit's positions are in the run's data set")):
        if refused := [change for change in fixed if covered(change.key, keys)]:
            raise UserError(f"fork: {', '.join(map(str, refused))}: {why}; start a new run, with train.init.from= the exported model")
    if new := sorted(shapes(config.curriculum.stages) ^ shapes(origin.curriculum.stages)):
        raise UserError(
            f"fork: the stages' buckets change ({'x'.join(map(str, new[0]))}), and with them the data set; start a new run, with "
            "train.init.from= the exported model"
        )
    if commit.state.stage >= len(config.curriculum.stages):
        raise UserError(f"fork: {commit.name} is behind the last stage, nothing is left to train: choose an earlier --step")


def shapes(stages: Sequence[Stage]) -> set[tuple[int, int, int]]:
    """Every bucket of a curriculum."""
    return {(part.frames, part.height, part.width) for stage in stages for part in (stage, *stage.mix)}


def fork(run: Path, commit: Commit, config: RunConfig, changed: Sequence[Change]) -> Path:
    """Make the run that `config` describes, standing at the commit; its config.yaml is written last. Returns its folder."""
    target, step = config.run_folder.absolute(), commit.state.step
    number = lease.draw(target)
    folder = commit_folder(target, step, number)
    folder.mkdir(parents=True)
    for file in commit.files:
        link(commit.folder / file.name, folder / file.name)
    if not has_sizes(folder, commit.files):
        raise UserError(f"{commit.folder} was pruned meanwhile: delete {target} and choose another --step")
    metrics_path(target).write_text("".join(line + "\n" for line in steps_of(run, after=0, until=step)))
    happened = events.read_events(run)
    behind = [event for event in events.standing(happened) if event["event"] in INHERITED and event["step"] <= step]
    (target / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in behind))
    data = next((event["data_folder"] for event in reversed(happened) if "data_folder" in event), None)
    keys = {change.key: [change.old, change.new] for change in changed}
    where = {"data_folder": data} if data else {}
    events.record(target, "fork", durably=True, origin=str(run.absolute()), step=step, changed=keys, **where)
    write_marker(replace(commit, folder=folder, generation=number, recipe=configs.recipe_hash(config), permanent=True), lambda: None)
    write_durably(target / "config.yaml", configs.dump(config))
    return target


def link(source: Path, target: Path) -> None:
    """The same file under a second name, or a copy where the disk does not allow that; files of a commit are never written again."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def steps_of(run: Path, after: int, until: float) -> list[str]:
    """The lines of metrics.jsonl of the steps after + 1 ... until, as they stand."""
    path = metrics_path(run)
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [line for line in lines if after < json.loads(line)["step"] <= until]


def roll_back(run: Path, commit: Commit) -> Path:
    """Take the run back to the commit: later ones and their steps go to a folder of their own, which is returned. Fences off whoever
    may still write elsewhere."""
    step, number = commit.state.step, lease.draw(run)
    aside = run / "set-aside" / f"{number:04d}"
    aside.mkdir(parents=True)
    (aside / "metrics.jsonl").write_text("".join(line + "\n" for line in steps_of(run, step, float("inf"))))
    for folder in sorted((run / "checkpoints").glob("step-*"), reverse=True):
        if int(folder.name.removeprefix("step-")) > step:
            folder.rename(aside / folder.name)
    count, seconds = cut_back(run, step, partial(check_holds, run, number))
    events.record(
        run,
        "rollback",
        durably=True,
        step=step,
        generation=number,
        recomputed=count,
        recomputed_seconds=seconds,
        set_aside=str(aside.relative_to(run)),
    )
    return aside
