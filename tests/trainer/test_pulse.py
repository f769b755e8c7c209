"""A rank's pulse: the training forwards and what is timed beside them, once per step, after the step is published."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data_pipeline.storage import FAULTS
from trainer.journal import Silence
from trainer.metrics import StepMetrics
from trainer.pulse import Pulse, Stopwatch


class Slow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.02)
        return x


class Told(Silence):
    """Notes that a step was told."""

    def __init__(self, order: list[Any]) -> None:
        self._order = order

    def step(self, metrics: StepMetrics) -> None:
        self._order.append("published")


@pytest.fixture(autouse=True)
def nothing_told_before() -> None:
    """Faults that other tests' storage had in this process are theirs."""
    FAULTS.take()


def metrics() -> StepMetrics:
    known: dict[str, Any] = dict.fromkeys(StepMetrics.__dataclass_fields__, 0)
    return StepMetrics(**known | {"step_seconds": 1.0, "data_seconds": 0.5, "memory_bytes": 7})


def test_forwards_of_a_step_are_added_up_and_evaluation_is_left_out() -> None:
    model, order = Slow(), list[Any]()
    told = Pulse(Told(order), model, torch.device("cpu"), 3, order.append)
    model(torch.zeros(1))
    model(torch.zeros(1))
    model.eval()(torch.zeros(1))
    told.step(metrics())
    model.train()
    told.step(metrics())
    assert order[0::2] == ["published", "published"]
    first, second = order[1], order[3]
    assert (first["kind"], first["rank"], first["rank_step_seconds"], first["rank_memory_bytes"]) == ("rank", 3, 1.0, 7)
    assert first["rank_forward_seconds"] >= 0.04
    assert second["rank_forward_seconds"] == 0


def test_the_reduction_is_told_where_it_can_be_timed() -> None:
    told: list[Any] = []
    watch = Stopwatch(torch.device("cpu"))
    pulse = Pulse(Silence(), Slow(), torch.device("cpu"), 0, told.append, watch)
    for _ in range(2):
        watch.start()
        time.sleep(0.01)
        watch.stop()
    pulse.step(metrics())
    Pulse(Silence(), Slow(), torch.device("cpu"), 0, told.append).step(metrics())
    assert told[0]["rank_reduction_seconds"] >= 0.02
    assert "rank_reduction_seconds" not in told[1]


def test_faults_of_storage_are_told_once() -> None:
    told: list[Any] = []
    pulse = Pulse(Silence(), Slow(), torch.device("cpu"), 0, told.append)
    FAULTS.add({"transient": 3})
    pulse.step(metrics())
    pulse.step(metrics())
    assert [message for message in told if message["kind"] == "storage"] == [{"kind": "storage", "faults": {"transient": 3}}]
