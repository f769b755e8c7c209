"""metrics.jsonl and events.jsonl: the fixed names, and the cut back to a commit."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from trainer import events
from trainer.metrics import TAIL_BYTES, MetricsLog, StepMetrics, cut_back, last_line, last_step, metrics_path, read_metrics

FIXED = [
    *("step", "stage", "loss", "loss_by_frame", "grad_norm", "lr", "samples_consumed", "epoch", "tokens", "supervised_tokens"),
    *("world_size", "generation", "dp", "tp", "sp", "zero", "micro_batch", "step_seconds", "data_seconds", "checkpoint_seconds"),
    *("tokens_per_second", "supervised_tokens_per_second", "mfu", "memory_bytes", "skipped"),
]
ADDED = ["loss_by_source", "recompiles"]


def test_the_field_names_are_the_promised_ones() -> None:
    assert [field.name for field in fields(StepMetrics)] == FIXED + ADDED


def test_a_restart_cuts_back_to_its_commit_and_drops_a_torn_line(tmp_path: Path) -> None:
    lines = [{"step": step, "step_seconds": 2.0, "data_seconds": 0.5} for step in (1, 2, 3, 4)]
    metrics_path(tmp_path).write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "lo')
    assert cut_back(tmp_path, 3, lambda: None) == (2, 2.5)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]


def test_a_run_without_metrics_has_none(tmp_path: Path) -> None:
    assert cut_back(tmp_path, 0, lambda: None) == (0, 0.0)
    assert read_metrics(tmp_path) == []


def test_no_commit_follows_steps_that_went_to_a_file_that_is_not_there_any_more(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.sync()
    cut_back(tmp_path, 0, lambda: None)  # a newer generation's
    with pytest.raises(OSError, match="another process has replaced the file"):
        log.sync()


def test_events_are_appended_with_their_time(tmp_path: Path) -> None:
    events.record(tmp_path, "start", dataset="x")
    events.record(tmp_path, "finish", step=3)
    first, second = events.read_events(tmp_path)
    assert (first["event"], first["dataset"], second["step"]) == ("start", "x", 3)
    assert first["time"] <= second["time"]


def test_what_a_restart_went_back_behind_no_longer_stands() -> None:
    def event(kind: str, step: int) -> dict[str, object]:
        return {"event": kind, "step": step}

    told = [event("layout", 0), event("evaluation", 4), event("commit", 4), event("evaluation", 8), event("promotion", 9)]
    again = [event("layout", 4), event("evaluation", 8)]
    assert events.standing([*told, *again]) == [event("layout", 0), event("evaluation", 4), event("commit", 4), *again]


def test_the_last_step_is_read_from_the_end_of_the_file(tmp_path: Path) -> None:
    assert (last_step(tmp_path), last_line(tmp_path)) == (0, {})
    lines = [json.dumps({"step": step, "stage": "only"}) + "\n" for step in range(1, TAIL_BYTES // 8)]
    metrics_path(tmp_path).write_text("".join(lines) + '{"step": 9')
    assert last_line(tmp_path) == {"step": len(lines), "stage": "only"}
    assert last_step(tmp_path) == len(lines)
