"""How often the kernel has killed for memory: a process that it kills so leaves nothing but SIGKILL. Linux; read by the seats."""

from collections.abc import Iterator
from pathlib import Path


def memory_kills(root: Path = Path("/")) -> int:
    """Kills so far in this process's control group (version 2 or 1), or in the whole machine where the group does not tell."""
    for path in _counters(root):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        for name, _, count in (line.partition(" ") for line in lines):
            if name == "oom_kill":
                return int(count)
    return 0


def _counters(root: Path) -> Iterator[Path]:
    groups, mounted = root / "proc/self/cgroup", root / "sys/fs/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            yield mounted / group.lstrip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            yield mounted / "memory" / group.lstrip("/") / "memory.oom_control"
    yield root / "proc/vmstat"
