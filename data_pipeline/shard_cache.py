"""A bounded folder of whole shards that were fetched from S3, named by their checksum, each with its index. Readers ask it for a copy
and verify what they read of it, the loader tells it what will be read next. Any number of processes may share the folder."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.shard_fetcher import CHECKSUM, ShardFetcher
from data_pipeline.shard_index import index_path
from data_pipeline.shards import ShardEntry
from data_pipeline.storage import FAULTS, Location, StorageError

PATIENCE = 1.0  # seconds after a shard's transfer began in which its readers wait for it, rather than fetch parts of it a second time


@dataclass
class Coming:
    """A shard on its way. since: when it was asked for, then when its transfer began (time.monotonic())."""

    bytes: int
    since: float = field(default_factory=time.monotonic)
    done: Future[None] = field(default_factory=Future)


class ShardCache:
    """At most `limit` bytes of shards in `folder`; the ones unused for longest make room, but not for one that is wanted together with
    them. Safe to share between threads."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder.absolute(), limit
        self._coming: dict[Path, Coming] = {}  # by place
        self._fetcher: ShardFetcher | None = None
        self._closed = self._complained = False
        self._lock = threading.Lock()

    def open(self, entry: ShardEntry) -> int | None:
        """A descriptor of the local copy, or None while there is none."""
        coming = self._coming.get(self.place(entry))
        if coming:
            with contextlib.suppress(StorageError, TimeoutError):  # then ranged reads go on, and say what is the matter if it lasts
                coming.done.result(max(0.0, coming.since + PATIENCE - time.monotonic()))
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
        the others. Does nothing once the cache is closed."""
        together = {entry.sha256 for _, entry in shards}
        with self._lock:
            for path, entry in shards if not self._closed else ():
                if not self.place(entry).exists() and self.place(entry) not in self._coming and self._make_room(entry.bytes, together):
                    self._ask(path, entry)

    def wait(self) -> None:
        """Until all that was asked for is here, or has failed."""
        wait([coming.done for coming in list(self._coming.values())])

    def close(self) -> None:
        """Ends the fetching process, whatever it is at; what is here stays."""
        with self._lock:
            self._closed, fetcher = True, self._fetcher
        if fetcher:
            fetcher.close()

    def _ask(self, path: Location, entry: ShardEntry) -> None:
        """Under the lock."""
        place = self.place(entry)
        try:
            self._fetcher = self._fetcher or ShardFetcher(self.folder, self._answered)
            self._fetcher.fetch(path, place)
            self._coming[place] = Coming(entry.bytes)
        except (OSError, ValueError) as error:  # the process has just ended: who wants the shard next will start another one
            self._complain(str(error))

    def _answered(self, answer: dict[str, Any] | None) -> None:
        """What the fetcher says, and None when it has ended. In its listening thread."""
        with self._lock:
            if answer is None:
                ended, self._fetcher, self._coming = self._coming, None, {}
                if ended and not self._closed:
                    self._complain("the process that fetches them has ended")
                for coming in ended.values():
                    coming.done.set_exception(StorageError("the process that fetches shards has ended"))
            elif "began" in answer:
                self._coming[Path(answer["began"])].since = time.monotonic()
            else:
                FAULTS.add(answer["faults"])
                done, failure = self._coming.pop(Path(answer["ended"])).done, answer["failure"]
                if failure:
                    self._complain(failure)
                done.set_exception(StorageError(failure)) if failure else done.set_result(None)

    def _complain(self, why: str) -> None:
        """Says the first time that a shard could not be fetched: reading goes on, in parts and slower."""
        if not self._complained:
            self._complained = True
            logging.getLogger(__name__).warning("shards are not fetched ahead into %s, but read from S3 in parts: %s", self.folder, why)

    def _make_room(self, needed: int, together: Collection[str]) -> bool:
        """Deletes the copies unused for longest, but none of those; False where that is not enough. One that is open somewhere stays
        readable there. Under the lock."""
        copies = []
        for copy in self.folder.glob(f"{CHECKSUM}.tar"):
            with contextlib.suppress(FileNotFoundError):  # another process made room
                found = copy.stat()
                copies.append((found.st_mtime_ns, found.st_size, copy))
        arriving = sum(coming.bytes for coming in self._coming.values())
        free = self.limit - arriving - sum(size for _, size, _ in copies)
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
