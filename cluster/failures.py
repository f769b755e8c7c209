"""What the user is shown when a generation fails: the first failing rank's traceback and every rank's stack, whole in the run folder and
shortened on the terminal. Called by the controller; pure but for the one file it writes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cluster.causes import main_thread
from cluster.generation import Outcome

TRACEBACK_LINES = 6
OURS = re.compile(r"\b(trainer|model|data_pipeline|cluster)/")
OUR_FRAMES = 2


class RunFailed(Exception):
    """The run cannot go on by itself; says why and where to look."""


def told(outcome: Outcome) -> dict[str, Any]:
    """The fields of the failure event."""
    return {
        "rank": outcome.failed_rank,
        "reason": outcome.reason,
        "cause": outcome.cause,
        "section": outcome.section,
        "happened": outcome.happened,
        "detected": outcome.detected,
    }


def write(run: Path, generation: int, outcome: Outcome) -> Path:
    """The whole account, in logs/failure-<generation>.txt."""
    parts = [f"generation {generation}: {outcome.reason} (cause: {outcome.cause}, section: {outcome.section or '-'})"]
    if outcome.traceback:
        parts.append(f"traceback of rank {outcome.failed_rank}\n{outcome.traceback}")
    parts += [f"stack of rank {rank} when it was noticed\n{stack}" for rank, stack in outcome.stacks.items()]
    path = run / "logs" / f"failure-{generation:04d}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n\n".join(part.strip() for part in parts) + "\n")
    return path


def shortened(outcome: Outcome) -> list[str]:
    """Lines for the terminal: the cause, the end of the traceback, and where every other rank was."""
    where = f" in section {outcome.section}" if outcome.section else ""
    lines = [f"failure: {outcome.reason}", f"  cause {outcome.cause}{where}"]
    lines += [f"  {line}" for line in outcome.traceback.rstrip().splitlines()[-TRACEBACK_LINES:]]
    return lines + [f"  rank {rank} was in {' < '.join(telling(main_thread(stack)))}" for rank, stack in outcome.stacks.items()]


def telling(frames: list[str]) -> list[str]:
    """The innermost frame, and the innermost ones of this program."""
    return frames[:1] + [frame for frame in frames[1:] if OURS.search(frame)][:OUR_FRAMES]
