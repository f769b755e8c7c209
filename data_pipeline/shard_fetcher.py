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
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data_pipeline import storage
from data_pipeline.shard_index import index_path
from data_pipeline.storage import FAULTS, Location

DOWNLOADS = 4  # at a time
SERVE = "import sys; sys.path.insert(0, sys.argv[1]); from data_pipeline.shard_fetcher import serve; serve()"
CHECKSUM = "[0-9a-f]" * 64  # in the names of copies and their locks; whatever else is in the folder is not ours


class ShardFetcher:
    """The asking end. `answered` is called in a thread of this one's with every answer, and with None when the process has ended."""

    def __init__(self, folder: Path, answered: Callable[[dict[str, Any] | None], None]) -> None:
        """`folder` is where the copies are to be; what killed processes have left half fetched there is deleted."""
        self._folder = folder
        sweep(folder)
        root = str(Path(__file__).parents[1])  # from which the package is found, installed or not
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", SERVE, root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C reaches every process of a session; who asked decides
        )
        self._answered = answered
        self._listener = threading.Thread(target=self._listen, name="shard-fetcher", daemon=True)
        self._listener.start()

    def fetch(self, shard: Location, copy: Path) -> None:
        """Asks for a copy. Raises OSError or ValueError when the process has ended."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"shard": str(shard), "copy": str(copy)}) + "\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """Ends the process, whatever it is at; what is half fetched then is deleted."""
        assert self._process.stdin
        with contextlib.suppress(OSError):  # it has ended by itself
            self._process.stdin.close()
        self._listener.join()
        sweep(self._folder)

    def _listen(self) -> None:
        assert self._process.stdout
        try:
            for line in self._process.stdout:
                self._answered(json.loads(line))
        finally:
            self._process.kill()  # nobody hears it any more
            self._process.wait()
            self._answered(None)


def serve() -> None:
    """What the process does until its input ends."""
    writing = threading.Lock()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what any library prints is no answer

    def answer(**told: Any) -> None:
        with writing:
            answers.write(json.dumps(told) + "\n")
            answers.flush()

    def work(shard: str, copy: str) -> None:
        answer(began=copy)
        failure = None
        try:
            bring(storage.location(shard), Path(copy))
        except Exception as error:  # whoever asked tells of it
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
    with locked(copy):
        if not copy.exists():
            with contextlib.suppress(FileNotFoundError), storage.atomic(index_path(copy), durable=False) as temporary:
                temporary.write_bytes(storage.read_bytes(index_path(shard)))
            with storage.atomic(copy, durable=False) as temporary:
                storage.download(shard, temporary)


@contextlib.contextmanager
def locked(copy: Path, wait: bool = True) -> Iterator[None]:
    """While a copy comes, one process holds the lock beside it; the kernel takes it back from whoever is killed. Raises BlockingIOError
    where another one holds it and this one would not `wait`."""
    path, held = copy.with_suffix(".lock"), False
    while not held:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = _is_at(lock, path)  # else who held it before has deleted it, and others may hold the next one
            if held:
                yield
        finally:
            if held:
                path.unlink(missing_ok=True)
            os.close(lock)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def sweep(folder: Path) -> None:
    """Deletes what is half there and nobody is fetching."""
    for lock in folder.glob(f"{CHECKSUM}.lock"):
        copy = lock.with_suffix(".tar")
        with contextlib.suppress(OSError), locked(copy, wait=False):
            for left in folder.glob(f".{copy.stem}.*.tmp"):
                left.unlink(missing_ok=True)
            if not copy.exists():
                index_path(copy).unlink(missing_ok=True)
