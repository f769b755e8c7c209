"""Where a run's wall time went, and whether it learns, as the report tells it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.trainer.report_page import STEPS, Record, event
from trainer.inspection import goodput


def test_the_wall_time_is_told_part_by_part() -> None:
    def at(time: float, kind: str, **fields: Any) -> Record:
        return event(kind, **fields) | {"time": time}

    happened = [
        at(100, "start", sources={}),
        at(101, "layout", stage="first", step=0, seconds={"group": 0.5, "build": 0.5}, recomputed=0),
        at(104, "failure"),
        at(9000, "start", sources={}),  # hours later: the time between two starts is nobody's
        at(9001, "layout", stage="first", step=0, seconds={"group": 0.5}, recomputed=2),
        at(9010, "samples", step=10, seconds=2.0, folder="f"),
    ]
    assert goodput.wall_seconds(happened) == 14.0
    parts = goodput.breakdown(STEPS, happened)
    assert parts["training steps"] == pytest.approx(5.0)
    assert parts["waiting for data"] == pytest.approx(1.0)
    assert parts["steps done again"] == pytest.approx(1.2)
    assert parts["starting generations"] == pytest.approx(1.5)
    assert sum(parts.values()) == pytest.approx(14.0)
    assert [row[0] for row in goodput.rows(parts)][-1] == "everything else"


def test_the_page_says_whether_it_learns() -> None:
    evaluations = [event("evaluation", stage="second", step=step, held_out_loss=loss) for step, loss in ((6, 0.5), (8, 0.3), (10, 0.4))]
    assert (
        goodput.verdict(STEPS, evaluations) == "In stage second the held-out loss fell from 0.5000 to 0.4000 (-20.0%); its best was 0.3000."
    )
    assert "the training loss fell from 0.1667 to 0.1000" in goodput.verdict(STEPS, [])
    assert "too few steps" in goodput.verdict(STEPS[:1], [])
