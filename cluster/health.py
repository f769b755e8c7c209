"""What every node's seats see before a run starts on them: the storage, the clock, shared memory, its own speed, the way to the others. The
controller says it in a line each and refuses only what training cannot do without.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError

CLOCK_SECONDS = 1.0  # by which two clocks may differ before it is said: events of several hosts are put in order by them
SHM_BYTES = 1 << 30  # below which NCCL's and the loader's buffers may not fit
SLOW = 2.0  # times the median that a node may need for the same work
PATIENCE = 30.0  # seconds for an answer
WORK_BYTES = 8 << 20
PAYLOAD_BYTES = 8 << 20


@dataclass(frozen=True)
class Sight:
    """What the seats of one node see. unseen: folders in which a file is not found or cannot be written; skew: of its clock against
    ours, in seconds; work_seconds: for a fixed piece of work; bytes_per_second: of what it was sent, None on our own node."""

    host: str
    node: str
    unseen: tuple[str, ...]
    skew: float
    shm_bytes: int
    work_seconds: float
    bytes_per_second: float | None


def looked_at(folders: Sequence[str], token: str) -> dict[str, Any]:
    """A seat's own answer: host, unseen folders, its time, free bytes of /dev/shm, seconds of the work."""
    unseen = tuple(folder for folder in folders if not shares(Path(folder), token))
    filesystem = os.statvfs("/dev/shm")
    return {
        "host": socket.gethostname(),
        "unseen": unseen,
        "shm_bytes": filesystem.f_bavail * filesystem.f_frsize,
        "work_seconds": min(work() for _ in range(3)),
        "time": time.time(),
    }


def shares(folder: Path, token: str) -> bool:
    """Whether a file that another has written is here, and a file can be written beside it."""
    mine = folder / f".videomar-probe-{token}-{secrets.token_hex(4)}"
    try:
        found = (folder / f".videomar-probe-{token}").exists()
        mine.touch()
        mine.unlink()
    except OSError:
        return False
    return found


def work() -> float:
    """Seconds for a fixed piece of it."""
    started = time.perf_counter()
    hashlib.sha256(bytes(WORK_BYTES)).digest()
    return time.perf_counter() - started


def examine(seats: Mapping[str, ActorHandle], folders: Sequence[Path]) -> list[Sight]:
    """What a seat of every node sees of folders that exist here. One after the other, so that none disturbs another; a node that does not
    answer is left out, for others will notice."""
    token, sights = secrets.token_hex(8), []
    probes = [folder / f".videomar-probe-{token}" for folder in folders]
    for probe in probes:
        probe.touch()
    try:
        for node, seat in seats.items():
            with contextlib.suppress(RayActorError, GetTimeoutError):
                sights.append(sight(node, seat, folders, token))
    finally:
        for probe in probes:
            with contextlib.suppress(OSError):
                probe.unlink()
    return sights


def sight(node: str, seat: ActorHandle, folders: Sequence[Path], token: str) -> Sight:
    """One node's. Raises RayActorError or GetTimeoutError."""
    asked = time.time()
    told: Any = ray.get(seat.look.remote([str(folder) for folder in folders], token), timeout=PATIENCE)
    there = told.pop("time")
    skew = max(0.0, asked - there, there - time.time())  # what the call's own duration does not explain
    speed = None
    if node != ray.get_runtime_context().get_node_id():
        began = time.perf_counter()
        ray.get(seat.take.remote(bytes(PAYLOAD_BYTES)), timeout=PATIENCE)
        speed = PAYLOAD_BYTES / (time.perf_counter() - began)
    return Sight(node=node, skew=skew, bytes_per_second=speed, **told)


def unusable(sight: Sight) -> str:
    """Why a node cannot train; "" where it can."""
    if not sight.unseen:
        return ""
    return (
        f"{sight.unseen[0]} is not the same, writable folder on {sight.host} as here: put run.root and data.root on storage that "
        "every node shares"
    )


def lines(sights: Sequence[Sight], seats: int, earlier: Sequence[Sight] = ()) -> list[str]:
    """What to tell of nodes with so many seats: a line on all of them, and one for each thing that is not as it should be. earlier: what
    is known of others, to compare them with."""
    if not sights:
        return []
    usual, nodes = median(sight.work_seconds for sight in (*earlier, *sights)), len(sights)
    speeds = [sight.bytes_per_second for sight in sights if sight.bytes_per_second]
    told = [
        f"seats {seats} on {nodes} {'node' if nodes == 1 else 'nodes'}, storage shared, clocks within "
        f"{max(sight.skew for sight in sights):.2f} s, {min(sight.shm_bytes for sight in sights) / 1e9:.1f} GB of /dev/shm free"
        + (f", {min(speeds) / 1e6:.0f} MB/s to the slowest node" if speeds else "")
    ]
    for sight in sights:
        if sight.skew > CLOCK_SECONDS:
            told.append(f"      {sight.host}: its clock is {sight.skew:.1f} s off; events will seem out of order")
        if sight.shm_bytes < SHM_BYTES:
            told.append(f"      {sight.host}: only {sight.shm_bytes / 1e6:.0f} MB of /dev/shm are free; NCCL and the loader may need more")
        if sight.work_seconds > SLOW * usual:
            told.append(f"      {sight.host}: it is {sight.work_seconds / usual:.1f} times slower than the others; every step waits for it")
    return told
