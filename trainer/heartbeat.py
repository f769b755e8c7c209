"""A rank's signs of life: which section it is in, told to its seat, and the milestones of a generation's start, told to the run.

process.py makes one; it and the loop tell it. Whoever watches decides what silence means; nothing here waits or measures.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer import events

MILESTONES = ("forked", "grouped", "built", "loaded", "stepped")


class Heartbeat:
    """Of one rank in one generation."""

    def __init__(self, report: Callable[[dict[str, Any]], None], run: Path, generation: int, rank: int) -> None:
        self._report, self._run, self._generation, self._rank = report, run, generation, rank

    def enter(self, section: str) -> None:
        """What this rank does from now on: group, build, load, preflight, step, evaluate, commit, save or sample."""
        self._report({"kind": "beat", "section": section})

    def passed(self, milestone: str) -> None:
        """One of MILESTONES; rank 0's are the generation's."""
        if self._rank == 0:
            events.record(self._run, "milestone", generation=self._generation, name=milestone, at=time.time())
