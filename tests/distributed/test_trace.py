"""profile.steps: a trace per rank of the steps asked for, with the time that collectives took, linked in the report."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

from tests.distributed.test_parity import train_on
from tests.distributed.training import recipe, stage
from trainer.events import read_events
from trainer.inspection import report
from trainer.trace import communication_seconds


def test_every_rank_leaves_a_trace_of_the_steps_asked_for(tiny_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = recipe([stage("short", 5)], profile={"steps": "2..3"})
    lines = train_on(2, run, tiny_dataset, config)
    names = ["steps-2-3-rank-00000.json.gz", "steps-2-3-rank-00001.json.gz"]
    assert sorted(path.name for path in (run / "profile").iterdir()) == names
    for name in names:
        trace = json.loads(gzip.decompress((run / "profile" / name).read_bytes()))
        assert {"gloo:all_reduce", "aten::linear"} <= {event.get("name") for event in trace["traceEvents"]}
    (told,) = [event for event in read_events(run) if event["event"] == "profile"]
    assert told["steps"] == [2, 3]
    assert 0 < told["communication_seconds"] < lines[1]["step_seconds"] + lines[2]["step_seconds"]
    page = report.write(run).read_text()
    assert 'href="profile/"' in page
    assert names[0] in page


def test_a_stage_that_ends_before_the_steps_leaves_what_was_recorded(tiny_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_on(1, run, tiny_dataset, recipe([stage("short", 3)], profile={"steps": "3..9"}))
    assert [path.name for path in (run / "profile").iterdir()] == ["steps-3-3-rank-00000.json.gz"]


def test_collectives_that_overlap_are_counted_once() -> None:
    spans = [("gloo:all_reduce", 0, 4e6), ("gloo:broadcast", 2e6, 5e6), ("aten::mm", 5e6, 9e6), ("ncclDevKernel_AllGather", 9e6, 10e6)]
    recorded = [SimpleNamespace(name=name, time_range=SimpleNamespace(start=start, end=end)) for name, start, end in spans]
    assert communication_seconds(recorded) == 6.0
