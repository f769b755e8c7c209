"""Real Ray for the cluster's tests: one private session per test file, and proof that it leaves no process behind."""

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.session import Session, connect

MARK = "VIDEOMAR_TEST_MARK"


@pytest.fixture(scope="module")
def ray_session() -> Iterator[Session]:
    """A private Ray with 4 CPUs. When the file's tests are over, every process it ever started must be gone."""
    with pytest.MonkeyPatch.context() as patch:
        mark = uuid.uuid4().hex
        patch.setenv(MARK, mark)
        with connect(None, cpus=4) as session:
            yield session
        assert until_gone(mark) == []


def until_gone(mark: str, patience: float = 90.0) -> list[str]:
    """Command lines of the processes that inherited the mark and still run after `patience` seconds."""
    deadline = time.monotonic() + patience
    while (left := _marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def is_gone(pid: int, patience: float = 20.0) -> bool:
    """Whether a process ends within `patience` seconds; a zombie that awaits its parent has ended."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def _marked(mark: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if int(entry.name) != os.getpid() and mark.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [line for line in found if line]
