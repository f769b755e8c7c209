"""Who owns a run: generation numbers that only grow, drawn by whoever writes to the run folder next. A writer that no
longer holds the newest number is stale and must not commit. Pure files: needs no Ray and no clock."""

import contextlib
import json
import os
import socket
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from data_pipeline.errors import UserError


@dataclass(frozen=True)
class Owner:
    """The process that drew a generation. drawn: Unix time in seconds; ticks: the process's start in clock ticks since
    boot, which tells it from a later process with the same pid."""

    host: str
    pid: int
    drawn: float
    ticks: int


def draw(run_folder: Path) -> int:
    """Take the next generation number, from 1. However many processes draw at once, each gets its own.

    Raises UserError when the folder cannot be written.
    """
    leases = run_folder / "lease"
    owner = Owner(socket.gethostname(), os.getpid(), time.time(), _start_ticks(os.getpid()) or 0)
    try:
        leases.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=leases, prefix=".", suffix=".tmp") as draft:
            json.dump(asdict(owner), draft)
            draft.flush()
            os.fchmod(draft.fileno(), 0o644)
            os.fsync(draft.fileno())
            return _publish(Path(draft.name), run_folder)
    except OSError as error:
        raise UserError(f"{leases} cannot be written ({error.strerror}): choose another run.root") from error


def current(run_folder: Path) -> int:
    """The newest generation, 0 before the first."""
    return max((int(path.stem) for path in (run_folder / "lease").glob("[0-9]*.json")), default=0)


def holds(run_folder: Path, generation: int) -> bool:
    """Whether the writer of `generation` still owns the run."""
    return current(run_folder) == generation


def renew(run_folder: Path, generation: int) -> None:
    """Say that the writer of `generation` lives, to those who cannot see its process: see `heard`."""
    os.utime(_path(run_folder, generation))


def heard(run_folder: Path) -> float:
    """When the owner was last known to live, Unix seconds; 0 before the first."""
    generation = current(run_folder)
    return _path(run_folder, generation).stat().st_mtime if generation else 0.0


def lives(run_folder: Path, since: float) -> int:
    """How many processes have drawn a generation since a Unix time."""
    found: set[tuple[str, int, int]] = set()
    for generation in range(current(run_folder), 0, -1):
        drawer = _read(run_folder, generation)
        if drawer.drawn < since:
            break
        found.add((drawer.host, drawer.pid, drawer.ticks))
    return len(found)


def owner(run_folder: Path) -> Owner | None:
    """Who drew the newest generation; None before the first."""
    generation = current(run_folder)
    return _read(run_folder, generation) if generation else None


def is_alive(owner: Owner) -> bool | None:
    """Whether that very process still runs; None when it is another host's and cannot be seen from here."""
    if owner.host != socket.gethostname():
        return None
    return _start_ticks(owner.pid) == owner.ticks


def _publish(draft: Path, run_folder: Path) -> int:
    """Give the draft the first free number. A link appears whole or not at all, and never replaces another."""
    generation = current(run_folder)
    while True:
        generation += 1
        with contextlib.suppress(FileExistsError):
            os.link(draft, _path(run_folder, generation))
            return generation


def _read(run_folder: Path, generation: int) -> Owner:
    return Owner(**json.loads(_path(run_folder, generation).read_text()))


def _path(run_folder: Path, generation: int) -> Path:
    return run_folder / "lease" / f"{generation:08d}.json"


def _start_ticks(pid: int) -> int | None:
    """Start of a process in clock ticks since boot; None when there is no such process (a zombie is none)."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else int(fields[18])
