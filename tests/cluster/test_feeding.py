"""What a run tells of its data while it is encoded: how ready each stage is, what the pool does, what storage answered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.encode_scaling import Queues, Sizes
from cluster.feeding import Feeding
from cluster.progress import Board
from data_pipeline.storage import FAULTS
from trainer.instruments import RunInstruments
from trainer.meter import Meter

from .test_readiness import COARSE, FIRST, Gate, feeding, recipe, until


@pytest.mark.timeout(120)
def test_each_look_tells_readiness_by_stage_the_pool_and_the_faults_of_storage(tmp_path: Path) -> None:
    config, gate = recipe(tmp_path, FIRST, COARSE), Gate(12)
    run = RunInstruments(Meter("run"), config.curriculum.stages)

    def told(name: str) -> dict[tuple[str, ...], float]:
        return {labels: value for found, labels, value in run.meter.series() if found == name}

    FAULTS.take()
    with feeding(config, gate) as feed:
        data = Feeding(feed, tmp_path, 2, Board(), run, lambda: None)
        until(lambda: feed.done(0) and feed.told and feed.told.done == 0)
        assert feed.told
        feed.told = replace(feed.told, queues=Queues(waiting=11, decoding=1), sizes=Sizes(2, 1), bottleneck="decode")
        FAULTS.add({"transient": 4})
        data.look()
        assert told("stage_readiness_ratio") == {("first",): 1.0, ("coarse",): 0.0}
        assert told("stage_ready_seconds") == {("first",): 0.0}  # of the other there is no rate yet
        assert (told("encode_queue_items")[("waiting",)], told("encode_actors")[("decoders",)]) == (11, 2)
        assert told("encode_bottleneck")[("decode",)] == 1
        gate.allow(99)
        until(lambda: feed.finished)
        data.look()
    assert told("stage_readiness_ratio") == {("first",): 1.0, ("coarse",): 1.0}
    assert told("storage_errors_total")[("transient",)] == 4
