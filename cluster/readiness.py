"""The data of a run, made ready while it trains: encodes what the current stage needs, then what later ones need, with what it is given.

The controller makes a Feed, asks it whether a stage may begin, and tells it how much it may use; the trainers read the generations that
it writes. It decides nothing about seats.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from cluster import dataset as datasets
from cluster.checks import check_samples, shortage
from cluster.dataset import EncodeJob
from cluster.encode import Progress, encode_dataset
from data_pipeline import growth
from data_pipeline.chunks import ChunkPlan, plan_chunks
from data_pipeline.loader import Dataset
from data_pipeline.manifest import Manifest
from data_pipeline.records import ChunkRecord
from trainer.config import RunConfig
from trainer.curriculum import Latents, Stage
from trainer.sizing import latents_of

PAUSE_SECONDS = 0.05
CLOSE_SECONDS = 5.0  # for chunks that were begun, when the run is stopped


class Resting(Exception):
    """Encoding is to stop at once: what it had in hand is done again later, which costs less than trainers that start beside it."""


@dataclass
class Supply:
    """One data set on its way. stages: those that train on it; order: its chunks as they are encoded; newest: its last generation;
    there: how many chunks from the first one on this call of the encoder has told of, without a gap."""

    job: EncodeJob
    stages: list[Stage]
    order: ChunkPlan
    newest: Dataset | None = None
    tried: int = 0  # chunks with which it could not begin yet
    there: int = 0
    progress: Progress | None = None

    @property
    def complete(self) -> bool:
        return self.newest is not None and not self.newest.manifest.pending


@dataclass(frozen=True)
class Readiness:
    """How far a stage's data is: the fraction of its sources that is encoded, and the seconds to go at the present rate."""

    fraction: float
    eta: float


