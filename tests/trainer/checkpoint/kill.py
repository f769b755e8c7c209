"""Kill a process by SIGKILL at every file operation of a save by two ranks, one after the other, and look at what is left each time.

    python -m tests.trainer.checkpoint.kill <folder>      prints [operation, step chosen, faults] of every kill as JSON

A process of its own, because it forks: each victim starts from the same commit and is killed one operation later than the one before.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from trainer import lease
from trainer.checkpoint import files
from trainer.checkpoint.commit import resume_point
from trainer.checkpoint.fragments import Box, Fragment
from trainer.checkpoint.keeper import Keeper
from trainer.checkpoint.saver import Saver
from trainer.checkpoint.store import load_fragments
from trainer.curriculum import RunState
from trainer.journal import Journal
from trainer.metrics import metrics_path

RANKS, ELEMENTS, OLD, NEW = 2, 400, 10, 20
HARMLESS = {"fspath", "getpid"}


class Gathering:
    """What dist.all_gather_object does, between threads."""

    def __init__(self) -> None:
        self.barrier, self.values = threading.Barrier(RANKS, timeout=20), [None] * RANKS

    def by(self, rank: int) -> Callable[[Any], list[Any]]:
        def gather(value: Any) -> list[Any]:
            self.values[rank] = value
            self.barrier.wait()
            gathered = list(self.values)
            self.barrier.wait()
            return gathered

        return gather


def fragment(rank: int, value: float) -> Fragment:
    """A rank's half of a vector that holds one value."""
    half = ELEMENTS // RANKS
    return Fragment("w", (ELEMENTS,), Box((0,), (ELEMENTS,)), rank * half, (rank + 1) * half, {"weight": torch.full((half,), value)})


def save(run: Path, step: int) -> None:
    """A commit of `step` by both ranks, as a new generation would make it."""
    journal = Journal(run, lease.current(run), step, lambda message: None)
    gathering = Gathering()

    def rank(number: int) -> None:
        saver = Saver([fragment(number, float(step))], number, gathering.by(number))
        keeper = Keeper(run, lease.current(run), "data", "recipe", 1, saver, None if number else journal)
        keeper.commit(RunState(step=step), "periodic", permanent=False)
        saver.wait()
        saver.close()

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def killed_at(number: int, told: int) -> Callable[[FrameType, str, Any], None]:
    """A profiler for threads that kills the process before its `number`-th file operation, and writes to `told` which that was."""
    count, lock = itertools.count(1), threading.Lock()

    def profile(frame: FrameType, event: str, function: Any) -> None:
        if event != "c_call" or function.__name__ in HARMLESS:
            return
        owner = getattr(function, "__self__", None)
        if "_io" in (function.__module__, type(owner).__module__) or function.__module__ == "posix":
            with lock:
                if next(count) == number:
                    os.write(told, function.__name__.encode())
                    os.kill(os.getpid(), signal.SIGKILL)

    return profile


def forked(work: Callable[[], None]) -> int:
    """The exit status of a forked process that does some work."""
    pid = os.fork()
    if not pid:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def victim(run: Path, number: int, told: int) -> None:
    files.BLOCK = 128
    threading.setprofile(killed_at(number, told))
    save(run, NEW)


def chosen(run: Path) -> tuple[int, str]:
    """(the step of the commit that a start would choose, what is wrong with it)."""
    commit = resume_point(run).commit
    if commit is None:
        return 0, "no commit is left"
    found = [fragment(rank, float("nan")) for rank in range(RANKS)]
    load_fragments(commit.folder, found)
    values = {value for part in found for value in part.tensors["weight"].tolist()}
    return commit.state.step, "" if values == {float(commit.state.step)} else f"it holds {sorted(values)}"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    template = folder / "template"
    lease.draw(template)
    metrics_path(template).write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, NEW + 1)))
    shutil.copy(metrics_path(template), folder)
    forked(lambda: save(template, OLD))
    results: list[tuple[str, int, str]] = []
    for number in itertools.count(1):
        run = folder / "run"
        shutil.copytree(template, run)
        shutil.copy(folder / "metrics.jsonl", run)
        reading, writing = os.pipe()
        status = forked(lambda run=run, number=number, told=writing: victim(run, number, told))
        os.close(writing)
        operation = os.read(reading, 100).decode()
        os.close(reading)
        step, fault = chosen(run)
        lease.draw(run)
        if forked(lambda run=run: save(run, NEW)) or chosen(run) != (NEW, ""):
            fault += "; the next generation's save failed"
        shutil.rmtree(run)
        if not os.WIFSIGNALED(status):
            results.append(("none", step, fault or ("" if status == 0 else "the save failed")))
            break
        results.append((operation, step, fault))
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
