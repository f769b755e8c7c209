"""A rank's own speed: forward passes and the reduction of gradients of a step, timed from outside the model, and told to its seat.

process.py attaches it when the run's metrics go anywhere. The loop and the model know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import nn

from data_pipeline.storage import FAULTS
from trainer.journal import Journal, Silence
from trainer.metrics import StepMetrics


class Stopwatch:
    """Adds up stretches of time on the device's own clock; nothing waits for the device before `take`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun: Any = None
        self._spans: list[tuple[Any, Any]] = []

    def start(self) -> None:
        self._begun = self._mark()

    def stop(self) -> None:
        self._spans.append((self._begun, self._mark()))

    def take(self) -> float:
        """Seconds since the last call. The device must be past all of them."""
        spans, self._spans = self._spans, []
        return sum(self._seconds(*span) for span in spans)

    def _mark(self) -> Any:
        """Now."""
        if self._device.type != "cuda":
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, begin: Any, end: Any) -> float:
        return end - begin if self._device.type != "cuda" else begin.elapsed_time(end) / 1000.0


class Pulse:
    """Tells what `told` tells, and with every step this rank's own message. forward: the training forwards of `model`; of all that a
    rank does they alone wait for no peer under data parallelism, so that a slow device shows on its own rank. reduction: whatever is
    timed by it (engine.watch_reduction), None where that cannot be."""

    def __init__(
        self,
        told: Journal | Silence,
        model: nn.Module,
        device: torch.device,
        rank: int,
        report: Callable[[dict[str, Any]], None],
        reduction: Stopwatch | None = None,
    ) -> None:
        self.event, self.promise = told.event, told.promise
        self._told, self._rank, self._report = told, rank, report
        self._forward, self._reduction = Stopwatch(device), reduction
        model.register_forward_pre_hook(self._before)
        model.register_forward_hook(self._after)

    def step(self, metrics: StepMetrics) -> None:
        self._told.step(metrics)
        self._send(metrics)
        if faults := FAULTS.take():
            self._report({"kind": "storage", "faults": faults})

    def _send(self, metrics: StepMetrics) -> None:
        """The step has read its norm by now, so the device is past all that was timed."""
        reduced = {"rank_reduction_seconds": self._reduction.take()} if self._reduction else {}
        self._report(
            {
                "kind": "rank",
                "rank": self._rank,
                "rank_step_seconds": metrics.step_seconds,
                "rank_forward_seconds": self._forward.take(),
                "rank_data_wait_seconds": metrics.data_seconds,
                "rank_memory_bytes": metrics.memory_bytes,
            }
            | reduced
        )

    def _before(self, module: nn.Module, arguments: Any) -> None:
        if module.training:
            self._forward.start()

    def _after(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if module.training:
            self._forward.stop()