@dataclass
class Feed:
    """All data sets of a run. Encoding goes on in a thread from `start` to `close`, on `cpus`; its actors have the lowest
    priority, so that they take what trainers on the same CPUs leave over. What has failed there is raised by `poll` and `ready`.

    told: how far the data set that is being encoded is, None before anything is.
    """

    config: RunConfig
    jobs: Mapping[Latents, EncodeJob]
    cpus: int
    encode: Callable[..., list[ChunkRecord]] = encode_dataset
    told: Progress | None = None
    supplies: list[Supply] = field(init=False)

    def __post_init__(self) -> None:
        stages = self.config.curriculum.stages
        self._latents = [latents_of(self.config, stage) for stage in stages]
        self.supplies = [
            Supply(
                job,
                [stage for stage, own in zip(stages, self._latents, strict=True) if own == latents],
                growth.encode_order(plan_chunks(job.sources.sources, job.spec), self.config.train.evaluate_samples),
                datasets.opened(job),
            )
            for latents, job in self.jobs.items()
        ]
        self._news = [supply for supply in self.supplies if supply.newest]
        self._failure: BaseException | None = None
        self._focus, self._closed = 0, float("inf")
        self._thread = threading.Thread(target=self._work, name="feed", daemon=True)

    def start(self) -> Feed:
        """Raises UserError when a data set that is complete holds too little for one of its stages."""
        for supply in self.supplies:
            if supply.newest and supply.complete:
                check_samples(supply.stages, supply.newest.manifest)
        self._thread.start()
        return self

    def poll(self) -> list[tuple[EncodeJob, Dataset]]:
        """The data sets that were begun or completed since the last call. Raises what encoding has failed with: UserError above all."""
        if self._failure:
            raise self._failure
        news, self._news = self._news, []
        return [(supply.job, supply.newest) for supply in news if supply.newest]

    def ready(self, stage: int) -> Dataset | None:
        """The newest generation of a stage's data set, None while it holds too little for the stage. From now on it is encoded before
        all others."""
        if self._failure:
            raise self._failure
        supply = self._supply(stage)
        self._focus = self.supplies.index(supply)
        newest = supply.newest
        if newest is None or (not supply.complete and shortage(self.config.curriculum.stages[stage], newest.manifest)):
            return None
        return newest

    def progress(self, stage: int) -> Readiness:
        """How far the data of a stage is."""
        supply = self._supply(stage)
        if supply.complete:
            return Readiness(1.0, 0.0)
        told = supply.progress
        return Readiness(told.done / max(told.total, 1), told.eta) if told else Readiness(0.0, float("inf"))

    def done(self, stage: int) -> bool:
        """Whether all the data of a stage is encoded."""
        return self._supply(stage).complete

    @property
    def finished(self) -> bool:
        """Whether all data of all stages is encoded."""
        return all(supply.complete for supply in self.supplies)

    def datasets(self) -> list[Dataset]:
        """Every data set that there is something of."""
        return [supply.newest for supply in self.supplies if supply.newest]

    def give(self, cpus: int) -> None:
        """What encoding may use from now on, at least a decoder and an encoder; without CPUs it lets go of everything and waits."""
        self.cpus = cpus

    def close(self) -> None:
        """Finish the chunks that were begun, for CLOSE_SECONDS at most, and end the thread. The others are left for the next start."""
        self._closed = time.monotonic()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS + 5)  # fitting a tokenizer knows no end before its own

    def _supply(self, stage: int) -> Supply:
        return self.supplies[list(self.jobs).index(self._latents[stage])]

    def _next(self) -> Supply | None:
        """What to encode now: the data of the stage that was asked for last, then of those after it, then what is left of earlier ones."""
        turn = [*self.supplies[self._focus :], *self.supplies[: self._focus]]
        return next((supply for supply in turn if not supply.complete), None)

    def _work(self) -> None:
        try:
            while (supply := self._next()) and self._closed == float("inf"):
                if self.cpus:
                    self._encode(supply)
                else:
                    time.sleep(PAUSE_SECONDS)
        except BaseException as error:
            self._failure = error

    def _encode(self, supply: Supply) -> None:
        """Encode a data set until it is complete or another one is needed sooner."""
        job = supply.job

        def draining() -> bool:
            if time.monotonic() > self._closed + CLOSE_SECONDS:
                raise InterruptedError(f"encoding of {job.folder} was stopped")
            if not self.cpus:
                raise Resting
            return self._closed < float("inf") or self._next() is not supply

        def on_progress(progress: Progress) -> None:
            supply.progress = self.told = replace(progress, total=supply.order.count(), records={})
            self._advance(supply, progress.records)

        tokenizer = datasets.make_tokenizer(job)
        fraction = self.config.data.start_fraction
        supply.there = 0
        order = supply.order if supply.newest else supply.order[: growth.first_chunks(supply.order, supply.tried, fraction)]
        with contextlib.suppress(Resting):
            given = (order, job.spec, tokenizer, job.folder, lambda: max(self.cpus, 1), on_progress)
            self.encode(*given, draining=draining)

    def _advance(self, supply: Supply, records: Mapping[int, ChunkRecord]) -> None:
        """Write the next generation if it is time for it. The first one is as small as may be, so that how fast encoding is does not
        change it, nor the statistics that all later ones keep."""
        there = supply.there = growth.prefix(records, supply.there, len(supply.order))
        if supply.newest is None:
            while supply.tried < there and not supply.newest:
                supply.tried += 1
                if growth.may_begin(supply.order, supply.tried, self.config.data.start_fraction):
                    self._begin(supply, [records[index] for index in range(supply.tried)])
        while supply.newest and growth.worth_a_generation(supply.order, there, supply.newest.manifest):  # again where another was first
            pending = supply.order.count() - supply.order.count(there)
            encoded = [records[index] for index in range(there)]
            made = datasets.next_manifest(supply.job, supply.newest.manifest, encoded, pending)
            if pending and not growth.holds(made, supply.newest.manifest):
                return
            self._publish(supply, made)

    def _begin(self, supply: Supply, records: list[ChunkRecord]) -> None:
        """The first generation, if its first stage can begin on it."""
        pending = supply.order.count() - supply.order.count(len(records))
        made = datasets.next_manifest(supply.job, None, records, pending)
        if not made.pending or not shortage(supply.stages[0], made):
            self._publish(supply, made)

    def _publish(self, supply: Supply, made: Manifest) -> None:
        written = datasets.write_generation(supply.job, made)
        if not written.manifest.pending:
            check_samples(supply.stages, written.manifest)  # before a stage can begin on what is too little for it
        begun, supply.newest = supply.newest is None, written
        if begun or supply.complete:
            self._news = [*self._news, supply]
