"""A profiler's trace of a few steps on every rank, and how long communication took in them. The loop wraps each step in it.

A trace opens in chrome://tracing or Perfetto. Nothing is recorded, and nothing costs time, outside the steps that were asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.profiler import profile

from trainer.journal import Journal, Silence

COMMUNICATION = ("gloo:", "ncclDevKernel")  # what collectives are called: on the CPU, and on the device where they run there


class StepTrace:
    """Records `steps` of the run (from 1) on one rank, into <run>/profile/."""

    def __init__(self, steps: range, run: Path, rank: int, journal: Journal | Silence) -> None:
        self._steps, self._folder, self._rank, self._journal = steps, run / "profile", rank, journal
        self._profile: profile | None = None
        self._recorded: list[int] = []

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around one step, which is recorded if it was asked for."""
        if number in self._steps and self._profile is None:
            self._profile = profile()
            self._profile.start()
        yield
        if self._profile:
            self._recorded.append(number)
            if number == self._steps[-1]:
                self.close()

    def close(self) -> None:
        """Write what is being recorded, at the end of the steps or of the stage before."""
        if self._profile is None:
            return
        self._profile.stop()
        path = self._folder / f"steps-{self._recorded[0]}-{self._recorded[-1]}-rank-{self._rank:05d}.json.gz"
        path.parent.mkdir(exist_ok=True)
        self._profile.export_chrome_trace(str(path))
        seconds = communication_seconds(self._profile.events() or []) / len(self._recorded)
        self._journal.event("profile", steps=[self._recorded[0], self._recorded[-1]], trace=str(path), communication_seconds=seconds)
        self._profile, self._recorded = None, []


def communication_seconds(recorded: Sequence[Any]) -> float:
    """Seconds in which a collective of this rank was under way: the union of their times, since several may be at once."""
    spans = sorted((event.time_range.start, event.time_range.end) for event in recorded if event.name.startswith(COMMUNICATION))
    total, reached = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total / 1e6
