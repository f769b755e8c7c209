"""Faults, and how they are done to a run: which ones when is a pure function of the seed; doing them needs only the run's folder and the
hosts it runs on. Used by `chaos` and by tests."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from cluster.hosts import Hosts, Network, parent, trainers
from data_pipeline.loader import open_dataset
from data_pipeline.shard_index import read_index
from data_pipeline.shards import shard_path
from trainer import lease
from trainer.checkpoint.commit import commit_folder, last_commit
from trainer.config import RunConfig
from trainer.events import read_events
from trainer.metrics import last_step

KINDS = {
    "worker": "SIGKILL to a trainer process",
    "seat": "SIGKILL to the seat of a rank",
    "hang": "SIGSTOP to a trainer process, for good",
    "slow": "a trainer process runs a fifth of the time for some seconds",
    "shard": "one bit of a latent flipped on the disk, mended once the run has reported it",
    "storage": "no space left for the commits of the next steps, mended once the run has reported it",
    "controller": "SIGKILL to the process that steers the run",
    "node": "every process of a host killed at once; the host comes back",
    "link": "the network between two hosts cut for a while",
}
SLOT_SECONDS = 25.0  # one fault in each
CALM = 0.85  # share of the time after which no fault begins, so that the last is overcome
SLOW_SECONDS = 6.0
NODE_SECONDS = 8.0  # that a host stays away
REPORT_SECONDS = 40.0  # within which a fault of the data or the storage must have been met


@dataclass(frozen=True)
class Fault:
    """at: seconds from the beginning; pick: in [0, 1), which of those that it could befall."""

    at: float
    kind: str
    pick: float

    def of(self, candidates: Sequence[int]) -> int:
        return candidates[int(self.pick * len(candidates))]


def plan(seed: int, minutes: float, kinds: Sequence[str]) -> tuple[Fault, ...]:
    """One fault per slot of the time, at a random moment; every kind comes before any comes again."""
    draw = random.Random(f"{seed}/{minutes}/{','.join(kinds)}")
    order: list[str] = []
    faults = []
    for slot in range(int(60 * minutes // SLOT_SECONDS)):
        if not order:
            order = draw.sample(list(kinds), len(kinds))
        at = CALM * SLOT_SECONDS * (slot + draw.uniform(0.1, 0.7))
        faults.append(Fault(at, order.pop(), draw.random()))
    return tuple(faults)


@dataclass(frozen=True)
class Done:
    """What a fault was done to, and whether the generation must end of it."""

    target: str
    breaks: bool = True


class Injector:
    """Does faults to one run."""

    def __init__(self, run: Path, config: RunConfig, hosts: Hosts, network: Network | None, cut_seconds: float) -> None:
        self._run, self._config, self._hosts = run, config, hosts
        self._network, self._cut_seconds = network, cut_seconds

    def do(self, fault: Fault) -> Done:
        """Raises OSError or LookupError when there was nothing to do it to just now."""
        action: Callable[[Fault], Done] = getattr(self, f"_{fault.kind}")
        return action(fault)

    def _worker(self, fault: Fault) -> Done:
        rank, pid = self._rank(fault)
        os.kill(pid, signal.SIGKILL)
        return Done(f"rank {rank}")

    def _seat(self, fault: Fault) -> Done:
        rank, pid = self._rank(fault)
        os.kill(parent(parent(pid)), signal.SIGKILL)  # a trainer's parent is the fork server, whose parent is the seat
        return Done(f"the seat of rank {rank}")

    def _hang(self, fault: Fault) -> Done:
        rank, pid = self._rank(fault)
        os.kill(pid, signal.SIGSTOP)
        return Done(f"rank {rank}")

    def _slow(self, fault: Fault) -> Done:
        rank, pid = self._rank(fault)
        deadline = time.monotonic() + SLOW_SECONDS
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                for number, seconds in ((signal.SIGSTOP, 0.4), (signal.SIGCONT, 0.1)):
                    os.kill(pid, number)
                    time.sleep(seconds)
        return Done(f"rank {rank}", breaks=False)

    def _controller(self, fault: Fault) -> Done:
        owner = lease.owner(self._run)
        if owner is None or not lease.is_alive(owner):
            raise LookupError("nobody steers the run")
        os.kill(owner.pid, signal.SIGKILL)
        return Done(f"process {owner.pid}")

    def _node(self, fault: Fault) -> Done:
        host = fault.of(range(self._hosts.count))
        self._hosts.kill(host)
        time.sleep(NODE_SECONDS)
        self._hosts.add(host)
        return Done(f"host {host}")

    def _link(self, fault: Fault) -> Done:
        assert self._network is not None, "the plan has links only where there is a network"
        self._network.cut()
        time.sleep(self._cut_seconds)
        self._network.mend()
        return Done(f"for {self._cut_seconds:.0f} s")

    def _shard(self, fault: Fault) -> Done:
        dataset = open_dataset(self._start()["data_folder"])
        stage = next(stage for stage in self._config.curriculum.stages if stage.name == self._stage())
        entry = dataset.manifest.buckets[f"{stage.frames}x{stage.height}x{stage.width}"]["train"][0]
        path = shard_path(dataset.folder, entry)
        index = read_index(path)
        assert isinstance(path, Path), "shards in S3 are not damaged here"
        assert index is not None, "a finished shard has its index"
        row, generation = fault.of(range(len(index.keys))), lease.current(self._run)
        offset, size, _ = index.places["latent"][row].tolist()
        with flipped(path, offset + size // 2):
            return Done(f"sample {index.keys[row]}", self._reported("data", generation))

    def _storage(self, fault: Fault) -> Done:
        done, every = last_commit(self._run), self._config.train.commit_every
        step = done.state.step if done else 0
        ends = [*accumulate(stage.promotion.max_steps for stage in self._config.curriculum.stages)]
        if last_step(self._run) >= ends[-1]:
            raise LookupError("no commit is to come")
        steps = [step + every, step + 2 * every, next(end for end in ends if end > last_step(self._run))]
        generation = lease.current(self._run)
        with full(self._run, steps, generation):
            return Done(f"commits after step {step}", self._reported("data", generation))

    def _rank(self, fault: Fault) -> tuple[int, int]:
        processes = trainers(self._run)
        rank = fault.of(sorted(processes))
        return rank, processes[rank]

    def _start(self) -> dict[str, str]:
        return [event for event in read_events(self._run) if event["event"] == "start"][-1]

    def _stage(self) -> str:
        return str([event for event in read_events(self._run) if event["event"] == "layout"][-1]["stage"])

    def _reported(self, cause: str, generation: int) -> bool:
        """Waits until this generation has failed of that cause; False when the time for it is over. Raises LookupError when it ended before
        it met the fault."""
        deadline = time.monotonic() + REPORT_SECONDS
        while time.monotonic() < deadline:
            newest = lease.current(self._run)  # read first: a failure is told before the next generation is drawn
            failures = [event for event in read_events(self._run) if event["event"] == "failure" and event["generation"] == generation]
            if any(event["cause"] == cause for event in failures):
                return True
            if newest != generation:
                raise LookupError("the generation was over before it met the fault")
            time.sleep(0.1)
        return False


@contextlib.contextmanager
def flipped(path: Path, offset: int) -> Iterator[None]:
    """One bit of a file is wrong meanwhile."""
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        right = file.read(1)
        file.seek(offset)
        file.write(bytes([right[0] ^ 1]))
        try:
            yield
        finally:
            file.seek(offset)
            file.write(right)


@contextlib.contextmanager
def full(run: Path, steps: Sequence[int], generation: int) -> Iterator[None]:
    """No space is left for rank 0's file of these commits meanwhile: it leads to /dev/full."""
    planted = []
    try:
        for step in steps:
            path = commit_folder(run, step, generation) / "rank-00000.safetensors"
            if not path.parent.exists():
                path.parent.mkdir(parents=True)
                path.symlink_to("/dev/full")
                planted.append(path)
        yield
    finally:
        for path in planted:
            with contextlib.suppress(OSError):
                if path.is_symlink():  # a commit may have removed it, and a later one may have its own file there
                    path.unlink()
                path.parent.rmdir()
                path.parent.parent.rmdir()
