"""A bounded folder of whole shards that were fetched from S3, named by their checksum, each with its index. Readers ask it for a copy
and verify what they read of it, the loader tells it what will be read next. Any number of processes may share the folder."""

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue

from data_pipeline import storage
from data_pipeline.shard_index import index_path
from data_pipeline.shards import ShardEntry
from data_pipeline.storage import Location, StorageError

DOWNLOADS = 4  # at a time and process
PATIENCE = 1.0  # seconds after a shard's transfer began in which its readers wait for it, rather than fetch parts of it a second time


class ShardCache:
    """At most `limit` bytes of shards in `folder`; the ones unused for longest make room, but not for one that is wanted together with
    them. Safe to share between threads."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._coming: dict[str, tuple[float, Future[None]]] = {}  # since when
        self._arriving = 0  # bytes for which there is room, but no copy yet
        self._lock = threading.Lock()
        self._asked: SimpleQueue[tuple[Future[None], Location, ShardEntry] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def open(self, entry: ShardEntry) -> int | None:
        """A descriptor of the local copy, or None while there is none."""
        with self._lock:
            began, coming = self._coming.get(entry.sha256, (0.0, None))
        if coming:
            with contextlib.suppress(StorageError, OSError):  # then ranged reads go on, and say what is the matter if it lasts
                coming.result(max(0.0, began + PATIENCE - time.monotonic()))
        try:
            descriptor = os.open(self.place(entry), os.O_RDONLY)
        except OSError:
            return None
        os.utime(descriptor)  # the order in which copies make room
        return descriptor

    def place(self, entry: ShardEntry) -> Path:
        """Where the copy is, its index beside it, once they have come."""
        return self.folder / f"{entry.sha256}.tar"

    def drop(self, entry: ShardEntry) -> None:
        """Forget a copy that was found damaged."""
        _delete(self.place(entry))

    def want(self, shards: Sequence[tuple[Location, ShardEntry]]) -> None:
        """Starts to fetch in the background, in this order, those that are not here and not on their way, as far as there is room beside
        the others."""
        together = {entry.sha256 for _, entry in shards}
        for path, entry in shards:
            self._ask(path, entry, together)

    def _ask(self, path: Location, entry: ShardEntry, together: Collection[str]) -> None:
        with self._lock:
            known = self._coming.get(entry.sha256)
            if self.place(entry).exists() or (known and not known[1].done()) or not self._make_room(entry.bytes, together):
                return
            if not self._threads:  # daemons: what is still to come must not hold up the end of a process
                self._threads = [threading.Thread(target=self._work, name="shard-cache", daemon=True) for _ in range(DOWNLOADS)]
                for thread in self._threads:
                    thread.start()
            self._arriving += entry.bytes
            future: Future[None] = Future()
            self._coming[entry.sha256] = time.monotonic(), future
        self._asked.put((future, path, entry))

    def close(self) -> None:
        """Waits for all that was asked for and ends the threads."""
        for _ in self._threads:
            self._asked.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            future, path, entry = asked
            with self._lock:
                self._coming[entry.sha256] = time.monotonic(), future
            try:
                self._bring(path, entry)
                failure = None
            except Exception as error:  # told to whoever opens the shard
                failure = error
            with self._lock:
                self._arriving -= entry.bytes
            future.set_exception(failure) if failure else future.set_result(None)

    def _bring(self, path: Location, entry: ShardEntry) -> None:
        """One process of all that share the folder fetches a shard, the others wait for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        locked = self.place(entry).with_suffix(".lock")
        with locked.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel takes it back from whoever is killed
            if not self.place(entry).exists():
                with contextlib.suppress(FileNotFoundError), storage.atomic(index_path(self.place(entry)), durable=False) as temporary:
                    temporary.write_bytes(storage.read_bytes(index_path(path)))
                # What is damaged or cut short is noticed by who reads it: every part has a checksum of its own.
                with storage.atomic(self.place(entry), durable=False) as temporary:
                    storage.download(path, temporary)
            locked.unlink(missing_ok=True)

    def _make_room(self, needed: int, together: Collection[str]) -> bool:
        """Deletes the copies unused for longest, but none of those; False where that is not enough. One that is open somewhere stays
        readable there. Under the lock."""
        copies = []
        for copy in self.folder.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):  # another process made room
                found = copy.stat()
                copies.append((found.st_mtime_ns, found.st_size, copy))
        free = self.limit - self._arriving - sum(size for _, size, _ in copies)
        others = [copy for copy in sorted(copies) if copy[2].stem not in together]
        if free + sum(size for _, size, _ in others) < needed:
            return False
        for _, size, copy in others:
            if free < needed:
                with contextlib.suppress(OSError):
                    _delete(copy)
                    free += size
        return free >= needed


def _delete(copy: Path) -> None:
    for path in (copy, index_path(copy)):
        path.unlink(missing_ok=True)
