"""The encode pool: chunks of sources go to Ray actors, which write shards; each ends with a record or with a reason.
The commands call encode_dataset. What a chunk is and how it is encoded belongs to data_pipeline."""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from data_pipeline.encode import Chunk, encode_chunk
from data_pipeline.errors import UserError
from data_pipeline.records import ChunkRecord
from data_pipeline.spec import EncodeSpec
from data_pipeline.text import load_text
from data_pipeline.tokenizers import load_tokenizer

DEATHS = 3  # encoders that may die on a chunk before it is given up
PROGRESS_SECONDS = 1.0
RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class Progress:
    """done, total: sources; clips: written so far; seconds: since the start."""

    done: int
    total: int
    clips: int
    seconds: float

    @property
    def rate(self) -> float:
        """Sources per second."""
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta(self) -> float:
        """Seconds to go at this rate; infinite before the first chunk is done."""
        return self.seconds / self.done * (self.total - self.done) if self.done else float("inf")


class IncompleteError(UserError):
    """Some chunks could not be encoded. failures: reason by chunk name. What was encoded is kept for the next try."""

    def __init__(self, failures: Mapping[str, str]) -> None:
        self.failures = dict(failures)
        listed = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
        super().__init__(f"{len(failures)} chunks were not encoded, run again to retry them: {listed}")


class Encoder:
    """A Ray actor that encodes one chunk at a time."""

    def __init__(self, spec: EncodeSpec, tokenizer_folder: Path, folder: Path) -> None:
        self._spec = spec
        self._folder = folder
        self._tokenizer = load_tokenizer(tokenizer_folder)
        self._text = load_text(tokenizer_folder, spec)

    def encode(self, chunk: Chunk, careful: bool) -> ChunkRecord:
        return encode_chunk(chunk, self._spec, self._tokenizer, self._text, self._folder, careful)


def encode_dataset(
    chunks: Sequence[Chunk],
    spec: EncodeSpec,
    tokenizer_folder: Path,
    folder: Path,
    workers: int,
    on_progress: Callable[[Progress], None],
) -> list[ChunkRecord]:
    """Encode `chunks` into `folder` with `workers` actors; returns their records in the order of the chunks.

    Each actor keeps one CPU busy but reserves none, so `workers` is the number of CPUs that the caller has to give.
    The paths must be visible to every node. Chunks that are finished already cost nothing (encode_chunk knows them).
    Raises IncompleteError that lists every chunk without a record, after all the others are done; UserError when the
    tokenizer cannot be loaded.
    """
    load_tokenizer(tokenizer_folder)  # once here, where its error reaches the user as one line
    encoder: Any = ray.remote(Encoder).options(num_cpus=0, scheduling_strategy="SPREAD")
    records, failures = work_off(chunks, lambda: encoder.remote(spec, tokenizer_folder, folder), min(workers, len(chunks)), on_progress)
    if failures:
        raise IncompleteError({chunks[index].name: reason for index, reason in sorted(failures.items())})
    return [records[index] for index in range(len(chunks))]


def work_off(
    chunks: Sequence[Chunk],
    make: Callable[[], ActorHandle],
    workers: int,
    on_progress: Callable[[Progress], None],
) -> tuple[dict[int, ChunkRecord], dict[int, str]]:
    """Give the chunks one by one to `workers` actors from make(). Returns (records, reasons why not) by chunk index.

    An actor holds one chunk at a time, so a death is charged to the right one. A dead one is replaced and its chunk
    tried again, carefully: that finds the source that kills and leaves it out. A chunk that kills nevertheless fails.
    """
    records: dict[int, ChunkRecord] = {}
    failures: dict[int, str] = {}
    deaths: Counter[int] = Counter()
    waiting = deque(range(len(chunks)))
    idle = [make() for _ in range(workers)]
    running: dict[ray.ObjectRef, tuple[int, ActorHandle]] = {}
    started = time.monotonic()
    try:
        while waiting or running:
            while waiting and idle:
                index, actor = waiting.popleft(), idle.pop()
                running[actor.encode.remote(chunks[index], deaths[index] > 0)] = index, actor
            ready, _ = ray.wait(list(running), num_returns=1, timeout=PROGRESS_SECONDS)
            for call in ready:
                index, actor = running.pop(call)
                try:
                    records[index] = ray.get(call)
                except ActorUnavailableError:  # the network, not the actor
                    time.sleep(RETRY_SECONDS)
                    waiting.appendleft(index)
                except RayActorError:
                    actor = make()
                    deaths[index] += 1
                    if deaths[index] < DEATHS:
                        waiting.appendleft(index)
                    else:
                        sources = chunks[index].sources
                        failures[index] = f"{DEATHS} encoders died on {sources[0].name} to {sources[-1].name}"
                except RayTaskError as error:
                    failures[index] = f"{type(error.cause).__name__}: {_first_line(error.cause)}"
                idle.append(actor)
            on_progress(_progress(chunks, records, failures, time.monotonic() - started))
    finally:
        for actor in [*idle, *(actor for _, actor in running.values())]:
            ray.kill(actor)
    return records, failures


def _progress(chunks: Sequence[Chunk], records: Mapping[int, ChunkRecord], failures: Mapping[int, str], seconds: float) -> Progress:
    return Progress(
        done=sum(len(chunks[index].sources) for index in (*records, *failures)),
        total=sum(len(chunk.sources) for chunk in chunks),
        clips=sum(record.clips for record in records.values()),
        seconds=seconds,
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
