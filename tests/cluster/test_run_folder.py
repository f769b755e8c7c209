"""Who may use a run's folder: everything that is refused is refused in one line, before anything is written."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster import run_folder
from cluster.session import REPOSITORY
from data_pipeline.errors import UserError
from trainer import events, lease
from trainer.config import RunConfig, load, saved

pytestmark = pytest.mark.timeout(60)


def recipe(root: Path | str, *arguments: str) -> RunConfig:
    return load([f"run.root={root}", "run.name=mine", *arguments])


def refusal(config: RunConfig, inside_job: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        run_folder.check(config, inside_job)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def made(root: Path, *arguments: str) -> RunConfig:
    """The recipe of a run that a process which has ended made."""
    config = recipe(root, *arguments)
    code = (
        "import sys; from cluster import run_folder as f; from trainer.config import load; "
        "recipe = load(sys.argv[1:]); f.take(recipe); f.keep_config(recipe)"
    )
    words = [f"run.root={root}", "run.name=mine", *arguments]
    subprocess.run([sys.executable, "-c", code, *words], cwd=REPOSITORY, check=True, timeout=50)
    return config


def everything(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else b"" for path in root.rglob("*")}


def test_a_new_folder_is_free_and_checking_leaves_nothing(tmp_path: Path) -> None:
    run_folder.check(recipe(tmp_path / "runs"), inside_job=False)
    run_folder.check(recipe(tmp_path / "runs"), inside_job=True)
    assert everything(tmp_path) == {}


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    run_folder.check(recipe(tmp_path), inside_job=False)


def test_a_run_that_ended_can_be_continued_by_its_recipe_and_by_free_keys(tmp_path: Path) -> None:
    config = made(tmp_path)
    before = everything(tmp_path)
    run_folder.check(config, inside_job=False)
    run_folder.check(recipe(tmp_path, "cluster.workers=1", "train.commit_every=3"), inside_job=False)
    assert everything(tmp_path) == before


def test_another_recipe_is_refused_by_key_and_values(tmp_path: Path) -> None:
    made(tmp_path)
    assert refusal(recipe(tmp_path, "train.lr=0.5")).startswith(
        f"{tmp_path / 'mine'} was made by another recipe: train.lr 0.002 -> 0.5; start it with the old values, choose another run.name"
    )


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.jpg").touch()
    assert f"{tmp_path / 'mine'} is not a run's folder: it has no config.yaml" in refusal(recipe(tmp_path))


def test_a_relative_root_is_refused_inside_a_job_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(recipe("runs"), inside_job=True).startswith("run.root=runs is relative inside a Ray job")
    run_folder.check(recipe("runs"), inside_job=False)


def test_a_run_whose_owner_lives_is_refused_by_process(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    folder, number = run_folder.take(config)
    assert (folder, number) == (tmp_path / "mine", 1)
    with pytest.raises(UserError, match=f"run {folder} is live in process {os.getpid()} on {socket.gethostname()}"):
        run_folder.take(config)
    assert lease.current(folder) == 1


def test_who_is_started_in_the_place_of_an_owner_takes_the_run_over(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    run_folder.take(config)
    assert run_folder.take(config, restarted=True)[1] == 2


def test_a_run_that_has_come_to_nothing_leaves_no_folder_and_one_that_has_not_its_config(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    number = run_folder.take(config)[1]
    run_folder.note_residence(config, "host:1", None)
    assert run_folder.residence(config) == run_folder.Residence("host:1", socket.gethostname(), None)
    run_folder.give_back(config, 0)
    run_folder.give_back(config, number + 1)
    assert run_folder.residence(config), "another's run is left alone"
    run_folder.give_back(config, number)
    assert run_folder.residence(config) is None
    assert everything(tmp_path) == {}
    number = run_folder.take(config)[1]
    run_folder.keep_config(config)
    run_folder.give_back(config, number)
    assert sorted(everything(tmp_path / "mine")) == ["config.yaml", "lease", "lease/00000001.json"]


def test_a_run_whose_owner_died_before_it_wrote_its_config_is_free(tmp_path: Path) -> None:
    (made(tmp_path).run_folder / run_folder.CONFIG).unlink()
    run_folder.check(recipe(tmp_path, "train.lr=0.5"), inside_job=False)


def test_a_run_of_another_host_cannot_be_seen_and_is_taken_over(tmp_path: Path) -> None:
    config = made(tmp_path)
    path = config.run_folder / "lease" / "00000001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "elsewhere", "pid": os.getpid()}))
    run_folder.check(config, inside_job=False)
    assert run_folder.take(config)[1] == 2


def test_taking_with_changed_free_keys_is_told_and_writes_the_recipe_of_now(tmp_path: Path) -> None:
    made(tmp_path)
    config = recipe(tmp_path, "cluster.workers=1", "train.commit_every=3")
    assert [str(change) for change in run_folder.check(config, inside_job=False)] == [
        "cluster.workers 2 -> 1",
        "train.commit_every 40 -> 3",
    ]
    folder, number = run_folder.take(config)
    run_folder.keep_config(config)
    assert number == 2
    assert saved(folder) == config
    (told,) = events.read_events(folder)
    assert (told["event"], told["changed"]) == ("recipe", {"cluster.workers": [2, 1], "train.commit_every": [40, 3]})


def test_a_recipe_of_an_older_version_has_the_defaults_of_keys_it_lacks(tmp_path: Path) -> None:
    config = made(tmp_path)
    path = config.run_folder / run_folder.CONFIG
    tree = yaml.safe_load(path.read_text())
    del tree["guard"], tree["train"]["weight_decay"]
    path.write_text(yaml.safe_dump(tree))
    assert run_folder.check(config, inside_job=False) == []


@pytest.mark.parametrize("key", ["run.root", "data.root"])
def test_a_root_that_cannot_be_written_is_refused_by_key(tmp_path: Path, key: str) -> None:
    (tmp_path / "file").touch()
    config = load(["run.name=mine", f"run.root={tmp_path}", f"{key}={tmp_path / 'file'}"])
    assert refusal(config) == f"{tmp_path / 'file'} cannot be written (Not a directory): choose another {key}"
