"""A rank's own speed: the forward passes of a step, timed from outside the model, and told to its seat with the step.

process.py attaches it when the run has a metrics endpoint. The loop and the model know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import nn

from trainer.journal import Journal, Silence
from trainer.metrics import StepMetrics


class Pulse:
    """Tells what `told` tells, and with every step this rank's own message: the training forwards of `model`, timed. Of all that a
    rank does they alone wait for no peer under data parallelism, so that a slow device shows on its own rank."""

    def __init__(
        self, told: Journal | Silence, model: nn.Module, device: torch.device, rank: int, report: Callable[[dict[str, Any]], None]
    ) -> None:
        self.event, self.promise = told.event, told.promise
        self._told, self._device, self._rank, self._report = told, device, rank, report
        self._begun: Any = None
        self._spans: list[tuple[Any, Any]] = []
        model.register_forward_pre_hook(self._before)
        model.register_forward_hook(self._after)

    def step(self, metrics: StepMetrics) -> None:
        self._told.step(metrics)
        self._send(metrics)

    def _send(self, metrics: StepMetrics) -> None:
        spans, self._spans = self._spans, []
        self._report(
            {
                "kind": "rank",
                "rank": self._rank,
                "rank_step_seconds": metrics.step_seconds,
                "rank_forward_seconds": sum(self._seconds(*span) for span in spans),
                "rank_data_wait_seconds": metrics.data_seconds,
                "rank_memory_bytes": metrics.memory_bytes,
            }
        )

    def _before(self, module: nn.Module, arguments: Any) -> None:
        self._begun = self._mark() if module.training else None

    def _after(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if self._begun is not None:
            self._spans.append((self._begun, self._mark()))

    def _mark(self) -> Any:
        """Now, on the device's own clock."""
        if self._device.type != "cuda":
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, begin: Any, end: Any) -> float:
        """Between two marks. The step has read its norm by now, so the device is past both and nothing waits."""
        return end - begin if self._device.type != "cuda" else begin.elapsed_time(end) / 1000.0
