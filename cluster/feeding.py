"""A run and its feed: waits for a stage's data, tells what there is by now, and leaves to encoding what the trainers do not use.
run.py calls it from the one thread that steers the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from cluster import summary
from cluster.encode import Progress
from cluster.progress import Board
from cluster.readiness import Feed
from data_pipeline.loader import Dataset
from data_pipeline.storage import FAULTS
from trainer import events
from trainer.instruments import RunInstruments

T = TypeVar("T")
POLL_SECONDS = 0.05
START_SECONDS = 60.0  # that trainers may need for their start
TOLD_SECONDS = 1.0  # of waiting that are worth an event


class Stopped(Exception):
    """Somebody asked the run to stop."""


class Feeding:
    """cpus: all that the run has; check: raises Stopped once somebody has asked the run to stop."""

    def __init__(self, feed: Feed, folder: Path, cpus: int, board: Board, instruments: RunInstruments, check: Callable[[], None]) -> None:
        self.feed, self._folder, self._cpus = feed, folder, cpus
        self._board, self._instruments, self._check = board, instruments, check
        self._shown: Progress | None = None
        self._waits: list[dict[str, Any]] = []
        self._rests_until = 0.0

    @property
    def origins(self) -> list[str]:
        """The data sets that the run has, as its commits name them."""
        return [dataset.origin for dataset in self.feed.datasets()]

    def dataset(self, stage: int) -> Dataset:
        """The data of a stage, as soon as it may begin; from then on encoding rests until the trainers have started (see `share`), which
        takes all that they have. Raises UserError when it never can, Stopped."""
        self.share(0)
        found = self._until(lambda: self.feed.ready(stage), "data")
        self.feed.give(0)
        self._rests_until = time.monotonic() + START_SECONDS
        return found

    def rest(self) -> None:
        """Wait until the last video has its outcome."""
        self._until(lambda: self.feed.finished or self.look(), "data")
        self.look()

    def share(self, used: int) -> None:
        """Trainers use so many of the CPUs from now on, encoding may have the others; it always keeps a decoder and an encoder."""
        self.feed.give(max(self._cpus - used, 1))

    def look(self) -> None:
        """Tell what has come since the last look, once the run has a folder. Raises what encoding has failed with."""
        self._progress()
        if not self.feed.cpus and time.monotonic() > self._rests_until:
            self.share(self._cpus)
        while self._waits:
            events.record(self._folder, "wait", **self._waits.pop(0))
        for job, dataset in self.feed.poll():
            manifest = dataset.manifest
            data = {"dataset": dataset.origin, "data_folder": str(dataset.folder), "data_generation": manifest.generation}
            events.record(self._folder, "data", **data, pending=manifest.pending, sources=asdict(manifest.sources))
            for line in summary.dataset_lines(job, dataset, reused=self.feed.told is None):
                self._board.say(line)
            if not manifest.pending:
                self._instruments.dataset(*summary.dataset_counts(dataset))

    def _progress(self) -> None:
        told, instruments, stages = self.feed.told, self._instruments, self.feed.config.curriculum.stages
        if told and told is not self._shown:
            self._shown = told
            instruments.encoding(told.done, told.total, told.clips)
            instruments.pool(vars(told.queues), vars(told.sizes), told.bottleneck)
        ready = [self.feed.progress(index) for index in range(len(stages))]
        instruments.readiness({stage.name: (known.fraction, known.eta) for stage, known in zip(stages, ready, strict=True)})
        instruments.storage(FAULTS.take())

    def _until(self, there: Callable[[], T | None], what: str) -> T:
        started = time.monotonic()
        while (found := there()) is None:
            self._check()
            self._progress()
            if self._shown:
                self._board.encoding(self._shown)
            time.sleep(POLL_SECONDS)
        if (seconds := time.monotonic() - started) > TOLD_SECONDS:
            self._waits.append({"what": what, "seconds": round(seconds, 3)})
        return found
