"""A user's mistakes: one line that names the file, key or value and what to do, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.write_video import write_mp4
from tests.e2e.job import SMALL, STAGES, TIMEOUT
from trainer.main import main

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(TIMEOUT)]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder of three moving mp4 clips of 12 frames at 8 fps, 64x48."""
    folder = tmp_path / "videos"
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 255, (48, 64, 3), np.uint8)
        write_mp4(folder / f"{number}.mp4", np.stack([np.roll(noise, shift, axis=1) for shift in range(12)]), 8)
    return folder


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refused command prints."""
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert "Traceback" not in printed
    return printed


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"run.root={tmp_path / 'runs'}"


def untouched(tmp_path: Path) -> bool:
    """Whether no run was made and no temporary file was left."""
    runs = tmp_path / "runs"
    return not [path for path in runs.glob("*") if path.name != "datasets"] and not [p for p in runs.rglob("*") if p.name.startswith(".")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.videos=/no/such/folder"], "no folder or video at /no/such/folder: check data.videos"),
        (["train.lrr=1"], "train.lrr: unknown key; did you mean train.lr?"),
        (["model.size=huge"], "model.size 'huge' is unknown: choose one of toy, small, videomar-0.4b, videomar-1.4b"),
        (["model.heads=5"], "model.width 192 is not divisible by model.heads 5"),
        (["curriculum.stages.0.frames=6"], "6 frames are not 1 + a multiple of 4"),
        (["curriculum.stages.0.width=60"], "width 60 is not a multiple of 8"),
        (["curriculum.stages.0.frames=1"], "1 frames are one latent frame, and the first is given; use at least 5"),
        (["curriculum.stages.1.name=short"], "the name short stands twice"),
        (["curriculum.stages.0.tokens_per_step=32"], "1 samples per step cannot be spread over 2 workers; raise its tokens_per_step"),
        (["frobnicate", "seed=1"], "'frobnicate' is not a command: choose one of train"),
    ],
)
def test_what_can_be_known_at_once_is_refused_at_once(
    arguments: list[str], message: str, root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, overrides = ([arguments[0]], arguments[1:]) if "=" not in arguments[0] else ([], arguments)
    assert message in refused([*command, *SMALL, root, *overrides], capsys)
    assert untouched(tmp_path)


def test_an_empty_folder_is_named(root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'}" in refused([*SMALL, root, f"data.videos={tmp_path / 'empty'}"], capsys)
    assert untouched(tmp_path)


def test_a_captions_file_without_its_columns_is_named(root: str, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.csv").write_text("name,words\n0.mp4,x\n")
    assert "c.csv" in refused([*SMALL, root, f"data.videos={videos}", f"data.captions={tmp_path / 'c.csv'}"], capsys)
    assert untouched(tmp_path)


def test_a_run_root_that_cannot_be_written_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be written" in refused([*SMALL, "run.root=/proc/videomar"], capsys)


@pytest.mark.parametrize("where", ["s3://bucket/runs", "gs://bucket/runs"])
def test_a_run_root_that_is_no_folder_is_refused(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused([*SMALL, f"run.root={where}"], capsys)
    assert f"run.root={where}: runs live in a folder that every node mounts; data sets may be in S3 (data.root)" in line


def test_a_run_root_below_a_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert f"{tmp_path / 'file'}" in refused([*SMALL, f"run.root={tmp_path / 'file' / 'runs'}"], capsys)


def test_a_folder_that_is_no_run_is_left_alone(root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs" / "toy").mkdir(parents=True)
    (tmp_path / "runs" / "toy" / "thesis.tex").touch()
    assert "is not a run's folder" in refused([*SMALL, root], capsys)


def test_a_relative_root_inside_a_ray_job_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert "run.root=runs is relative inside a Ray job" in refused(SMALL, capsys)


def test_a_folder_without_a_readable_video_is_named_with_the_reason(root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "text.mp4").write_text("not a video")
    assert "text.mp4" in refused([*SMALL, root, f"data.videos={folder}"], capsys)
    assert untouched(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"), [({"height": 128, "width": 128}, r"too_small 2"), ({"frames": 17}, "too_short 2")], ids=["too large", "too long"]
)
def test_a_bucket_that_no_video_fits_is_named_with_the_reasons(
    change: dict[str, int], message: str, root: str, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = json.dumps([STAGES[0] | change | {"tokens_per_step": 4096}])
    line = refused([*SMALL, root, f"data.videos={videos}", f"curriculum.stages={stages}"], capsys)
    assert message in line
    assert "fits bucket" in line
    assert untouched(tmp_path)


def test_fewer_samples_than_a_step_takes_are_refused_with_the_remedy(
    root: str, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = json.dumps([STAGES[0]])
    line = refused([*SMALL, root, f"data.videos={videos}", f"curriculum.stages={stages}"], capsys)
    assert "stage short: a step takes 8 clips of 5x32x32, but the data has 4; add videos or set its tokens_per_step to at most 128" in line
    assert untouched(tmp_path)
