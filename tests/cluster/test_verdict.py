"""The verdict is equal only for the same losses, the same steps and the same visits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.verdict import compare, visits
from data_pipeline.loader import Dataset, open_dataset
from tests.distributed.training import recipe, stage

CONFIG = recipe([stage("a", 4), stage("b", 3, frames=5)])


def history() -> list[dict[str, Any]]:
    """Four steps on 9x32x32 and three on 5x32x32, of 39 samples each."""
    names = ["a"] * 4 + ["b"] * 3
    return [
        {"step": step, "stage": name, "loss": 1.0 / step, "samples_consumed": 39 * (step if name == "a" else step - 4)}
        for step, name in enumerate(names, 1)
    ]


@pytest.fixture
def dataset(tiny_dataset: Path) -> Dataset:
    return open_dataset(str(tiny_dataset))


def test_a_run_is_equal_to_itself(dataset: Dataset) -> None:
    found = compare(history(), history(), CONFIG, dataset)
    assert found.equal
    assert (found.steps, found.largest_difference) == (7, 0.0)


def test_every_visit_is_counted_and_epochs_visit_all_once(dataset: Dataset) -> None:
    counts = visits(history(), CONFIG, dataset)
    assert sum(counts["9x32x32"].values()) == 4 * 39
    assert len(counts["9x32x32"]) == len(dataset.split("9x32x32", "train", 0))
    assert max(counts["9x32x32"].values()) - min(counts["9x32x32"].values()) <= 1


def test_a_loss_that_differs_is_named_by_its_step(dataset: Dataset) -> None:
    other = history()
    other[4]["loss"] *= 1 + 3e-5
    found = compare(other, history(), CONFIG, dataset)
    assert (found.equal, found.first_difference) == (False, 5)
    other[4]["loss"] = None
    assert compare(other, history(), CONFIG, dataset).first_difference == 5


@pytest.mark.parametrize("mistake", [slice(0, 6), slice(1, 7)])
def test_a_missing_step_is_not_equal(dataset: Dataset, mistake: slice) -> None:
    lines = history()[mistake]
    if mistake.start:
        with pytest.raises(ValueError, match="step 2 has consumed 78 samples of 9x32x32, not 39"):
            compare(lines, history(), CONFIG, dataset)
    else:
        found = compare(lines, history(), CONFIG, dataset)
        assert not found.steps_equal
        assert not found.visits_equal
