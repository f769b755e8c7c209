"""events.jsonl: what happened to a run and when (stages, generations, failures, commits, decisions).

Any process of the run may append.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OF_A_STEP = ("evaluation", "promotion", "mixture", "commit", "skip")


def record(run: Path, kind: str, durably: bool = False, **fields: Any) -> None:
    """Append one event with the time (seconds since the epoch); one write, so that lines of several processes never mix.
    `durably`: on the disk when it returns."""
    line = json.dumps({"time": round(time.time(), 3), "event": kind, **fields}) + "\n"
    file = os.open(run / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        if os.write(file, line.encode()) < len(line):  # ASCII
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run / "events.jsonl"))
        if durably:
            os.fsync(file)
    finally:
        os.close(file)


def standing(happened: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events without those of steps that a later restart went back behind: what is true of the run as it stands."""
    kept: list[dict[str, Any]] = []
    for event in happened:
        if event["event"] in ("layout", "rollback"):
            kept = [old for old in kept if old["event"] not in OF_A_STEP or old["step"] <= event["step"]]
        kept.append(event)
    return kept


def read_events(run: Path) -> list[dict[str, Any]]:
    """All events so far, in order; a line that a kill has torn is left out."""
    path, found = run / "events.jsonl", []
    for line in path.read_text().split("\n")[:-1] if path.exists() else []:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found
