"""How a follower ends whose controller is gone: what the run's folder says counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from ray.exceptions import ActorDiedError

from cluster import attach
from cluster.controller import End
from cluster.progress import Terminal
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


def test_a_controller_lives_with_the_head_and_nowhere_else() -> None:
    def node(name: str, alive: bool = True, **resources: float) -> dict[str, Any]:
        return {"NodeID": name, "Alive": alive, "Resources": resources}

    worker, head, former = (character * 56 for character in "abc")  # as long as Ray's are
    home = attach.home([node(worker, CPU=1.0), node(head, **{attach.HEAD: 1.0}), node(former, alive=False, **{attach.HEAD: 1.0})])
    assert (home.node_id, home.soft) == (head, False)
