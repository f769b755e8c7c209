"""How a follower ends whose controller is gone: what the run's folder says counts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from ray.exceptions import ActorDiedError

from cluster import attach
from cluster.controller import End
from cluster.hosts import Hosts
from cluster.progress import Terminal
from cluster.session import REPOSITORY
from trainer import events


@pytest.fixture
def gone(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A controller that is gone for good."""

    def get(call: Any) -> Any:
        raise ActorDiedError

    monkeypatch.setattr(attach.ray, "get", get)
    return MagicMock()


def test_a_run_that_has_finished_ends_with_0_though_its_controller_is_gone(gone: Any, tmp_path: Path) -> None:
    for kind in ("start", "finish"):
        events.record(tmp_path, kind)
    assert attach.follow(gone, Terminal(), tmp_path) == End(0)


@pytest.mark.parametrize("happened", [(), ("start", "failure"), ("start", "finish", "start")])
def test_a_run_that_has_not_finished_ends_with_1_and_the_reason(gone: Any, tmp_path: Path, happened: tuple[str, ...]) -> None:
    for kind in happened:
        events.record(tmp_path, kind)
    end = attach.follow(gone, Terminal(), tmp_path)
    assert end.code == 1
    assert end.error.startswith("the run's controller has ended: ")


def test_a_farewell_from_a_controller_that_is_gone_says_nothing(gone: Any) -> None:
    attach.say_farewell(gone)


PLACED = """
import sys
import ray
from cluster.attach import HOME

class Somewhere:
    def node(self):
        return ray.get_runtime_context().get_node_id()

ray.init(address=sys.argv[1], log_to_driver=False)
made = [ray.remote(Somewhere).options(num_cpus=0, resources=HOME).remote() for _ in range(6)]
(head,) = [node["NodeID"] for node in ray.nodes() if set(HOME) <= set(node["Resources"])]
assert len(ray.nodes()) == 2
assert {ray.get(actor.node.remote()) for actor in made} == {head}
"""


@pytest.mark.timeout(180)
def test_a_controller_lives_with_the_head_and_nowhere_else() -> None:
    with Hosts(1, 2, os.environ) as hosts:
        command = [sys.executable, "-c", PLACED, hosts.address]
        subprocess.run(command, check=True, timeout=120, env=hosts.environment, cwd=REPOSITORY)
