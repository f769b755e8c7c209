"""Commits on disk: checkpoints/step-00000120/<generation>/..., made valid by a small marker that is written last.

A commit is chosen by the newest step, then the newest generation; a folder without a marker, or whose files do not have the sizes
the marker lists, is passed over. A writer whose generation is no longer the newest may not write a marker.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.curriculum import RunState

MARKER = "commit.json"


class Fenced(Exception):
    """This process belongs to an older generation: a newer one owns the run."""


@dataclass(frozen=True)
class Commit:
    """A valid commit: its folder and what its marker says."""

    folder: Path
    state: RunState
    generation: int
    dataset: str
    reason: str

    @property
    def name(self) -> str:
        return self.folder.parent.name


def commit_folder(run: Path, step: int, generation: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}" / f"{generation:04d}"


def file_record(path: Path) -> dict[str, Any]:
    """Name, bytes and SHA-256 of one data file, for the marker."""
    with path.open("rb") as file:
        return {"name": path.name, "bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def write_marker(folder: Path, commit: Commit, files: list[dict[str, Any]], is_current: Callable[[], bool]) -> None:
    """Make a commit valid, last of all and at once. Raises Fenced when a newer generation owns the run."""
    if not is_current():
        raise Fenced(f"generation {commit.generation} no longer owns this run: {folder} is not committed")
    marker = {
        "generation": commit.generation,
        "dataset": commit.dataset,
        "reason": commit.reason,
        "state": asdict(commit.state),
        "files": files,
    }
    write_durably(folder / MARKER, json.dumps(marker, indent=1) + "\n")


def write_durably(path: Path, text: str) -> None:
    """Write a small file whole or not at all: temporary name, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_commit(folder: Path) -> Commit | None:
    """The commit in a generation's folder, or None when it is torn."""
    try:
        marker = json.loads((folder / MARKER).read_text())
        complete = all((folder / file["name"]).stat().st_size == file["bytes"] for file in marker["files"])
    except (OSError, ValueError):
        return None
    state = marker["state"]
    state |= {"held_out": tuple(state["held_out"]), "skipped": tuple(state["skipped"])}
    return Commit(folder, RunState(**state), marker["generation"], marker["dataset"], marker["reason"]) if complete else None


def commits(run: Path) -> list[Commit]:
    """Every valid commit, newest first."""
    folders = sorted(run.glob("checkpoints/step-*/*"), key=lambda folder: (folder.parent.name, folder.name), reverse=True)
    return [commit for folder in folders if (commit := read_commit(folder))]


def last_commit(run: Path) -> Commit | None:
    """The commit that a start continues from."""
    return next(iter(commits(run)), None)


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` commits and the torn folders older than the newest one; stage ends are kept."""
    valid = commits(run)
    if not valid:
        return
    kept = {commit.folder for commit in valid[:keep]} | {commit.folder for commit in valid if commit.reason != "periodic"}
    newest = (valid[0].name, valid[0].folder.name)
    for folder in run.glob("checkpoints/step-*/*"):
        if folder not in kept and (folder.parent.name, folder.name) < newest:
            shutil.rmtree(folder)
            if not any(folder.parent.iterdir()):
                folder.parent.rmdir()
