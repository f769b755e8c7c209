"""Training without Ray: torchrun starts the processes, and they do the whole job, in one layout after another."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.job import MAIN, SMALL, STEPS, environment
from trainer.events import read_events
from trainer.metrics import read_metrics

TIMEOUT = 240.0


def torchrun(processes: int, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node N trainer/main.py train cluster.launcher=torchrun ...` from another folder than the repository's."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, str(MAIN), "train", "cluster.launcher=torchrun", f"run.root={folder / 'runs'}", *SMALL, *arguments]
    env = environment() | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=TIMEOUT, check=False)


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_torchrun_does_the_whole_job_and_a_second_start_finds_it_done(tmp_path: Path) -> None:
    done = torchrun(2, ["parallel.tp=2", "parallel.megatron_sp=true", "metrics.tensorboard=true"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "toy"
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert {(line["dp"], line["tp"], line["world_size"]) for line in lines} == {(1, 2, 2)}
    assert (run / "report.html").exists()
    assert len(list((run / "tensorboard").iterdir())) == 1, "one process writes"
    assert [event["event"] for event in read_events(run)].count("promotion") == 3
    again = torchrun(2, ["parallel.sp=2"], tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(read_metrics(run)) == STEPS, "a finished run has nothing left to train"


@pytest.mark.e2e
def test_without_torchrun_the_launcher_is_refused_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(MAIN), "train", "cluster.launcher=torchrun", f"run.root={tmp_path}"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        "error: cluster.launcher=torchrun, but RANK is not set: start with torchrun --nproc-per-node N trainer/main.py"
    ]


@pytest.mark.e2e
def test_a_bad_degree_stops_every_process_with_the_line_of_the_first(tmp_path: Path) -> None:
    done = torchrun(2, ["parallel.tp=2", "model.heads=3", f"curriculum.stages.0.width={json.dumps(32)}"], tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("error: parallel.tp=2 x parallel.sp=1 does not divide the model's 3 heads") == 1
