"""The meter: declared names only, and no more series than the labels allow, whatever a run does."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.meter import BY_NAME, DROPPED, Meter
from trainer.metrics import LABEL_VALUES, METRICS


def values(meter: Meter) -> dict[tuple[str, tuple[str, ...]], float]:
    return {(name, labels): value for name, labels, value in meter.series()}


def test_names_are_declared_once_and_end_in_a_base_unit() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("videomar_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.help.endswith(".")
        assert not any(unit in metric.name for unit in ("milliseconds", "minutes", "megabytes", "percent"))
        assert set(metric.labels) <= set(LABEL_VALUES)


def test_a_gauge_is_replaced_and_a_counter_counts() -> None:
    meter = Meter("run")
    meter.set("loss", 3.0, stage="a")
    meter.set("loss", 2.0, stage="b")
    meter.only("held_out_loss", 1.0, stage="a")
    meter.only("held_out_loss", 0.5, stage="b")
    meter.add("steps_total", 1)
    meter.add("steps_total", 2)
    assert values(meter) == {
        ("loss", ("a",)): 3.0,
        ("loss", ("b",)): 2.0,
        ("held_out_loss", ("b",)): 0.5,
        ("steps_total", ()): 3.0,
    }


def test_the_news_are_what_was_put_and_stands() -> None:
    meter = Meter("run")
    meter.set("run_step", 1)
    meter.set("loss", 2.0, stage="a")
    meter.set("frame_loss", 2.0, frame="0")
    meter.forget("frame_loss")
    assert meter.news() == [("loss", ("a",), 2.0), ("run_step", (), 1.0)]
    meter.set("run_step", 1)
    assert meter.news() == [("run_step", (), 1.0)]
    assert meter.news() == []


def test_what_is_not_declared_is_an_error() -> None:
    with pytest.raises(KeyError):
        Meter("run").set("made_up", 1.0)
    with pytest.raises(KeyError):
        Meter("run").set("loss", 1.0)


@given(st.lists(st.tuples(st.sampled_from(sorted(BY_NAME)), st.integers(0, 10_000)), max_size=400))
def test_series_stay_within_the_bound_whatever_the_labels_are(updates: list[tuple[str, int]]) -> None:
    meter = Meter("run")
    for name, number in updates:
        meter.add(name, 1.0, **{label: str(number) for label in BY_NAME[name].labels})
    kept = values(meter)
    for name, metric in BY_NAME.items():
        assert sum(1 for found, _ in kept if found == name) <= prod(LABEL_VALUES[label] for label in metric.labels)
    assert sum(value for (name, _), value in kept.items() if name != DROPPED) + kept.get((DROPPED, ()), 0.0) >= len(updates)


def test_all_that_an_endpoint_can_ever_hold_is_small() -> None:
    assert sum(prod(LABEL_VALUES[label] for label in metric.labels) for metric in METRICS) <= 512
