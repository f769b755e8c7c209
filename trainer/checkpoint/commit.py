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
from trainer.metrics import last_step

MARKER = "commit.json"


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


def write_marker(folder: Path, commit: Commit, files: list[dict[str, Any]], check_owner: Callable[[], None]) -> None:
    """Make a commit valid, last of all and at once; `check_owner` raises when a newer generation owns the run."""
    check_owner()
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
    temporary.write_text(text)
    fsync(temporary)
    temporary.replace(path)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Wait until a file's data, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
    """The newest valid commit."""
    return next(iter(commits(run)), None)


def resume_point(run: Path) -> Commit | None:
    """The commit that a start continues from: the newest whose files have their checksums and whose steps metrics.jsonl holds.

    Steps are published before the commit that holds them, so a commit ahead of metrics.jsonl is a stale writer's.
    """
    published = last_step(run)
    return next((commit for commit in commits(run) if commit.state.step <= published and is_sound(commit)), None)


def is_sound(commit: Commit) -> bool:
    """Whether every file has the checksum its marker lists."""
    listed = json.loads((commit.folder / MARKER).read_text())["files"]
    return all(file_record(commit.folder / file["name"]) == file for file in listed)


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
