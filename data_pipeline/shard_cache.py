"""A bounded folder of whole shards that were fetched from S3, named by their checksum. Readers ask it for a copy and verify what
they read of it, the loader tells it what will be read next. Any number of processes may share the folder."""

import contextlib
import os
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue

from data_pipeline import storage
from data_pipeline.shards import ShardEntry
from data_pipeline.storage import Location, StorageError

DOWNLOADS = 4  # at a time and process
PATIENCE = 1.0  # seconds after a shard was asked for in which its readers wait for it, rather than fetch parts of it a second time


class ShardCache:
    """At most `limit` bytes of shards in `folder`; the ones unused for longest make room. Safe to share between threads."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._coming: dict[str, tuple[float, Future[None]]] = {}  # when it was asked for
        self._lock = threading.Lock()
        self._asked: SimpleQueue[tuple[Future[None], Location, ShardEntry] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def open(self, entry: ShardEntry) -> int | None:
        """A descriptor of the local copy, or None while there is none."""
        with self._lock:
            asked, coming = self._coming.get(entry.sha256, (0.0, None))
        if coming:
            with contextlib.suppress(StorageError, OSError):  # then ranged reads go on, and say what is the matter if it lasts
                coming.result(max(0.0, asked + PATIENCE - time.monotonic()))
        try:
            descriptor = os.open(self._place(entry), os.O_RDONLY)
        except OSError:
            return None
        os.utime(descriptor)  # the order in which copies make room
        return descriptor

    def drop(self, entry: ShardEntry) -> None:
        """Forget a copy that was found damaged."""
        self._place(entry).unlink(missing_ok=True)

    def prefetch(self, path: Location, entry: ShardEntry) -> None:
        """Starts to fetch a shard in the background unless it is here, on its way, or larger than the whole cache."""
        with self._lock:
            known = self._coming.get(entry.sha256)
            if self._place(entry).exists() or entry.bytes > self.limit or (known and not known[1].done()):
                return
            if not self._threads:  # daemons: what is still to come must not hold up the end of a process
                self._threads = [threading.Thread(target=self._work, name="shard-cache", daemon=True) for _ in range(DOWNLOADS)]
                for thread in self._threads:
                    thread.start()
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
            try:
                self._fetch(path, entry)
                future.set_result(None)
            except Exception as error:  # told to whoever opens the shard
                future.set_exception(error)

    def _fetch(self, path: Location, entry: ShardEntry) -> None:
        copy = self._place(entry)
        self._make_room(entry.bytes)
        # What is damaged or cut short is noticed by who reads it: every part has a checksum of its own.
        with storage.atomic(copy, durable=False) as temporary:
            storage.download(path, temporary)

    def _make_room(self, needed: int) -> None:
        """Deletes the copies unused for longest. One that is open somewhere stays readable there."""
        copies = []
        for copy in self.folder.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):  # another process made room
                found = copy.stat()
                copies.append((found.st_mtime_ns, found.st_size, copy))
        used = sum(size for _, size, _ in copies)
        for _, size, copy in sorted(copies):
            if used + needed <= self.limit:
                return
            copy.unlink(missing_ok=True)
            used -= size

    def _place(self, entry: ShardEntry) -> Path:
        return self.folder / f"{entry.sha256}.tar"
