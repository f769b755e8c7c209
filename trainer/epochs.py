"""Which generation of a growing data set the next epoch of a bucket reads: decided by rank 0 before the epoch's first step, written
down before anyone acts on it, and followed by all ranks and by every later generation of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from data_pipeline import manifest as manifests
from data_pipeline.epochs import Epochs
from data_pipeline.loader import Dataset, SampleSet
from trainer import events, lease
from trainer.journal import Fenced

EVENT = "epoch"


def replayed(known: dict[str, Epochs], happened: Sequence[dict[str, Any]]) -> dict[str, Epochs]:
    """What a commit knows, and what was decided after it. Of two decisions about one epoch the newer generation's holds: the other's
    came too late."""
    decisions: dict[tuple[str, int], dict[str, Any]] = {}
    for event in happened:
        if event["event"] == EVENT:
            key = event["bucket"], event["epoch"]
            decisions[key] = max(decisions.get(key, event), event, key=lambda decision: decision["generation"])
    table = dict(known)
    for (bucket, epoch), decision in sorted(decisions.items()):
        epochs = table.get(bucket, Epochs())
        if epochs.count == epoch:
            table[bucket] = epochs.then(decision["data_generation"], decision["samples"], decision["last"])
    return table


@dataclass(frozen=True)
class Book:
    """Where the decisions of a run about a data set are made and written. generation: the run's that decides."""

    run: Path
    generation: int
    dataset: Dataset

    def settle(self, bucket: str, data: SampleSet, stop: int) -> None:
        """Until every epoch up to position `stop` of a bucket's samples is decided. All ranks call it at the same place."""
        while data.epochs.decided < stop:
            told = [self.decide(bucket, data) if dist.get_rank() == 0 else None]
            dist.broadcast_object_list(told)
            assert told[0] is not None, "rank 0 has decided"
            data.epochs = told[0]

    def decide(self, bucket: str, data: SampleSet) -> Epochs:
        """The next epoch reads what is encoded by now; when that is all, so do those after it. Raises Fenced."""
        newest = manifests.read(self.dataset.folder)
        samples, last = newest.clips(data.bucket.id, "train"), not newest.pending
        decided = data.epochs.then(newest.generation, samples, last)
        if not lease.holds(self.run, self.generation):
            raise Fenced(f"generation {self.generation} no longer owns {self.run}")
        place = {"bucket": bucket, "epoch": data.epochs.count, "data_generation": newest.generation, "samples": samples, "last": last}
        events.record(self.run, EVENT, durably=True, generation=self.generation, **place)
        return decided
