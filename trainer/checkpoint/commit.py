"""Commits on disk: checkpoints/step-00000120/<generation>/..., made valid by a small marker that is written last.

A commit is chosen by the newest step, then the newest generation; one without a marker, with damaged files or of a stale writer is
passed over. A writer whose generation is no longer the newest may not write a marker.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from trainer.checkpoint.files import FileRecord, has_sizes, is_sound, remove_folder, write_durably
from trainer.curriculum import RunState
from trainer.events import read_events, standing
from trainer.metrics import last_step

MARKER = "commit.json"
FORMAT = 2  # of the marker and of the files it lists
DAMAGED = "a file is missing or not as it was written"


@dataclass(frozen=True)
class Commit:
    """A valid commit: its folder and what its marker says."""

    folder: Path
    state: RunState
    generation: int
    dataset: str  # origin of the data set that it was trained on last
    recipe: str  # hash of what the recipe's numbers depend on
    reason: str
    permanent: bool
    files: tuple[FileRecord, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.parent.name


def commit_folder(run: Path, step: int, generation: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}" / f"{generation:04d}"


def write_marker(commit: Commit, check_owner: Callable[[], None]) -> None:
    """Make a commit valid, last of all and at once; `check_owner` raises when a newer generation owns the run."""
    check_owner()
    marker = {"format": FORMAT} | {name: value for name, value in asdict(commit).items() if name != "folder"}
    write_durably(commit.folder / MARKER, json.dumps(marker, indent=1) + "\n")


def read_commit(folder: Path) -> Commit | None:
    """The commit in a generation's folder, or None when it is torn. Raises UserError when another version wrote it, OSError when the
    storage does not let us see: a commit that cannot be read for a moment is not one that is not there."""
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    if (found := marker.pop("format", 1)) != FORMAT:
        raise UserError(f"{folder / MARKER} is of format {found}, this version reads {FORMAT}: continue with the version that made it")
    files = tuple(FileRecord(**file) for file in marker.pop("files"))
    commit = Commit(folder, RunState.from_tree(marker.pop("state")), files=files, **marker)
    return commit if has_sizes(folder, files) else None


class CommitGone(Exception):
    """A commit was chosen to go on from and is not whole any more."""


def chosen_commit(folder: Path) -> Commit:
    """The commit that a generation was told to go on from. Raises CommitGone rather than let it begin anew."""
    if (commit := read_commit(folder)) is None:
        raise CommitGone(f"the commit {folder} cannot be read; it was whole when it was chosen")
    return commit


def check_ids(commit: Commit, datasets: Collection[str], recipe: str) -> None:
    """Raises UserError when a commit was made on data that is not the run's, or by another recipe, so that going on from it would mix
    the two."""
    if commit.dataset not in datasets:
        raise UserError(
            f"{commit.folder} was trained on data set {commit.dataset[:12]}, not on {' or '.join(name[:12] for name in datasets)}: "
            "the videos or the libraries that encode them have changed; choose another run.name"
        )
    if commit.recipe != recipe:
        raise UserError(f"{commit.folder} was made by recipe {commit.recipe}, not by {recipe}: choose another run.name")


def folders(run: Path) -> list[Path]:
    """The folders of all commits, valid or not, newest first. Raises OSError when the storage does not let us see."""
    steps = [step for step in entries(run / "checkpoints") if step.name.startswith("step-")]
    found = [folder for step in steps for folder in entries(step) if folder.name.isdigit()]
    return sorted(found, key=lambda folder: (folder.parent.name, folder.name), reverse=True)


def entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing in one that is not there, or not any more: another process may be tidying up."""
    try:
        with os.scandir(folder) as found:
            return [Path(entry.path) for entry in found]
    except (FileNotFoundError, NotADirectoryError):
        return []


def commits(run: Path) -> list[Commit]:
    """Every valid commit, newest first."""
    return [commit for folder in folders(run) if (commit := read_commit(folder))]


