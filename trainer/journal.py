"""What rank 0 tells the world while it trains: metrics.jsonl, events.jsonl, and a message per step and event to its seat."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer import events, lease
from trainer.metrics import MetricsLog, StepMetrics, cut_back

Report = Callable[[dict[str, Any]], None]


class Fenced(Exception):
    """This process belongs to an older generation: a newer one owns the run."""


def check_holds(run: Path, generation: int) -> None:
    """Raises Fenced when a newer generation owns the run."""
    if not lease.holds(run, generation):
        raise Fenced(f"generation {generation} no longer owns {run}")


class Silence:
    """What the ranks but 0 tell: nothing."""

    def event(self, kind: str, **fields: Any) -> None: ...

    def promise(self, kind: str, **fields: Any) -> None: ...

    def step(self, metrics: StepMetrics) -> None: ...


class Journal:
    """A generation's record, from the commit it started from; `recomputed` counts the steps that it makes once more,
    `recomputed_seconds` is what they had taken. Making one raises Fenced when a newer generation owns the run."""

    def __init__(self, run: Path, generation: int, step: int, report: Report) -> None:
        self._run, self._generation, self._report = run, generation, report
        self.recomputed, self.recomputed_seconds = cut_back(run, step, self.check_owner)
        self._log = MetricsLog(run)

    def event(self, kind: str, **fields: Any) -> None:
        events.record(self._run, kind, generation=self._generation, **fields)
        self._report({"kind": "event", "event": kind, **fields})

    def step(self, metrics: StepMetrics) -> None:
        """Publish a step. Raises Fenced when a newer generation owns the run."""
        self.check_owner()
        self._log.write(metrics)
        self._report({"kind": "step", **vars(metrics)})

    def promise(self, kind: str, **fields: Any) -> None:
        """An event that later generations act on: fenced, and on the disk when it returns."""
        self.check_owner()
        events.record(self._run, kind, durably=True, generation=self._generation, **fields)
        self._report({"kind": "event", "event": kind, **fields})

    def check_owner(self) -> None:
        """Raises Fenced when a newer generation owns the run."""
        check_holds(self._run, self._generation)

    def sync(self) -> None:
        """Wait until all published steps are on the disk; a commit must not be ahead of them."""
        self._log.sync()
