"""A run in virtual time: what it would cost is what its own arithmetic says, and its account is made by the code of real runs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.simulation.virtual import Cluster, Job, Price, Virtual
from cluster.simulation.weather import Fault, faults
from trainer.curriculum import Promotion, Stage

PRICE = Price(detect=1.0, detect_node=5.0, replan=0.5, start=2.0, load=1.0, commit=0.25, durable=0.5)
STAGES = [Stage("short", 5, 32, 32, 256, Promotion(max_steps=20)), Stage("long", 9, 32, 32, 384, Promotion(max_steps=10))]


def speed(stage: int, nodes: int) -> tuple[int, float] | None:
    """Two nodes are twice as fast as one."""
    return (nodes, (1.0 + stage) * 2 / nodes) if nodes else None


def run(*broken: Fault, nodes: int = 2, spares: int = 0, seconds: float = 1e6, warned: bool = True) -> Virtual:
    return Virtual(Job(STAGES, 5, speed), Cluster(nodes, spares, seconds), PRICE, broken, warned)


def test_a_run_without_faults_loses_its_starts_and_commits_alone() -> None:
    found = run()
    account = found.live()
    assert [step["step"] for step in found.steps] == list(range(1, 31))
    assert account.productive == pytest.approx(20 * 1.0 + 10 * 2.0)
    assert (account.lost["start"], account.lost["load"], account.lost["replan"]) == pytest.approx((4.0, 1.0, 0.5))
    assert account.lost["checkpoint"] == pytest.approx(4 * 0.25)  # after 5, 10, 15 and 25; a stage's last commit ends it
    assert account.lost["other"] == pytest.approx(2 * 0.75)
    assert account.lost["detect"] == account.lost["recompute"] == 0.0


def test_a_killed_process_costs_its_detection_a_start_and_the_steps_since_the_commit() -> None:
    found = run(Fault(2.0 + 8.25 + 0.4, "process"))  # in the ninth step, and the commit after the fifth took 0.25 s
    account = found.live()
    assert [step["step"] for step in found.steps] == list(range(1, 31))
    failure = next(event for event in found.events if event["event"] == "failure")
    assert failure["time"] - failure["happened"] == pytest.approx(1.0)
    again = [event for event in found.events if event["event"] == "layout"][1]
    assert (again["step"], again["recomputed"]) == (5, 3)
    assert account.lost["detect"] == pytest.approx(1.0)
    assert account.lost["start"] == pytest.approx(3 * 2.0)
    assert account.lost["recompute"] == pytest.approx(3 * 1.0 + 0.25 + 40 / 30 / 2)


def test_a_commit_that_is_still_being_written_does_not_count() -> None:
    found = run(Fault(2.0 + 5.0 + 0.3, "process"))
    found.live()
    assert [event["step"] for event in found.events if event["event"] == "layout"] == [0, 0, 20]


def test_a_lost_node_makes_the_run_smaller_until_it_is_back_and_the_policy_moves_it() -> None:
    found = run(Fault(5.0, "node", place=0.1, repair=14.0))
    found.live()
    worlds = [event["world"] for event in found.events if event["event"] == "generation"]
    assert worlds[:3] == [2, 1, 2]
    assert [event["decision"] for event in found.events if event["event"] == "replan"][:1] in (["now"], ["commit"])
    assert len(found.steps) == 30


def test_a_spare_node_takes_the_place_of_a_lost_one_and_its_own_loss_is_no_fault() -> None:
    found = run(Fault(5.0, "node", place=0.1, repair=1e6), spares=1)
    found.live()
    assert {event["world"] for event in found.events if event["event"] == "generation"} == {2}
    idle = run(Fault(5.0, "node", place=0.9, repair=1e6), spares=1)
    idle.live()
    assert not [event for event in idle.events if event["event"] == "failure"]


def test_with_notice_nothing_is_recomputed() -> None:
    fault = Fault(10.5, "preempted", place=0.1, repair=1e6)
    assert run(fault).live().lost["recompute"] == 0.0
    assert run(fault, warned=False).live().lost["recompute"] > 0.0


def test_a_run_without_nodes_waits_for_one() -> None:
    found = run(Fault(3.5, "node", place=0.1, repair=50.0), nodes=1)
    account = found.live()
    assert account.lost["replan"] == pytest.approx(0.5 * 2 + 50.0 - 5.0 - 0.5)
    assert len(found.steps) == 30


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0.002, 0.05), st.integers(1, 4), st.integers(0, 2), st.floats(10.0, 400.0))
def test_whatever_happens_every_second_is_accounted_for_and_every_step_made_once(
    seed: int, mtbf_hours: float, nodes: int, spares: int, seconds: float
) -> None:
    weather = faults(seed, seconds / 3600, mtbf_hours, 0.5, 0.3, 0.01)
    found = run(*weather, nodes=nodes, spares=spares, seconds=seconds)
    account = found.live()
    assert account.wall == pytest.approx(min(found.now, seconds))
    assert [step["step"] for step in found.steps] == list(range(1, len(found.steps) + 1))


def test_weather_is_seeded_and_has_the_rate_it_is_given() -> None:
    assert faults(1, 100, 2, 0.5, 0.1, 1) == faults(1, 100, 2, 0.5, 0.1, 1) != faults(2, 100, 2, 0.5, 0.1, 1)
    many = faults(0, 20_000, 2, 0.5, 0.1, 1)
    assert len(many) == pytest.approx(10_000, rel=0.05)
    assert sum(fault.kind == "node" for fault in many) == pytest.approx(5000, rel=0.05)
