"""SIGKILL at any file operation of a save: the commit before or the new one is chosen whole, and the next save succeeds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[3]
EVERY = {"open", "write", "fsync", "replace", "mkdir", "unlink", "rmdir"}


def sweep(folder: Path) -> list[list[Any]]:
    """[operation, step chosen, faults] of a kill before every file operation of a save, one after the other."""
    command = [sys.executable, "-m", "tests.trainer.checkpoint.kill", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout.splitlines()[-1])
    assert [kill for kill in kills if kill[2]] == []
    operations, steps = [kill[0] for kill in kills], [kill[1] for kill in kills]
    assert operations.count("write") > 8, "files must be cut in the middle too"
    assert (steps[0], steps[-1], set(steps)) == (10, 20, {10, 20})
    return kills


def test_a_kill_at_any_file_operation_of_a_save_leaves_a_whole_commit(tmp_path: Path) -> None:
    met: set[str] = set()
    for number in range(5):  # which of the single operations a sweep meets depends on how the two writing threads take turns
        met |= {kill[0] for kill in sweep(tmp_path / str(number))}
        if met >= EVERY:
            break
    assert met >= EVERY
