"""What a forked process has reported stays in its seat until it is known to have arrived."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.forked import Process

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def ended(tmp_path: Path) -> Process:
    """A process that has sent three numbers and its end."""
    payload = {"log": str(tmp_path / "log"), "count": 3, "done": str(tmp_path / "done")}
    process = Process("tests.cluster.targets:chatter", payload, None, None, silence=30.0)
    while process.messages(1.0, 0)[0] < 4:
        pass
    return process


def test_what_was_not_seen_to_arrive_is_told_again(ended: Process) -> None:
    told, messages = ended.messages(0.0, 0)
    assert (told, [message.get("number") for message in messages]) == (4, [0, 1, 2, None])
    assert ended.messages(0.0, 0) == (4, messages)
    assert ended.messages(0.0, 2) == (4, messages[2:])


def test_what_has_arrived_is_forgotten_but_for_the_end(ended: Process) -> None:
    messages = ended.messages(0.0, 0)[1]
    ended.messages(0.0, 2)
    assert ended.messages(0.0, 0) == (4, messages[2:])
    assert [ended.messages(0.0, seen) for seen in (4, 4, 0)] == [(4, messages[3:])] * 3