def last_commit(run: Path) -> Commit | None:
    """The newest valid commit."""
    return next(iter(commits(run)), None)


@dataclass(frozen=True)
class ResumePoint:
    """The commit that a start continues from, None for the very beginning, and what newer ones were passed over for: (folder, why)."""

    commit: Commit | None
    passed_over: tuple[tuple[str, str], ...] = ()


def resume_point(run: Path, is_sound: Callable[[Path, tuple[FileRecord, ...]], bool] = is_sound) -> ResumePoint:
    """The newest commit that is whole and not a stale writer's. `is_sound` may remember what it has read before.

    Raises UserError when none is, but commits are there that are damaged, or are told of and not there: a run that began anew would
    delete what may only be out of sight.
    """
    happened = read_events(run)
    published, starts = last_step(run), generation_starts(happened)
    passed_over = []
    for folder in folders(run):
        commit = read_commit(folder) or read_commit(folder)  # its marker may be written just now
        if commit and (fault := fault_of(commit, published, starts, is_sound)) is None:
            return ResumePoint(commit, tuple(passed_over))
        unread = DAMAGED if (folder / MARKER).exists() else "it was not finished"
        passed_over.append((f"{folder.parent.name}/{folder.name}", fault if commit else unread))
    if damaged := [name for name, fault in passed_over if fault == DAMAGED]:
        raise UserError(f"{run}: {damaged[0]} and every other commit is damaged: restore the files, or choose another run.name")
    if told := commits_told_of(happened, starts):
        raise UserError(
            f"{run}: the commit of step {max(told)} is gone, and every other one: restore checkpoints, or choose another run.name"
        )
    return ResumePoint(None, tuple(passed_over))


def fault_of(
    commit: Commit, published: int, starts: dict[int, int], is_sound: Callable[[Path, tuple[FileRecord, ...]], bool]
) -> str | None:
    """Why a commit cannot be continued from, None when it can.

    Steps are published before the commit that holds them, so a commit ahead of metrics.jsonl is a stale writer's; so is one behind whose
    step a later generation has started again.
    """
    if newer := gone_back(commit.generation, commit.state.step, starts):
        return f"generation {min(newer)} has taken the run back behind it"
    if commit.state.step > published:
        return f"metrics.jsonl ends at step {published}, before it"
    return None if is_sound(commit.folder, commit.files) else DAMAGED


def commits_told_of(happened: Sequence[dict[str, Any]], starts: dict[int, int]) -> list[int]:
    """The steps of the commits that stand by what happened, wherever their files are."""
    told = [event for event in standing(happened) if event["event"] in ("commit", "fork")]
    return [event["step"] for event in told if event["event"] == "fork" or not gone_back(event["generation"], event["step"], starts)]


def gone_back(generation: int, step: int, starts: dict[int, int]) -> list[int]:
    """The later generations that have started before a step of this one."""
    return [later for later, start in starts.items() if later > generation and start < step]


def generation_starts(happened: Sequence[dict[str, Any]]) -> dict[int, int]:
    """The step that each generation has started from."""
    return {event["generation"]: event["step"] for event in happened if event["event"] == "layout"}


def superseded(run: Path, newest: Commit, keep: int) -> list[Path]:
    """The folders of all commits but `newest` and the newest `keep` permanent ones up to it.

    What is of a later step was gone back behind, and is among them; what is of a newer generation is not ours to delete.
    """
    permanent = [commit for commit in commits(run) if commit.permanent and commit.state.step <= newest.state.step]
    kept = {newest.folder} | {commit.folder for commit in permanent[:keep]}
    return [folder for folder in folders(run) if folder not in kept and int(folder.name) <= newest.generation]


def prune(run: Path, newest: Commit, keep: int) -> None:
    """Delete what is superseded by the commit just made."""
    for folder in superseded(run, newest, keep):
        remove_folder(folder, MARKER)
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()
