"""Ctrl-C in the moments between what the user has read and what the command waits in."""

from __future__ import annotations

import io
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from ray.actor import ActorHandle

from cluster import attach, train_command
from cluster.controller import End, Order
from cluster.progress import Terminal
from cluster.session import Session
from trainer import config as configs


class Struck(Terminal):
    """Ctrl-C comes as soon as the user has read how to detach."""

    def say(self, text: str) -> None:
        super().say(text)
        if "Ctrl-C detaches" in text:
            raise KeyboardInterrupt


def test_ctrl_c_at_once_detaches(tmp_path: Path) -> None:
    out = io.StringIO()
    assert train_command.watched(MagicMock(), Struck(out), tmp_path) == End(0)
    assert "detached: the run goes on" in out.getvalue()


@pytest.mark.timeout(180)
def test_ctrl_c_while_a_controller_is_made_leaves_no_run(tmp_path: Path, ray_session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configs.load([f"run.root={tmp_path}", "cluster.workers=1"])
    start, made = attach.start, []

    def struck(order: Order) -> ActorHandle:
        made.append(start(order))
        raise KeyboardInterrupt

    monkeypatch.setattr(attach, "start", struck)
    with pytest.raises(KeyboardInterrupt):
        train_command.steered(Order(config, None, str(tmp_path), ray_session.folder), Terminal(io.StringIO()), private=False)
    assert len(made) == 1
    assert attach.find(config) is None
