"""What the controller measures for its decisions: seconds of a step by world, of a commit, of the way from one generation to the next.
Kept by run.py from what the trainers report; replan.py decides on it."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from cluster.replan import RESTART_SECONDS, Situation
from trainer.curriculum import Stage

RECENT = 20
GRACE_SECONDS = 20.0


class Pace:
    """Medians over the last measurements, of one controller's life. now: seconds, on a clock that never goes back."""

    def __init__(self, commit_every: int, now: Callable[[], float] = time.monotonic) -> None:
        self._commit_every, self._now = commit_every, now
        self._steps: dict[tuple[str, int], deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))
        self._restarts: deque[float] = deque(maxlen=5)
        self._commits: deque[float] = deque(maxlen=RECENT)  # for which training stood still
        self._written: deque[float] = deque(maxlen=RECENT)  # until they were on the disk
        self._last_step: float | None = None  # when, in this generation or the one before
        self._fresh = True  # no step of this generation yet
        self._since_commit = 0

    def generation(self, at_once: bool) -> None:
        """Another generation starts; at_once: without having waited for seats or data."""
        self._fresh, self._since_commit = True, 0
        self._last_step = self._last_step if at_once else None

    def step(self, told: Mapping[str, Any]) -> None:
        """A step is done (a line of metrics.jsonl). A generation's first counts for its start."""
        now = self._now()
        if self._fresh and self._last_step is not None:
            self._restarts.append(now - self._last_step)
        elif not self._fresh:
            self._steps[told["stage"], told["world_size"]].append(told["step_seconds"] + told["data_seconds"])
            self._commits += [told["checkpoint_seconds"]] if told["checkpoint_seconds"] else []
        self._fresh, self._last_step = False, now
        self._since_commit += 1

    @property
    def grace_seconds(self) -> float:
        """For a group that is told to leave: the step it is in, and a commit."""
        steps = [seconds for world in self._steps.values() for seconds in world]
        return max(GRACE_SECONDS, 3 * max(steps, default=0.0) + 2 * max(self._written, default=0.0))

    def commit(self, seconds: float) -> None:
        """A commit is made; so long after it was begun."""
        self._since_commit = 0
        self._written.append(seconds)

    def situation(self, stage: Stage, stage_step: int, world: int, possible: int) -> Situation:
        """What replan.decide needs, `stage_step` steps into the stage."""
        return Situation(
            world=world,
            possible=possible,
            steps=stage.promotion.max_steps - stage_step,
            step_seconds={count: median(seconds) for (name, count), seconds in self._steps.items() if name == stage.name and seconds},
            restart_seconds=middle(self._restarts, RESTART_SECONDS),
            commit_seconds=middle(self._commits, 0.0),
            steps_to_commit=max(0, self._commit_every - self._since_commit),
        )


def middle(values: Sequence[float], default: float) -> float:
    """The median, `default` of nothing."""
    return median(values) if values else default
