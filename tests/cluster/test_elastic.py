"""A run whose cluster changes under it is the run whose cluster did not. On real hosts: raylets that are killed with all they started."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.gang import START_FAILURES
from cluster.hosts import Hosts, trainers
from cluster.run import TRAINER
from tests.cluster.elastic import compare, finish, happened, recipe, start, stepped
from tests.e2e.job import environment, wait_until
from trainer import lease

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with Hosts(2, 1, environment()) as found:
        yield found


def test_more_workers_than_the_cluster_holds_are_waited_for_and_then_given_up_in_one_line(hosts: Hosts, tmp_path: Path) -> None:
    process = start([*recipe(tmp_path, "large"), "cluster.workers=4", "cluster.wait_seconds=4"], hosts)
    out = process.communicate(timeout=240)[0]
    assert process.returncode == 2
    assert "cluster.min_workers=4 needs 4 x 1 CPUs, but 2 seats are there and Ray has 0 of 2 CPUs free: waiting up to 4 s for more" in out
    assert "error: cluster.min_workers=4 needs 4 x 1 CPUs" in out.splitlines()[-1]


@pytest.mark.slow
def test_a_run_that_loses_and_gains_a_node_and_loses_a_worker_and_its_controller_is_the_undisturbed_run(
    hosts: Hosts, tmp_path: Path
) -> None:
    finish(start(recipe(tmp_path, "undisturbed"), hosts))
    arguments, run = recipe(tmp_path, "disturbed"), tmp_path / "runs" / "disturbed"
    process = start([*arguments, "cluster.min_workers=1"], hosts)
    wait_until(stepped(run, "short", 15), process)
    hosts.kill(1)
    wait_until(stepped(run, "longer", 5), process)
    hosts.add(1)
    wait_until(lambda: happened(run, "resize", to=2), process)
    wait_until(stepped(run, "larger", 5), process)
    os.kill(trainers(run)[1], signal.SIGKILL)
    wait_until(stepped(run, "larger", 20), process)
    steering = lease.owner(run)
    assert steering is not None
    os.kill(steering.pid, signal.SIGKILL)
    out = finish(process)
    found = compare(arguments, run, tmp_path / "runs" / "undisturbed")
    assert found.equal, found
    assert "the controller is lost" in out
    assert [(event["from"], event["to"]) for event in happened(run, "resize")] == [(2, 1), (1, 2)]
    assert [event["state"] for event in happened(run, "node")].count("lost") == 1
    assert happened(run, "replan", to=2)
    assert {"start", "stage", "failure"} <= {event["why"] for event in happened(run, "generation")}


@pytest.mark.slow
def test_a_host_on_which_workers_die_again_and_again_is_used_no_more_and_the_run_ends_without_it(hosts: Hosts, tmp_path: Path) -> None:
    run, killed = tmp_path / "runs" / "sick", set[int]()
    process = start([*recipe(tmp_path, "sick"), "cluster.min_workers=1", "train.commit_every=1000"], hosts)

    def next_victim() -> bool:
        return bool(set(trainers(run).values()) & set(hosts.pids(1)) - killed)

    for _ in range(START_FAILURES):
        wait_until(next_victim, process)
        (victim,) = set(trainers(run).values()) & set(hosts.pids(1)) - killed
        killed.add(victim)
        os.kill(victim, signal.SIGKILL)
    out = finish(process)
    assert "is marked: 3 generations in a row have failed on it: rank" in out
    assert len(happened(run, "node", state="marked")) == 1
    assert [event["world"] for event in happened(run, "generation", target=TRAINER)] == [2] * START_FAILURES + [1] * 3
