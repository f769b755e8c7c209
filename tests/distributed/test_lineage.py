"""A fork with unchanged keys and a run that was rolled back make the same history as the run itself, by the real training process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from tests.distributed.harness import RankFailed, run_ranks
from tests.distributed.training import payload, recipe, stage, train
from trainer import lease, process
from trainer.checkpoint.commit import commits, resume_point
from trainer.commands import fork, prune, rollback, status
from trainer.config import RunConfig, dump, saved
from trainer.events import read_events
from trainer.goodput import goodput

STEPS = 12


def go_on_from_nowhere(rank: int, world: int, host: str, port: int, listener: Any, config: RunConfig, run: Path, dataset: Path) -> None:
    """A generation whose commit has gone since it was chosen."""
    told = payload(config, run, dataset) | {"commit": str(run / "checkpoints" / "step-00000004" / "0001")}
    process.run(told | {"rank": rank, "world": world, "host": host, "port": port}, lambda message: None, listener)


def test_a_generation_whose_commit_is_gone_does_not_begin_anew(tiny_dataset: Path, tmp_path: Path) -> None:
    lease.draw(tmp_path)
    with pytest.raises(RankFailed, match=r"CommitGone: the commit .*step-00000004/0001 cannot be read"):
        run_ranks(1, go_on_from_nowhere, recipe([stage("only", STEPS)], zero=0), tmp_path, tiny_dataset)
    assert "layout" not in [event["event"] for event in read_events(tmp_path)]


def train_on(run: Path, dataset: Path, config: RunConfig) -> list[float]:
    """The losses of the whole history, after a generation that has ended and whose process is gone."""
    number = lease.draw(run)
    lines: list[dict[str, Any]] = run_ranks(1, train, config, run, dataset)[0]
    path = run / "lease" / f"{number:08d}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ticks": 0}))
    return [line["loss"] for line in lines]


@pytest.fixture(scope="module")
def origin(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A run of 12 steps with permanent commits at 4, 8 and 12, and its losses."""
    root = tmp_path_factory.mktemp("runs")
    config = recipe([stage("only", STEPS)], zero=0, commit_every=4, permanent_every=4)
    config = config.model_copy(update={"run": config.run.model_copy(update={"root": str(root), "name": "origin"})})
    losses = train_on(config.run_folder, tiny_dataset, config)
    (config.run_folder / "config.yaml").write_text(dump(config))
    return config.run_folder, losses


def test_a_fork_goes_on_from_the_shared_commit_and_its_lineage_is_told(
    origin: tuple[Path, list[float]], tiny_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, losses = origin
    assert fork.command([str(run), "--step", "4", "run.name=twin"], {}) == 0
    twin = run.parent / "twin"
    point = resume_point(twin).commit
    assert point is not None
    assert point.state.step == 4
    (data,) = [file.name for file in point.files]
    assert (point.folder / data).samefile(next(folder.folder / data for folder in commits(run) if folder.state.step == 4))
    assert f"recipe={twin / 'config.yaml'}" in capsys.readouterr().out
    assert train_on(twin, tiny_dataset, saved(twin)) == losses
    told = next(event for event in read_events(twin) if event["event"] == "fork")
    assert (told["origin"], told["step"], told["changed"]) == (str(run), 4, {})
    assert commits(run)[0].state.step == STEPS


def test_a_fork_with_another_learning_rate_shares_the_past_alone(origin: tuple[Path, list[float]], tiny_dataset: Path) -> None:
    run, losses = origin
    assert fork.command([str(run), "step=8", "train.lr=1e-2", "run.name=faster"], {}) == 0
    faster = run.parent / "faster"
    found = train_on(faster, tiny_dataset, saved(faster))
    assert found[:9] == losses[:9]
    assert found[9:] != losses[9:]
    assert next(event for event in read_events(faster) if event["event"] == "fork")["changed"] == {"train.lr": [1e-3, 1e-2]}


def test_a_run_that_was_rolled_back_goes_on_as_before_and_what_is_set_aside_can_be_pruned(
    origin: tuple[Path, list[float]], tiny_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, losses = origin
    assert rollback.command([str(run), "--step", "8"], {}) == 0
    point = resume_point(run).commit
    assert point is not None
    assert point.state.step == 8
    aside = run / "set-aside" / f"{lease.current(run):04d}"
    assert [json.loads(line)["step"] for line in (aside / "metrics.jsonl").read_text().splitlines()] == [9, 10, 11, 12]
    assert sorted(path.name for path in aside.glob("step-*")) == ["step-00000012"]
    assert train_on(run, tiny_dataset, saved(run)) == losses
    thrown_away = next(event for event in read_events(run) if event["event"] == "rollback")
    assert thrown_away["recomputed"] == 4
    assert goodput(read_events(run), []).lost["recompute"] >= 0
    capsys.readouterr()
    assert prune.command([str(run), "--keep", "0"], {}) == 0
    assert aside.exists()
    assert "would delete set-aside" in capsys.readouterr().out
    assert prune.command([str(run), "--keep", "0", "--yes"], {}) == 0
    assert not aside.exists()
    assert [commit.state.step for commit in commits(run)] == [STEPS]
    assert status.command([str(run)], {}) == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--step", "5", "run.name=a"], r"--step 5: .* has those of steps .*12"),
        (["--step", "12"], "give the new run a name: run.name="),
        (["--step", "12", "model.heads=1", "run.name=a"], r"model\.heads None -> 1: the commit holds other tensors"),
        (["--step", "12", "data.fps=9", "run.name=a"], r"data\.fps 8\.0 -> 9\.0: the commit's positions are in the run's data set"),
        (["--step", "12", "curriculum.stages.0.height=64", "run.name=a"], "the stages' buckets change"),
        (["--step", "12", "run.name=origin"], "is there already: choose another run.name"),
        (["--step", "12", "train.learning_rate=1", "run.name=a"], "unknown key"),
        (["--step", "12", "run.name=a"], "is behind the last stage, nothing is left to train"),
    ],
)
def test_what_cannot_be_forked_is_refused_in_one_line(origin: tuple[Path, list[float]], arguments: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        fork.command([str(origin[0]), *arguments], {})
    assert "\n" not in str(caught.value)
