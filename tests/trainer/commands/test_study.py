"""`study` from a user's side: finished runs are found and not repeated, a failed one is a line, and page and numbers tell of all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.trainer.report_page import Page, step
from trainer import events
from trainer.config import dump, load
from trainer.main import main
from trainer.metrics import MetricsLog, StepMetrics

pytestmark = pytest.mark.timeout(200)
STAGES = [
    {"name": name, "frames": 9, "height": 32, "width": 32, "tokens_per_step": 384, "promotion": {"max_steps": 10}}
    for name in ("first", "second")
]
SMALL = [f"curriculum.stages={json.dumps(STAGES)}", "train.warmup_steps=0"]


def finished(root: Path, name: str, *overrides: str) -> Path:
    """A run's folder in a study's as a finished `train` leaves it; its held-out loss falls with its width."""
    arguments = [*SMALL, *overrides, f"run.root={root / 'toy-study'}", f"run.name={name}", f"data.root={root / 'datasets'}"]
    config = load(arguments)
    run = config.run_folder
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump(config))
    events.record(run, "start")
    log = MetricsLog(run)
    for number in range(1, 21):
        log.write(StepMetrics(**step(number, "first" if number <= 10 else "second")))
        if number % 2 == 0:
            loss = 0.2 + (config.model.width or 192) ** -0.5 * number**-0.4
            events.record(run, "evaluation", stage="first" if number <= 10 else "second", step=number, held_out_loss=loss)
    events.record(run, "finish", step=20)
    return run


def test_finished_runs_are_found_and_their_law_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for supervision in ("one_frame", "all_frames"):
        for width in (96, 128):
            finished(tmp_path, f"width-{width}_supervision-{supervision}", f"model.width={width}", f"train.supervision={supervision}")
    axes = ["--axis", "width=96,128", "--axis", "supervision=one_frame,all_frames"]
    assert main(["study", *SMALL, f"run.root={tmp_path}", *axes]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "run 1 of" not in printed.out  # nothing was started
    assert [line.split()[0] for line in printed.out.splitlines()[1:5]] == [
        f"width-{width}_supervision-{supervision}" for width in (96, 128) for supervision in ("one_frame", "all_frames")
    ]
    told = json.loads((tmp_path / "toy-study" / "study.json").read_text())
    assert [law["family"] for law in told["laws"]] == ["supervision one_frame", "supervision all_frames"]
    assert all(law["law"]["residual"] < 0.05 and law["points"] >= 5 for law in told["laws"])
    assert [len(run["curve"]) for run in told["runs"]] == [5] * 4  # of the last stage alone
    assert told["runs"][0]["flops"] < told["runs"][2]["flops"]
    assert told["runs"][0]["parameters"] < told["runs"][2]["parameters"]
    page = Page((tmp_path / "toy-study" / "study.html").read_text())
    assert page.tags.count("svg") == 2
    assert page.of("button") == [
        *("width-96_supervision-one_frame", "width-128_supervision-one_frame", "law"),
        *("width-96_supervision-all_frames", "width-128_supervision-all_frames", "law"),
    ]
    assert [value for name, value in page.attributes if name in ("src", "href")] == []


def test_a_run_that_fails_is_a_line_and_the_study_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path, "videos-null")
    arguments = ["study", *SMALL, f"run.root={tmp_path}", "--axis", "data.videos=/no/such/folder,null"]
    assert main(arguments) == 1
    told = capfd.readouterr()
    lines = told.err.splitlines()
    assert "no folder or video at /no/such/folder" in lines[-2]
    assert lines[-1] == "run videos-no-such-folder failed: its train ended with exit code 2; the study goes on without it"
    states = {run["run"]: run["state"] for run in json.loads((tmp_path / "toy-study" / "study.json").read_text())["runs"]}
    assert states == {"videos-no-such-folder": "failed: its train ended with exit code 2", "videos-null": "finished"}
    assert "exit code 2" in (tmp_path / "toy-study" / "study.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "study: the following arguments are required: --axis; see python trainer/main.py study --help"),
        (["--axis", "size=toy,small"], "--axis size: several keys end in it; write one of "),
        (["--axis", "width=96,97"], "model.width 97 is not divisible by model.heads 4"),
        (["--axis", "width=96,wide"], "model.width=wide: "),
        (["--axis", "width=96", "model.width=128"], "--axis model.width: model.width=128 is given as well"),
        (["--axis", "width=96", "toy"], "'toy' is not key=value"),
        (["--axis", "width=96", "train.lrr=1"], "train.lrr: unknown key; did you mean train.lr?"),
        (["--axis", "width=96", "train.lr=0.5"], "was made by another recipe: train.lr 0.002 -> 0.5"),
        (["--axis", "width=96", "run.name=toy-study/width-96"], "is a run's folder: choose another run.name for the study"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_started(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(tmp_path, "width-96", "model.width=96")
    assert main(["study", *SMALL, f"run.root={tmp_path}", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert (printed.err.count("\n"), printed.out) == (1, "")
    assert not (tmp_path / "toy-study" / "study.json").exists()


def test_the_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["study", "--help"])
    assert ended.value.code == 0
    assert "python trainer/main.py study recipe=toy --axis width=96,128,192" in capsys.readouterr().out
