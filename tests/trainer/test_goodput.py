"""Where a run's time went: told exactly where the events tell it, never more nor less than the wall time, whatever they tell."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.goodput import goodput
from trainer.metrics import LOSSES

Record = dict[str, Any]
TRAINER = "trainer.process:run"
KINDS = [
    *("start", "generation", "milestone", "layout", "preflight", "failure", "wait", "samples", "promotion", "roll_back", "resize"),
    *("finish", "fork", "rollback", "commit", "evaluation"),
]
seconds = st.floats(0, 1e6)
events = st.fixed_dictionaries(
    {
        "event": st.sampled_from(KINDS),
        "time": seconds,
        "step": st.integers(0, 20),
        "seconds": seconds,
        "what": st.sampled_from(["seats", "data"]),
    },
    optional={
        "at": seconds,
        "name": st.sampled_from(["forked", "grouped", "built", "loaded", "stepped"]),
        "happened": seconds,
        "recomputed": st.integers(0, 9),
        "recomputed_seconds": seconds,
        "target": st.sampled_from([TRAINER, "trainer.inspection.showcase:run"]),
    },
)
parts = st.floats(0, 1e3)
steps = st.builds(lambda number, step, data, commit: step_line(number, step, data, commit), st.integers(1, 30), parts, parts, parts)


def step_line(number: int, step: float, data: float = 0.0, commit: float = 0.0) -> Record:
    return {"step": number, "step_seconds": step, "data_seconds": data, "checkpoint_seconds": commit}


def at(time: float, kind: str, **fields: Any) -> Record:
    return {"time": time, "event": kind, **fields}


@given(st.lists(events, max_size=30), st.lists(steps, max_size=30), st.none() | seconds)
def test_the_parts_are_never_negative_and_sum_to_the_wall_time(happened: list[Record], metrics: list[Record], until: float | None) -> None:
    account = goodput(happened, metrics, until)
    assert set(account.lost) == set(LOSSES)
    assert min(account.productive, *account.lost.values()) >= 0.0
    times = [event.get("at", event["time"]) for event in happened] + [until or 0.0]
    assert account.wall <= max(times) * (1 + 1e-9)
    assert 0.0 <= account.ratio <= 1.0


@given(st.floats(1, 1e5), st.lists(events.filter(lambda event: event["event"] not in ("start", "finish", "rollback")), max_size=20))
def test_a_run_of_one_session_accounts_for_every_second_of_it(length: float, told: list[Record]) -> None:
    inside = [{**event, "time": min(event["time"], length), "at": min(event["time"], length)} for event in told]
    happened = [at(0, "start"), *sorted(inside, key=lambda event: event["time"]), at(length, "finish")]
    assert goodput(happened, [step_line(1, 1.0)]).wall == pytest.approx(length)


STORY = [
    at(100.0, "start"),
    at(102.0, "wait", what="data", seconds=1.5),
    at(103.0, "generation", target=TRAINER, world=2),
    at(103.5, "milestone", name="grouped"),
    at(104.0, "milestone", name="built"),
    at(104.2, "milestone", name="loaded"),
    at(104.3, "layout", step=0, recomputed=0, recomputed_seconds=0.0),
    at(114.2, "failure", happened=113.2),
    at(114.7, "generation", target=TRAINER, world=1),
    at(115.7, "milestone", name="built"),
    at(116.0, "milestone", name="loaded", at=115.9),
    at(116.0, "layout", step=4, recomputed=4, recomputed_seconds=3.0),
    at(122.0, "promotion"),
    at(122.5, "generation", target="trainer.inspection.showcase:run", world=1),
    at(124.5, "finish"),
]


def test_every_second_of_a_run_with_a_failure_is_named() -> None:
    account = goodput(STORY, [step_line(number, 1.0, 0.1) for number in range(1, 10)])
    assert account.productive == pytest.approx(9.0)
    expected = {"detect": 1.0, "start": 1.5 + 1.0 + 1.0, "load": 0.4, "data": 1.5 + 0.9, "recompute": 3.0 + 0.55, "replan": 1.0}
    assert {cause: account.lost[cause] for cause in expected} == pytest.approx(expected)
    assert account.lost["other"] == pytest.approx(24.5 - 9.0 - sum(expected.values()))


def test_a_run_whose_events_lack_the_new_fields_has_an_account_too() -> None:
    happened = [
        at(100, "start"),
        at(101, "layout", step=0, seconds={"group": 0.5, "build": 0.5}, recomputed=0),
        at(108, "failure"),
        at(9000, "start"),  # hours later: the time between two sessions is nobody's
        at(9001, "layout", step=0, seconds={"group": 0.5}, recomputed=2),
        at(9010, "samples", step=10, seconds=2.0),
    ]
    account = goodput(happened, [step_line(number, 0.5, 0.1) for number in range(1, 11)])
    assert account.wall == pytest.approx(18.0)
    assert (account.lost["start"], account.lost["recompute"]) == pytest.approx((2.0, 1.2))
    assert (account.productive, account.lost["other"]) == pytest.approx((5.0, 8.8))


def test_a_run_in_progress_is_accounted_for_until_now() -> None:
    happened = [at(0, "start"), at(2, "layout", step=0)]
    assert goodput(happened, [step_line(1, 3.0)], until=6.0).ratio == pytest.approx(0.5)
    assert goodput(happened, []).wall == 2.0
    assert goodput([], []).ratio == 0.0


def test_a_fork_does_not_count_the_steps_it_was_given() -> None:
    happened = [at(0, "fork", step=2), at(10, "start"), at(12, "layout", step=2), at(20, "promotion")]
    assert goodput(happened, [step_line(number, 1.0) for number in (1, 2, 3, 4)]).productive == 2.0


def test_the_time_until_a_killed_controller_is_replaced_is_lost() -> None:
    happened = [
        at(0, "start"),
        at(1, "layout", step=0),
        at(9, "start", happened=6.0),
        at(10, "layout", step=5, recomputed=0),
        at(14, "promotion"),
    ]
    account = goodput(happened, [step_line(number, 1.0) for number in range(1, 10)])
    assert (account.wall, account.productive) == (14.0, 9.0)
    assert (account.lost["detect"], account.lost["start"]) == (3.0, 2.0)
