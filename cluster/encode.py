"""Chunks of sources in, their records out: what is done already is found, the rest goes through the encode pool.
The commands call encode_dataset. What a chunk is and how it is encoded belongs to data_pipeline."""

from __future__ import annotations

import errno
import signal
import threading
import time
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import ray

from cluster.encode_actors import Decoder, Encoder
from cluster.encode_pool import EncodePool, PoolState
from cluster.encode_scaling import Queues, Sizes, limits_of
from data_pipeline.chunks import Chunk, source_count
from data_pipeline.encode import finished_chunks, work_fingerprint
from data_pipeline.errors import UserError
from data_pipeline.loader import tokenizer_at
from data_pipeline.records import ChunkRecord
from data_pipeline.spec import EncodeSpec
from data_pipeline.storage import Location, StorageError
from data_pipeline.text import load_text

DRAIN_SECONDS = 20.0  # after SIGTERM, for what was begun; Kubernetes kills after 30
HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # what every further write would meet too


@dataclass(frozen=True)
class Progress:
    """done, total: sources; clips: written so far; found: sources that an earlier run had done; seconds: since the start."""

    done: int
    total: int
    clips: int
    seconds: float
    found: int = 0
    queues: Queues = field(default_factory=Queues)
    sizes: Sizes = field(default_factory=lambda: Sizes(0, 0))
    bottleneck: str = "none"
    records: Mapping[int, ChunkRecord] = field(default_factory=dict, compare=False, repr=False)  # brief ones, of the finished chunks

    @property
    def rate(self) -> float:
        """Sources per second of this run."""
        return (self.done - self.found) / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta(self) -> float:
        """Seconds to go at this rate; infinite before the first chunk is done."""
        new = self.done - self.found
        return self.seconds / new * (self.total - self.done) if new else float("inf")


class IncompleteError(UserError):
    """Some chunks could not be encoded. failures: reason by chunk name. What was encoded is kept for the next try."""

    def __init__(self, failures: Mapping[str, str]) -> None:
        self.failures = dict(failures)
        listed = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
        super().__init__(f"{len(failures)} chunks were not encoded, run again to retry them: {listed}")


def encode_dataset(
    chunks: Sequence[Chunk],
    spec: EncodeSpec,
    tokenizer_folder: Location,
    folder: Location,
    workers: int | Callable[[], int] | None,
    on_progress: Callable[[Progress], None],
    draining: Callable[[], bool] | None = None,
) -> list[ChunkRecord]:
    """Encode `chunks` into `folder`; returns their brief records in the order of the chunks.

    `workers` is the number of CPUs that the caller has to give (actors reserve none), which may be asked for again and again;
    None follows the cluster as it grows and shrinks. Paths must be visible to every node.
    Chunks that are finished already cost nothing; each of the others is made when the pool has room for it. While `draining`, only
    chunks that were begun are finished, and the others are left out. Without it SIGTERM does so, for DRAIN_SECONDS at most, and
    leaves by SystemExit.
    Raises IncompleteError that lists every chunk without a record, after all the others are done; UserError when the
    tokenizer cannot be loaded; StorageError or OSError at once when nothing can be written any more.
    """
    tokenizer, text = tokenizer_at(tokenizer_folder), load_text(tokenizer_folder, spec)  # errors reach the user as one line

    def work(chunk: Chunk) -> str:
        return work_fingerprint(chunk, spec, tokenizer, text)

    found = dict(finished_chunks(chunks, work, folder))
    todo = ((index, chunks[index]) for index in range(len(chunks)) if index not in found)
    tell, records = _Teller(chunks, found, on_progress), ChainMap(found)
    if len(found) < len(chunks):
        decoder: Any = ray.remote(Decoder).options(num_cpus=0, scheduling_strategy="SPREAD")
        encoder: Any = ray.remote(Encoder).options(num_cpus=0, scheduling_strategy="SPREAD")
        pool = EncodePool(
            ((index, chunk, work(chunk)) for index, chunk in todo),
            lambda: decoder.remote(spec, folder),
            lambda: encoder.remote(spec, tokenizer_folder),
            lambda: limits_of((workers() if callable(workers) else workers) or int(ray.cluster_resources().get("CPU", 1))),
            is_hopeless,
        )
        with nullcontext(draining) if draining else _drain_on_sigterm() as drain:
            pool.run(tell, drain)
        records = ChainMap(found, pool.records)
        if pool.failures:
            raise IncompleteError({chunks[index].name: reason for index, reason in sorted(pool.failures.items())})
    else:
        on_progress(tell.progress())
    return [records[index] for index in range(len(chunks)) if index in records]


def is_hopeless(error: BaseException) -> bool:
    """Whether an error will meet every further chunk: refused or absent storage, a full disk."""
    return isinstance(error, StorageError) or (isinstance(error, OSError) and error.errno in HOPELESS)


class _Teller:
    """Turns the pool's state into what the user is told."""

    def __init__(self, chunks: Sequence[Chunk], found: dict[int, ChunkRecord], on_progress: Callable[[Progress], None]) -> None:
        self._total, self._found, self._on_progress, self._started = source_count(chunks), found, on_progress, time.monotonic()
        self._sources = sum(len(record.sources) for record in found.values())
        self._clips = sum(record.clips for record in found.values())

    def __call__(self, state: PoolState) -> None:
        self._on_progress(self.progress(state))

    def progress(self, state: PoolState | None = None) -> Progress:
        seconds = time.monotonic() - self._started
        if state is None:
            return Progress(self._sources, self._total, self._clips, seconds, self._sources, records=self._found)
        done, clips = self._sources + state.sources, self._clips + state.clips
        records = ChainMap(self._found, state.records)
        return Progress(done, self._total, clips, seconds, self._sources, state.queues, state.sizes, state.bottleneck, records)


@contextmanager
def _drain_on_sigterm() -> Iterator[Callable[[], bool]]:
    """While inside, SIGTERM asks for an end instead of making one: yields whether it came. Leaves by SystemExit if it did."""
    came: list[float] = []

    def asked() -> bool:
        if came and time.monotonic() - came[0] > DRAIN_SECONDS:
            raise SystemExit(signal.SIGTERM)
        return bool(came)

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(time.monotonic()))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
    if came:
        raise SystemExit(signal.SIGTERM)
