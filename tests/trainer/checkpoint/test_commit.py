"""Commits: only whole ones are chosen, stale writers are fenced off, old ones are pruned, those of other data are refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from trainer import events, lease
from trainer.checkpoint.commit import (
    MARKER,
    Commit,
    ResumePoint,
    check_ids,
    commit_folder,
    commits,
    last_commit,
    prune,
    read_commit,
    resume_point,
    write_marker,
)
from trainer.checkpoint.files import write_data
from trainer.curriculum import RunState
from trainer.guard import GuardState
from trainer.journal import Fenced, Journal
from trainer.metrics import metrics_path

STATE = RunState(samples={"5x32x32": 39}, held_out=(0.5,), skipped=(3,), guard=GuardState((1.5, 2.5), 1))


def make(run: Path, step: int, generation: int = 1, permanent: bool = False) -> Commit:
    folder = commit_folder(run, step, generation)
    files = (write_data(folder / "rank-00000.safetensors", [memoryview(b"x" * step)]),)
    commit = Commit(folder, replace(STATE, step=step), generation, "data", "recipe", "periodic", permanent, files)
    write_marker(commit, lambda: None)
    return commit


def published(run: Path, steps: int) -> None:
    metrics_path(run).write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, steps + 1)))


def test_a_commit_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = make(tmp_path, 12)
    assert last_commit(tmp_path) == written


def test_the_newest_step_wins_and_then_the_newest_generation(tmp_path: Path) -> None:
    make(tmp_path, 10, 1), make(tmp_path, 20, 1), make(tmp_path, 20, 3)
    found = last_commit(tmp_path)
    assert found is not None
    assert (found.state.step, found.generation) == (20, 3)


def without_marker(folder: Path) -> None:
    (folder / MARKER).unlink()


def with_a_torn_marker(folder: Path) -> None:
    (folder / MARKER).write_text((folder / MARKER).read_text()[:-9])


def with_a_short_file(folder: Path) -> None:
    (folder / "rank-00000.safetensors").write_bytes(b"x")


def with_a_missing_file(folder: Path) -> None:
    (folder / "rank-00000.safetensors").unlink()


def with_a_flipped_bit(folder: Path) -> None:
    (folder / "rank-00000.safetensors").write_bytes(b"x" * 19 + b"y")


DAMAGES = [without_marker, with_a_torn_marker, with_a_short_file, with_a_missing_file, with_a_flipped_bit]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_commit_is_passed_over_for_the_previous_one_and_said_so(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    make(tmp_path, 10)
    damage(make(tmp_path, 20).folder)
    published(tmp_path, 20)
    point = resume_point(tmp_path)
    assert point.commit is not None
    assert point.commit.state.step == 10
    reason = "it was not finished" if damage is without_marker else "a file is missing or not as it was written"
    assert point.passed_over == (("step-00000020/0001", reason),)


@pytest.mark.parametrize("damage", DAMAGES[1:], ids=lambda damage: damage.__name__)
def test_a_run_whose_commits_are_all_damaged_does_not_begin_anew(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    for step in (10, 20):
        damage(make(tmp_path, step).folder)
    published(tmp_path, 20)
    with pytest.raises(UserError, match="step-00000020/0001 and every other commit is damaged: restore the files"):
        resume_point(tmp_path)


def test_a_run_that_has_made_commits_never_begins_anew(tmp_path: Path) -> None:
    events.record(tmp_path, "layout", generation=1, step=0)
    commit = make(tmp_path, 10)
    published(tmp_path, 10)
    events.record(tmp_path, "commit", generation=1, step=10)
    shutil.rmtree(commit.folder)
    with pytest.raises(UserError, match="the commit of step 10 is gone, and every other one: restore checkpoints"):
        resume_point(tmp_path)


def test_a_commit_that_a_later_generation_went_back_behind_is_not_missed(tmp_path: Path) -> None:
    events.record(tmp_path, "layout", generation=2, step=0)
    events.record(tmp_path, "commit", generation=1, step=10)  # a stale writer's last words
    assert resume_point(tmp_path).commit is None


def test_what_another_process_tidies_up_or_left_behind_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = make(tmp_path, 10)
    published(tmp_path, 10)
    (tmp_path / "checkpoints" / "step-00000020").mkdir()
    (tmp_path / "checkpoints" / "step-00000030").write_text("")
    (tmp_path / "checkpoints" / "step-00000010" / "notes").mkdir()
    listed = os.scandir

    def vanishing(folder: Any) -> Any:
        if Path(folder).name == "step-00000020":
            Path(folder).rmdir()
        return listed(folder)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert resume_point(tmp_path) == ResumePoint(commit)
    assert not (tmp_path / "checkpoints" / "step-00000020").exists()


def test_commits_that_may_not_be_listed_are_not_taken_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, 10)
    monkeypatch.setattr(os, "scandir", lambda folder: (_ for _ in ()).throw(PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(PermissionError):
        resume_point(tmp_path)


def test_storage_that_cannot_be_read_for_a_moment_has_not_lost_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, 10)
    published(tmp_path, 10)

    def fails(*given: Any, **named: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    for name in ("read_text", "stat", "open"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, fails)
            with pytest.raises(OSError, match="Input/output error"):
                resume_point(tmp_path)


def test_a_stale_writer_cannot_commit_or_publish(tmp_path: Path) -> None:
    journal = Journal(tmp_path, lease.draw(tmp_path), 0, lambda message: None)
    journal.check_owner()
    lease.draw(tmp_path)
    folder = commit_folder(tmp_path, 5, 1)
    folder.mkdir(parents=True)
    with pytest.raises(Fenced, match="generation 1 no longer owns"):
        write_marker(Commit(folder, RunState(), 1, "data", "recipe", "periodic", False), journal.check_owner)
    with pytest.raises(Fenced, match="generation 1 no longer owns"):
        journal.promise("roll_back", step=0)
    assert last_commit(tmp_path) is None
    assert events.read_events(tmp_path) == []


def test_a_marker_that_a_stale_writer_wrote_in_the_moment_of_the_change_is_passed_over(tmp_path: Path) -> None:
    make(tmp_path, 10)
    events.record(tmp_path, "layout", generation=2, step=10)
    make(tmp_path, 20, generation=1)
    make(tmp_path, 15, generation=2)
    published(tmp_path, 25)
    point = resume_point(tmp_path)
    assert point.commit is not None
    assert (point.commit.state.step, point.commit.generation) == (15, 2)
    assert point.passed_over == (("step-00000020/0001", "generation 2 has taken the run back behind it"),)


def test_a_commit_ahead_of_the_metrics_is_a_stale_writers_and_passed_over(tmp_path: Path) -> None:
    make(tmp_path, 10), make(tmp_path, 20)
    published(tmp_path, 15)
    point = resume_point(tmp_path)
    assert point.commit is not None
    assert point.commit.state.step == 10
    assert point.passed_over == (("step-00000020/0001", "metrics.jsonl ends at step 15, before it"),)


def test_a_run_without_commits_starts_at_the_beginning(tmp_path: Path) -> None:
    assert resume_point(tmp_path).commit is None


def test_pruning_keeps_the_newest_and_some_permanent_ones_and_nothing_torn(tmp_path: Path) -> None:
    made = [make(tmp_path, step, permanent=step in (1, 2, 4)) for step in (1, 2, 3, 4, 5, 6)]
    torn = commit_folder(tmp_path, 5, 0)
    torn.mkdir()
    prune(tmp_path, made[-1], keep=2)
    assert [commit.state.step for commit in commits(tmp_path)] == [6, 4, 2]
    assert not torn.exists()


def test_pruning_never_deletes_the_commit_just_made_though_the_run_was_further_before(tmp_path: Path) -> None:
    make(tmp_path, 20, generation=1, permanent=True), make(tmp_path, 30, generation=3)
    made = make(tmp_path, 15, generation=2)
    prune(tmp_path, made, keep=2)
    assert [(commit.state.step, commit.generation) for commit in commits(tmp_path)] == [(30, 3), (15, 2)]


def test_a_commit_of_other_data_or_another_recipe_is_refused_in_one_line(tmp_path: Path) -> None:
    commit = make(tmp_path, 3)
    check_ids(commit, ["data"], "recipe")
    with pytest.raises(UserError, match=r"step-00000003/0001 was trained on data set data, not on other: .*run\.name"):
        check_ids(commit, ["other"], "recipe")
    with pytest.raises(UserError, match=r"was made by recipe recipe, not by other: .*run\.name"):
        check_ids(commit, ["data"], "other")


def test_a_commit_of_another_version_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    marker = make(tmp_path, 3).folder / MARKER
    marker.write_text(marker.read_text().replace('"format": 2', '"format": 9'))
    with pytest.raises(UserError, match=r"commit\.json is of format 9, this version reads 2"):
        read_commit(marker.parent)
