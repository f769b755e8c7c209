"""A process's stack is seen from outside, also when it is stopped; where that is not allowed the process writes it itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import stacks
from cluster.session import REPOSITORY

CODE = """
import time
from cluster import stacks
def waits_here():
    print("up", flush=True)
    time.sleep(60)
stacks.answer()
waits_here()
"""


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """(pid, log) of a process that waits."""
    log = tmp_path / "log.txt"
    with log.open("w") as errors:
        command = [sys.executable, "-c", CODE]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, cwd=REPOSITORY)
    assert process.stdout is not None
    process.stdout.readline()
    yield process.pid, log
    process.kill()
    process.wait()


def test_a_stack_is_read_from_outside_even_of_a_stopped_process(waiting: tuple[int, Path]) -> None:
    assert "waits_here" in stacks.dump(*waiting)
    os.kill(waiting[0], signal.SIGSTOP)
    assert "waits_here" in stacks.dump(*waiting)
    assert stacks.is_stopped(waiting[0])


def test_without_py_spy_the_process_answers_itself(waiting: tuple[int, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert "waits_here" in stacks.dump(*waiting)
    os.kill(waiting[0], signal.SIGSTOP)
    assert "did not answer" in stacks.dump(*waiting)


def test_a_process_that_is_gone_has_no_stack(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert stacks.dump(gone.pid, tmp_path / "none").startswith("no stack: ")
    assert not stacks.is_stopped(gone.pid)
