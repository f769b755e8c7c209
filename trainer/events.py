"""events.jsonl: what happened to a run and when (stages, generations, failures, commits, decisions).

Any process of the run may append.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


def record(run: Path, kind: str, **fields: Any) -> None:
    """Append one event with the time (seconds since the epoch); one write, so that lines of several processes never mix."""
    line = json.dumps({"time": round(time.time(), 3), "event": kind, **fields}) + "\n"
    file = os.open(run / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def read_events(run: Path) -> list[dict[str, Any]]:
    """All events so far, in order."""
    path = run / "events.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []
