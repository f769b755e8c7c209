"""How the end-to-end tests start the product: as a user does, in a process of its own, with a recipe small enough to finish in seconds."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
MAIN = REPOSITORY / "trainer" / "main.py"
TIMEOUT = 240.0
MARK = "VIDEOMAR_E2E"

STAGES = [
    {"name": "short", "frames": 5, "height": 32, "width": 32, "tokens_per_step": 256, "promotion": {"max_steps": 8}},
    {"name": "longer", "frames": 9, "height": 32, "width": 32, "tokens_per_step": 384, "promotion": {"max_steps": 30}},
    {"name": "larger", "frames": 9, "height": 48, "width": 48, "tokens_per_step": 432, "promotion": {"max_steps": 4}},
]
SMALL = [
    "data.synthetic.clips=24",
    "data.synthetic.size=48",
    "data.synthetic.frames=10",
    "train.commit_every=3",
    "train.evaluate_every=4",
    "train.evaluate_samples=2",
    "sample.videos=2",
    "sample.iterations=2",
    "sample.head_steps=4",
    f"curriculum.stages={json.dumps(STAGES)}",
]
STEPS = 42


def environment() -> dict[str, str]:
    """The tests' own, without what would lead a job to somebody's Ray, and with a mark that all processes of a job inherit."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return own | {"DS_ACCELERATOR": "cpu", MARK: str(os.getpid())}


def marked_processes() -> list[str]:
    """Command lines of the living processes that jobs of these tests have started."""
    found, mark = [], f"{MARK}={os.getpid()}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


def start(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    """`python trainer/main.py ...` from another folder than the repository's, in a process group of its own."""
    command = [sys.executable, str(MAIN), *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment(), start_new_session=True, **pipes)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """(exit code, output, errors) of a job, which is killed when it takes too long."""
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out, err


def run(arguments: list[str], folder: Path) -> tuple[int, str, str]:
    return finish(start(arguments, folder))


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[Any]) -> Any:
    """What the condition gives once it holds; fails when the job ends first."""
    deadline = time.monotonic() + TIMEOUT
    while not (found := condition()):
        assert process.poll() is None, f"the job ended early: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a .jsonl file, none when it is not there yet."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def assert_every_step_once(run_folder: Path, steps: int = STEPS) -> None:
    assert [line["step"] for line in lines(run_folder / "metrics.jsonl")] == list(range(1, steps + 1))
