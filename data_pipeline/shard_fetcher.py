"""Downloads for the shard cache in a process of their own. In the loader's process their threads and its own share one interpreter,
which costs as much again as the transfers themselves.

A request is a line of JSON on the standard input, {"shard": where it is, "copy": where it is to be}; answers are lines on the standard
output, {"began": copy} and then {"ended": copy, "failure", "faults"}. The end of the input is the end of the process: nothing outlives
who asked. The index of a shard comes with it.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data_pipeline import storage
from data_pipeline.shard_index import index_path
from data_pipeline.storage import FAULTS, Location

DOWNLOADS = 4  # at a time


class ShardFetcher:
    """The asking end. `answered` is called in a thread of this one's with every answer, and with None when the process has ended."""

    def __init__(self, folder: Path, answered: Callable[[dict[str, Any] | None], None]) -> None:
        """`folder` is where the copies are to be; what killed processes have left half fetched there is deleted."""
        sweep(folder)
        command = [sys.executable, "-m", "data_pipeline.shard_fetcher"]
        root = Path(__file__).parents[1]  # from which the package is found, installed or not
        self._process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answered = answered
        self._listener = threading.Thread(target=self._listen, name="shard-fetcher", daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def fetch(self, shard: Location, copy: Path) -> None:
        """Asks for a copy. Raises OSError or ValueError when the process has ended."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"shard": str(shard), "copy": str(copy)}) + "\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """Ends the process, whatever it is at."""
        assert self._process.stdin
        with contextlib.suppress(OSError):  # it has ended by itself
            self._process.stdin.close()
        self._listener.join()

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._answered(json.loads(line))
        self._process.wait()
        self._answered(None)


def serve() -> None:
    """What the process does until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; who asked decides
    writing = threading.Lock()

    def answer(**told: Any) -> None:
        with writing:
            sys.stdout.write(json.dumps(told) + "\n")
            sys.stdout.flush()

    def work(shard: str, copy: str) -> None:
        answer(began=copy)
        failure = None
        try:
            bring(storage.location(shard), Path(copy))
        except Exception as error:  # told to whoever opens the shard
            failure = str(error) or type(error).__name__
        answer(ended=copy, failure=failure, faults=FAULTS.take())

    threads = ThreadPoolExecutor(DOWNLOADS)
    with contextlib.suppress(ValueError):  # half a line, of an asker that was killed
        for line in sys.stdin:
            threads.submit(work, **json.loads(line))
    os._exit(0)  # whoever asked has gone: what is still to come is of no use


def bring(shard: Location, copy: Path) -> None:
    """Copies a shard and its index, if it has one. One process of all that share the folder does it, the others wait for it. What is
    damaged or cut short is noticed by who reads it: every part has a checksum of its own."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    locked = lock_path(copy)
    with locked.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel takes it back from whoever is killed
        if not copy.exists():
            with contextlib.suppress(FileNotFoundError), storage.atomic(index_path(copy), durable=False) as temporary:
                temporary.write_bytes(storage.read_bytes(index_path(shard)))
            with storage.atomic(copy, durable=False) as temporary:
                storage.download(shard, temporary)
        locked.unlink(missing_ok=True)


def lock_path(copy: Path) -> Path:
    """Held while a copy comes."""
    return copy.with_suffix(".lock")


def sweep(folder: Path) -> None:
    """Deletes what is half there and nobody is fetching."""
    for locked in folder.glob(lock_path(Path("*")).name):
        with contextlib.suppress(OSError), locked.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in folder.glob(f".{locked.stem}.*.tmp"):
                left.unlink(missing_ok=True)
            locked.unlink(missing_ok=True)


if __name__ == "__main__":
    serve()
