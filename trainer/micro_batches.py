"""The largest micro-batch per stage that a run has found to fit, kept in its folder: what an out-of-memory error has taught it.

Written by the trainer that ran out of memory, read by the next generation, which plans with it. Knows no torch: the controller reads it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

FILE = "micro-batches.json"


def limits(run: Path) -> dict[str, int]:
    """Largest micro-batch by stage name; stages that never ran out of memory are not in it."""
    path = run / FILE
    return json.loads(path.read_text()) if path.exists() else {}


def halve(run: Path, stage: str, micro_batch: int) -> int:
    """Note half of a micro-batch that did not fit, and return it; 0 when it was a single sample. Ranks that do so at once agree."""
    half = micro_batch // 2
    if half:
        beside = run / f"{FILE}.{os.getpid()}"
        beside.write_text(json.dumps(limits(run) | {stage: half}))
        beside.replace(run / FILE)
    return half
