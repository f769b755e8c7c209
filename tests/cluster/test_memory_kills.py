"""A process that the kernel kills for memory has nothing to say; its seat knows it by the kernel's own count."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.memory_kills import memory_kills
from cluster.session import REPOSITORY

LIMIT = str(160 << 20)
CODE = """
import json, os, sys
from pathlib import Path
Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
from cluster.forked import Process
process = Process("tests.cluster.targets:eat_memory", {"log": sys.argv[2]}, None, None, 30.0)
seen, messages = 0, []
while not messages or messages[-1]["kind"] != "exit":
    seen, messages = process.messages(30.0, seen)
print(json.dumps(messages[-1]))
"""


@pytest.fixture
def control_group() -> Iterator[Path]:
    """A group of processes that share little memory, of whichever version this machine has; skips where none can be made."""
    name = f"videomar-{uuid.uuid4().hex[:8]}"
    for root, limit in ((Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max")):
        try:
            (root / name).mkdir()
            (root / name / limit).write_text(LIMIT)
        except OSError as error:
            problem = error
            continue
        yield root / name
        wait_until_empty(root / name)
        (root / name).rmdir()
        return
    pytest.skip(f"no control group can be made here: {problem}")


def wait_until_empty(group: Path) -> None:
    """The fork server leaves a moment after the process that it served."""
    deadline = time.monotonic() + 20.0
    while (group / "cgroup.procs").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.mark.timeout(60)
def test_a_process_that_the_kernel_kills_for_memory_is_known_by_it(control_group: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CODE, str(control_group), str(tmp_path / "log.txt")]
    told = subprocess.run(command, cwd=REPOSITORY, env=dict(os.environ), capture_output=True, text=True, timeout=50, check=True)
    end = json.loads(told.stdout)
    assert (end["code"], end["memory_kill"]) == (-9, True)


@pytest.mark.parametrize(
    ("groups", "counter"),
    [("0::/pod/job\n", "sys/fs/cgroup/pod/job/memory.events"), ("4:memory:/pod\n0::/\n", "sys/fs/cgroup/memory/pod/memory.oom_control")],
)
def test_kills_for_memory_are_counted_in_the_control_group_or_the_machine(tmp_path: Path, groups: str, counter: str) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/vmstat").write_text("nr_free_pages 1\noom_kill 2\n")
    assert memory_kills(tmp_path) == 2
    (tmp_path / "proc/self/cgroup").write_text(groups)
    (tmp_path / counter).parent.mkdir(parents=True)
    (tmp_path / counter).write_text("oom 5\noom_kill 3\n")
    assert memory_kills(tmp_path) == 3
