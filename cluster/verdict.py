"""Whether a run that met faults is the run that met none: losses, steps, every sample's visits. Pure; `chaos` and fault tests ask."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from data_pipeline.loader import Dataset
from trainer.config import RunConfig
from trainer.mixture import ingredients

Record = Mapping[str, Any]
TOLERANCE = 1e-5  # relative, of a step's loss


@dataclass(frozen=True)
class Comparison:
    """Of the run that met faults with the one that met none."""

    steps: int
    steps_equal: bool  # the same steps, each once and in order
    largest_difference: float  # relative, of a step's loss; infinite where one has none
    first_difference: int | None  # the first step whose loss differs by more than TOLERANCE
    visits_equal: bool  # every sample was visited as often
    exactly_once: bool  # per bucket and epoch

    @property
    def equal(self) -> bool:
        return self.steps_equal and self.first_difference is None and self.visits_equal and self.exactly_once

    def told(self) -> dict[str, Any]:
        return asdict(self) | {"equal": self.equal}


def compare(metrics: Sequence[Record], unbroken: Sequence[Record], config: RunConfig, dataset: Dataset) -> Comparison:
    """metrics, unbroken: the lines of both runs' metrics.jsonl; config: the recipe of both; dataset: what they trained on."""
    differences = {left["step"]: difference(left["loss"], right["loss"]) for left, right in zip(metrics, unbroken, strict=False)}
    seen, expected = (visits(lines, config, dataset) for lines in (metrics, unbroken))
    steps = [line["step"] for line in metrics]
    return Comparison(
        steps=len(metrics),
        steps_equal=steps == [line["step"] for line in unbroken] == list(range(1, len(steps) + 1)),
        largest_difference=max(differences.values(), default=0.0),
        first_difference=next((step for step, found in differences.items() if found > TOLERANCE), None),
        visits_equal=seen == expected,
        exactly_once=all(max(counts.values()) - min(counts.values()) <= 1 for counts in seen.values()),
    )


def difference(left: float | None, right: float | None) -> float:
    """Relative; two losses that are both not finite are equal."""
    if left is None or right is None:
        return 0.0 if left is right else math.inf
    return abs(left - right) / max(abs(left), abs(right), 1e-30)


def visits(metrics: Sequence[Record], config: RunConfig, dataset: Dataset) -> dict[str, Counter[str]]:
    """{bucket: {sample: visits}} of the steps that stand, samples never visited included, on a data set that was whole before the first.
    Raises ValueError when a step's own count of consumed samples is not the sum of the steps up to it."""
    stages = {stage.name: stage for stage in config.curriculum.stages}
    steps: Counter[str] = Counter()
    positions: Counter[str] = Counter()
    for line in metrics:
        parts = ingredients(stages[line["stage"]].at(steps[line["stage"]]), dataset.manifest.spec.stride)
        steps[line["stage"]] += 1
        positions.update({part.bucket: part.samples for part in parts})
        if positions[parts[0].bucket] != line["samples_consumed"]:
            told = f"step {line['step']} has consumed {line['samples_consumed']} samples of {parts[0].bucket}"
            raise ValueError(f"{told}, not {positions[parts[0].bucket]}")
    found = {}
    for bucket, count in positions.items():
        data = dataset.split(bucket, "train", config.seed)
        epochs, rest = divmod(count, len(data))
        counts = Counter({data.sample_key(position): epochs for position in range(len(data))})
        counts.update(data.sample_key(epochs * len(data) + position) for position in range(rest))
        found[bucket] = counts
    return found
