"""The encode pool's driver: sources go to decoders, their pieces to encoders, finished chunks back to a decoder that writes them.

encode.py makes and runs it. Frames never pass through here, only references to them. What an actor held when it died is done
again: a source from its start, a piece by itself, for encoders keep no state.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError, RayTaskError

from cluster.encode_scaling import Limits, LoadMeter, Queues, Sizes, bottleneck, first_sizes, rescaled
from cluster.encode_tasks import Assembly, Call, Part, Piece, Task, Worker
from data_pipeline.chunks import Chunk
from data_pipeline.records import ChunkRecord
from data_pipeline.storage import FAULTS

DEATHS = 5  # actors that may die at one task before its chunk is given up
QUEUE_BYTES = 64 << 20  # of decoded frames that wait for an encoder
AHEAD = 2  # pieces an encoder is given at a time, so that the next one travels while it works
WAIT_SECONDS = 1.0  # for any call, before progress is told again
FIRST = 64  # chunks that are told as soon as they are written: someone may wait to begin on them
SCALE_SECONDS = 2.0  # between two decisions about the sizes of the pools
RETRY_SECONDS = 1.0  # after an actor could not be reached


@dataclass(frozen=True)
class PoolState:
    """What progress is made of: finished chunks, how many sources and clips they have, and the state of queues and pools."""

    records: dict[int, ChunkRecord]
    sources: int  # of chunks that have failed, too
    clips: int
    queues: Queues
    sizes: Sizes
    bottleneck: str


class EncodePool:
    """One run over some chunks, which are taken as there is room for them: (index, chunk, fingerprint of its work) each. After run(),
    `records` and `failures` say by index what came of each; nothing else is kept of a chunk that is done."""

    def __init__(
        self,
        chunks: Iterable[tuple[int, Chunk, str]],
        make_decoder: Callable[[], ActorHandle],
        make_encoder: Callable[[], ActorHandle],
        limits: Callable[[], Limits],
        fatal: Callable[[BaseException], bool],
    ) -> None:
        self.records: dict[int, ChunkRecord] = {}
        self.failures: dict[int, str] = {}
        self._sources = self._clips = 0  # of the chunks that are done
        self._chunks = iter(chunks)
        self._make = {"decoders": make_decoder, "encoders": make_encoder}
        self._limits, self._fatal = limits, fatal
        self._waiting: deque[Part] = deque()
        self._decoded: deque[Piece] = deque()
        self._complete: deque[Assembly] = deque()
        self._deaths: dict[object, int] = {}
        self._calls: dict[ray.ObjectRef, Call] = {}
        self._pools: dict[str, list[Worker]] = {"decoders": [], "encoders": []}
        self._meter, self._load_seen = LoadMeter(), "none"

    def run(self, on_progress: Callable[[PoolState], None], draining: Callable[[], bool] = lambda: False) -> None:
        """Works until every chunk has a record or a failure. While `draining` only chunks that were begun are finished."""
        self._resize(first_sizes(self._limits()))
        scaled, told, written = time.monotonic(), time.monotonic(), 0
        try:
            while True:
                if draining():
                    self._chunks = iter(())
                    self._waiting = deque(part for part in self._waiting if part.chunk.begun)
                self._dispatch()
                if not self._calls:
                    return
                before, queues = time.monotonic(), self._queues()
                ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
                if not ready:
                    ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=WAIT_SECONDS)
                for call in ready:
                    self._settle(call)
                now = time.monotonic()
                self._meter.add(queues, self._sizes(), now - before)
                if now - scaled > SCALE_SECONDS:
                    scaled = now
                    self._scale()
                if now - told > WAIT_SECONDS or not self._calls or written < len(self.records) <= FIRST:
                    told, written = now, len(self.records)
                    on_progress(self._state())
        finally:
            for worker in [*self._pools["decoders"], *self._pools["encoders"]]:
                ray.kill(worker.actor)
            self._pools, self._load_seen = {"decoders": [], "encoders": []}, "none"
            on_progress(self._state())

    def _dispatch(self) -> None:
        """Gives every free actor what there is to do: writing first, for it frees most; then what is furthest along."""
        for worker in self._pools["decoders"]:
            if worker.calls:
                continue
            if worker.holds and not self._current(worker.holds):
                worker.holds = None
            if self._complete:
                self._write(worker, self._complete.popleft())
            elif sum(piece.bytes for piece in self._decoded) >= QUEUE_BYTES:
                continue
            elif worker.holds:
                self._call(worker, worker.holds, worker.actor.more.options(num_returns=2).remote())
            elif self._waiting or self._take():
                part = self._waiting.popleft()
                part.begun = True
                start = worker.actor.start.options(num_returns=2)
                self._call(worker, part, start.remote(part.source, self._deaths.get(part.key, 0) > 0))
        for _ in range(AHEAD):
            for worker in self._pools["encoders"]:
                if self._decoded and len(worker.calls) < AHEAD:
                    piece = self._decoded.popleft()
                    self._call(worker, piece, worker.actor.encode.options(num_returns=2).remote(piece.part.source, piece.frames))

    def _take(self) -> bool:
        """The next chunk's sources wait from now on; whether there was one."""
        given = next(self._chunks, None)
        if given:
            assembly = Assembly(*given)
            assembly.parts = [Part(source, assembly) for source in assembly.content.sources]
            self._waiting += assembly.parts
        return given is not None

    def _write(self, worker: Worker, assembly: Assembly) -> None:
        outcomes, counts = [part.outcome for part in assembly.parts], [len(part.encoded) for part in assembly.parts]
        encoded = [ref for part in assembly.parts for ref in part.encoded]
        self._call(worker, assembly, [worker.actor.commit.remote(assembly.content, assembly.work, outcomes, counts, *encoded)])

    def _call(self, worker: Worker, task: Task, results: Sequence[ray.ObjectRef]) -> None:
        self._calls[results[0]] = Call(task, worker, tuple(results[1:]))
        worker.calls.append(results[0])

    def _settle(self, ref: ray.ObjectRef) -> None:
        """Takes in the answer of one call, or the fault that it ended with."""
        call = self._calls[ref]
        try:
            result = ray.get(ref)
        except ActorUnavailableError:  # the network, not the actor: it may or may not have done the work
            time.sleep(RETRY_SECONDS)
            self._again(call)
        except RayActorError:
            self._bury(call.worker)
            self._again(call)
        except (RayTaskError, ObjectLostError) as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, ObjectLostError):  # frames or latents went down with a node
                self._restart(call.task.chunk)
            elif self._fatal(cause):
                raise cause from None
            else:
                self._fail(call.task.chunk, f"{call.task.name}: {type(cause).__name__}: {_first_line(cause)}")
        else:
            self._advance(call, result)
        del self._calls[ref]
        call.worker.calls.remove(ref)

    def _bury(self, worker: Worker) -> None:
        """Puts a new actor in the place of a dead one and charges the death to what it was at, once however many calls it had."""
        if worker.dead:
            return
        worker.dead = True
        for kind, workers in self._pools.items():
            if worker in workers:
                workers[workers.index(worker)] = Worker(self._make[kind]())
        task = self._calls[worker.calls[0]].task
        if worker.holds and worker.holds is not task and self._current(worker.holds):
            self._restart_part(worker.holds)
        self._deaths[task.key] = self._deaths.get(task.key, 0) + 1
        if self._deaths[task.key] >= DEATHS:
            self._fail(task.chunk, f"{DEATHS} processes died at {task.name}")

    def _advance(self, call: Call, result: Any) -> None:
        """Moves a task whose call succeeded to its next place, unless it is void."""
        task = call.task
        if isinstance(task, Part):
            call.worker.holds = None if result.outcome else task
            FAULTS.add(result.faults)
            self._meter.waited += result.waited
            if not self._current(task):
                return
            task.outcome = result.outcome
            if result.bytes:
                task.encoded.append(None)
                self._decoded.append(Piece(task, len(task.encoded) - 1, call.results[0], result.bytes))
        elif isinstance(task, Piece):
            task.part.encoded[task.number] = call.results[0]
        else:
            self.records[task.index], faults = result
            FAULTS.add(faults)
            self._sources += len(task.content.sources)
            self._clips += self.records[task.index].clips
            task.parts.clear()  # and with them the latents
            return
        if self._current(task) and task.chunk.complete:
            self._complete.append(task.chunk)

    def _again(self, call: Call) -> None:
        """Puts the task of a call that was lost back in its queue, at the head."""
        task = call.task
        if isinstance(task, Part):
            call.worker.holds = None
        if not self._current(task):
            return
        if isinstance(task, Part):
            self._restart_part(task)
        elif isinstance(task, Piece):
            self._decoded.appendleft(task)
        else:
            self._complete.appendleft(task)

    def _restart_part(self, part: Part) -> None:
        fresh = Part(part.source, part.chunk, begun=True)
        part.chunk.parts[part.chunk.parts.index(part)] = fresh
        self._decoded = deque(piece for piece in self._decoded if piece.part is not part)
        self._waiting.appendleft(fresh)

    def _restart(self, assembly: Assembly) -> None:
        for part in reversed(assembly.parts):
            if part not in self._waiting:
                self._restart_part(part)

    def _fail(self, assembly: Assembly, reason: str) -> None:
        """Gives a chunk up; the others go on."""
        if assembly.index in self.failures:
            return
        self.failures[assembly.index] = reason
        self._sources += len(assembly.content.sources)
        self._waiting = deque(part for part in self._waiting if part.chunk is not assembly)
        self._decoded = deque(piece for piece in self._decoded if piece.chunk is not assembly)
        assembly.parts.clear()

    def _current(self, task: Task) -> bool:
        """Whether the task still counts: its chunk has not failed, its source was not begun again."""
        if task.chunk.index in self.failures:
            return False
        part = task.part if isinstance(task, Piece) else task
        return not isinstance(part, Part) or part in part.chunk.parts

    def _scale(self) -> None:
        load = self._meter.take()
        self._load_seen = bottleneck(load)
        self._resize(rescaled(self._sizes(), load, self._limits()))

    def _resize(self, sizes: Sizes) -> None:
        """Adds actors at once, and takes away those that have nothing in hand."""
        for kind, size in vars(sizes).items():
            workers = self._pools[kind]
            workers += [Worker(self._make[kind]()) for _ in range(size - len(workers))]
            for worker in [worker for worker in workers if not worker.calls and not worker.holds][: max(0, len(workers) - size)]:
                workers.remove(worker)
                ray.kill(worker.actor)

    def _sizes(self) -> Sizes:
        return Sizes(len(self._pools["decoders"]), len(self._pools["encoders"]))

    def _queues(self) -> Queues:
        tasks = [call.task for call in self._calls.values()]
        return Queues(
            waiting=len(self._waiting),
            decoding=sum(isinstance(task, Part) for task in tasks),
            decoded=len(self._decoded),
            encoding=sum(isinstance(task, Piece) for task in tasks),
            committing=sum(isinstance(task, Assembly) for task in tasks),
            held=sum(bool(worker.holds and not worker.calls) for worker in self._pools["decoders"]),
            idle=sum(not worker.calls for worker in self._pools["encoders"]),
        )

    def _state(self) -> PoolState:
        return PoolState(self.records, self._sources, self._clips, self._queues(), self._sizes(), self._load_seen)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
