"""What `status` and `runs` say of a run: all from its folder, whoever steers it, whether it runs, has ended or has died."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from trainer import events, lease
from trainer.commands import rollback, runs
from trainer.commands import status as command
from trainer.config import dump, load
from trainer.metrics import metrics_path
from trainer.status import SILENT_SECONDS, is_live, overview, status


def line(step: int, stage: str) -> str:
    told = {"step": step, "stage": stage, "loss": 1 / step, "tokens": 100, "world_size": 2, "checkpoint_seconds": 0.0}
    return json.dumps(told | {"step_seconds": 0.5, "data_seconds": 0.5}) + "\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two stages that is steered by this process and stands at step 5, the first of its second stage."""
    stages = [
        {"name": name, "frames": 5, "height": 64, "width": 64, "tokens_per_step": 100, "promotion": {"max_steps": 4}} for name in "ab"
    ]
    config = load([f"run.root={tmp_path}", "run.name=mine", f"curriculum.stages={json.dumps(stages)}"])
    folder = config.run_folder
    lease.draw(folder)
    (folder / "config.yaml").write_text(dump(config))
    for kind, fields in STORY:
        events.record(folder, kind, **fields)
    metrics_path(folder).write_text("".join(line(step, "a" if step < 5 else "b") for step in range(1, 6)) + '{"step": 6, "sta')
    return folder


LAYOUT: dict[str, Any] = {"stage": "a", "dp": 2, "tp": 1, "sp": 1, "zero": 1, "micro_batch": 8, "accumulation": 1, "recomputed": 0}
STORY: list[tuple[str, dict[str, Any]]] = [
    ("start", {}),
    ("generation", {"generation": 1}),
    ("layout", {"step": 0, **LAYOUT}),
    ("failure", {"generation": 1, "cause": "signal", "reason": "rank 1 was killed by SIGKILL"}),
    ("generation", {"generation": 2}),
    ("layout", {"step": 0, **LAYOUT}),
    ("evaluation", {"stage": "a", "step": 4, "held_out_loss": 0.25}),
    ("commit", {"step": 4}),
    ("promotion", {"stage": "a", "step": 4, "reason": "max_steps 4"}),
    ("data", {"dataset": "d", "pending": 6, "sources": {"total": 2}}),
    ("data", {"dataset": "d", "pending": 4, "sources": {"total": 4}}),
]


def told(run: Path) -> dict[str, Any]:
    return status(run, load([f"recipe={run / 'config.yaml'}"]).curriculum.stages, events.read_events(run)[-1]["time"])


def test_a_live_run_tells_where_it_stands_and_how_long_it_takes(run: Path) -> None:
    found = told(run)
    assert (found["state"], found["step"], found["held_out_loss"], found["generation"]) == ("running", 5, 0.25, 2)
    assert (found["layout"]["dp"], found["world"], found["commit"]["step"], found["step_seconds"]) == (2, 2, 4, 1.0)
    first, second = found["stages"]
    assert (first["state"], first["eta_seconds"], first["ended"]) == ("done", 0.0, "max_steps 4")
    assert (second["state"], second["steps"], second["eta_seconds"], second["readiness"]) == ("training", 1, 3.0, 0.5)
    assert [failure["cause"] for failure in found["failures"]] == ["signal"]
    assert sum(found["goodput"]["lost"].values()) + found["goodput"]["productive"] == pytest.approx(found["goodput"]["wall"])


def test_the_command_says_the_same_in_words_and_as_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.command([str(run)], {}) == 0
    said = capsys.readouterr().out
    for words in (
        "running",
        "step 5, 1 s per step",
        "dp 2",
        "a: 4/4 steps, done (max_steps 4)",
        "b: 1/4 steps, at most 0:03 to go, data 50 %",
    ):
        assert words.replace(" %", "%") in said
    assert "rank 1 was killed by SIGKILL" in said
    assert command.command([str(run), "--json"], {}) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 5


def test_a_run_has_finished_failed_or_stopped_when_nobody_steers_it(run: Path) -> None:
    path = run / "lease" / "00000001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ticks": 0}))
    assert told(run)["state"] == "stopped"
    events.record(run, "failure", generation=3, reason="out of memory", cause="out_of_memory")
    assert told(run)["state"] == "failed"
    events.record(run, "finish", step=5)
    assert told(run)["state"] == "finished"


def test_a_process_on_another_host_is_believed_while_it_is_heard_of(run: Path) -> None:
    path = run / "lease" / "00000001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "elsewhere"}))
    now = metrics_path(run).stat().st_mtime
    assert is_live(run, now + 1)
    assert not is_live(run, now + SILENT_SECONDS + 60)


def test_a_process_on_another_host_that_encodes_in_silence_is_heard_of_by_its_lease(run: Path) -> None:
    path = run / "lease" / "00000001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "elsewhere"}))
    for written in (metrics_path(run), run / "events.jsonl", path):
        os.utime(written, (1e9, 1e9))
    assert not is_live(run, time.time())
    lease.renew(run, 1)
    assert is_live(run, time.time())
    assert not is_live(run, time.time() + SILENT_SECONDS + 60)


def test_runs_lists_them_with_state_step_and_loss(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = run.parent / "another"
    new.mkdir()
    (new / "config.yaml").write_text((run / "config.yaml").read_text())
    assert runs.command([f"run.root={run.parent}"], {}) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["run", "state", "stage", "step"]
    assert first.split()[:4] == ["another", "new", "-", "0"]
    assert second.split()[:5] == ["mine", "running", "b", "5", "0.2500"]
    assert overview(run, metrics_path(run).stat().st_mtime)["step"] == 5


def test_bad_input_is_one_line(run: Path, tmp_path: Path) -> None:
    for call, reason in (
        (lambda: command.command([str(run.parent / "min")], {}), "is no run's folder: it has no config.yaml; runs there: mine"),
        (lambda: command.command([str(run), "--watch", "0"], {}), "--watch 0: give seconds above 0"),
        (lambda: runs.command([f"run.root={tmp_path / 'none'}"], {}), "there is no run in this folder"),
        (lambda: rollback.command([str(run), "--step", "4"], {}), "is live: stop it first"),
        (lambda: command.command([], {}), "the following arguments are required: run"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            call()
        assert "\n" not in str(caught.value)
