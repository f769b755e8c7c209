"""The product from outside: a shrunken demo, stopped and killed and started again, on real clips and on a Ray that runs already."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_pipeline.write_video import write_mp4
from tests.e2e.job import (
    REPOSITORY,
    SMALL,
    STAGES,
    STEPS,
    TIMEOUT,
    assert_every_step_once,
    environment,
    finish,
    lines,
    marked_processes,
    run,
    start,
    wait_until,
)
from tests.k8s.services import ray_head
from trainer.events import standing

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2 * TIMEOUT)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(the run's folder, what it printed) of a whole small job from a relative run.root."""
    folder = tmp_path_factory.mktemp("demo")
    code, out, err = run([*SMALL, "metrics.tensorboard=true"], folder)
    assert code == 0, out + err
    return folder / "runs" / "toy", out


def test_the_job_trains_every_stage_and_records_every_step(demo: tuple[Path, str]) -> None:
    metrics = lines(demo[0] / "metrics.jsonl")
    assert_every_step_once(demo[0])
    assert [line["stage"] for line in metrics] == [stage["name"] for stage in STAGES for _ in range(stage["promotion"]["max_steps"])]
    assert {line["world_size"] for line in metrics} == {2}
    told = [event["event"] for event in lines(demo[0] / "events.jsonl")]
    assert [told.count(kind) for kind in ("start", "promotion", "samples", "finish")] == [1, 3, 1, 1]
    assert told.count("generation") == 4


def test_tensorboard_reads_the_jobs_steps_and_what_came_of_them(demo: tuple[Path, str]) -> None:
    read = EventAccumulator(str(demo[0] / "tensorboard"))
    read.Reload()
    stages = [event.step for stage in STAGES for event in read.Scalars(f"loss/{stage['name']}")]
    assert stages == [event.step for event in read.Scalars("steps_total")] == list(range(1, STEPS + 1))
    tags = read.Tags()["scalars"]
    assert {"held_out_loss/short", "commit_seconds", "goodput_ratio", "sample_psnr_decibels/generated"} <= set(tags)


def test_the_job_ends_by_naming_a_video_a_contact_sheet_and_a_report(demo: tuple[Path, str]) -> None:
    named = dict(re.findall(r"^(sample video|contact sheet|report) +(\S+)$", demo[1], re.MULTILINE))
    with av.open(named["sample video"]) as video:
        frames = list(video.decode(video=0))
    assert len(frames) == 9
    assert (frames[0].width, frames[0].height) == (96, 48)
    assert Image.open(named["contact sheet"]).size[0] > 48 * 5
    page = Path(named["report"]).read_text()
    assert page.count("<svg") == 6
    assert "data:image/png;base64," in page
    assert not re.search(r'(src|href)="https?:', page)


def test_a_finished_run_started_again_trains_nothing_more(demo: tuple[Path, str]) -> None:
    code, out, err = run(SMALL, demo[0].parents[1])
    assert code == 0, out + err
    assert_every_step_once(demo[0])
    assert "reused" in out


def test_another_recipe_in_the_same_folder_is_refused(demo: tuple[Path, str]) -> None:
    code, _, err = run([*SMALL, "train.lr=0.5"], demo[0].parents[1])
    assert (code, err.count("\n")) == (2, 1)
    assert "was made by another recipe: train.lr 0.002 -> 0.5; start it with the old values" in err


def in_stage(name: str, steps: int) -> Callable[[Path], bool]:
    """A moment: so many steps of a stage are done."""
    return lambda folder: sum(line["stage"] == name for line in lines(folder / "metrics.jsonl")) >= steps


def encoding(folder: Path) -> bool:
    """A moment: the first chunk of the data set is written, the manifest is not."""
    datasets = folder.parent / "datasets"
    return bool(list(datasets.glob("*/sources/*.json"))) and not list(datasets.glob("*/manifest.json"))


def sampling(folder: Path) -> bool:
    """A moment: the last generation, which samples, has begun."""
    return any("showcase" in event.get("target", "") for event in lines(folder / "events.jsonl"))


MOMENTS = [
    pytest.param(in_stage("short", 4), signal.SIGINT, id="Ctrl-C in the first stage"),
    pytest.param(in_stage("longer", 4), signal.SIGKILL, id="killed in the second stage"),
    pytest.param(in_stage("larger", 1), signal.SIGTERM, id="terminated in the last stage", marks=pytest.mark.slow),
    pytest.param(encoding, signal.SIGKILL, id="killed while encoding", marks=pytest.mark.slow),
    pytest.param(sampling, signal.SIGINT, id="Ctrl-C while sampling", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("moment", "how"), MOMENTS)
def test_a_stopped_or_killed_job_continues_where_it_was(tmp_path: Path, moment: Callable[[Path], bool], how: signal.Signals) -> None:
    folder = tmp_path / "runs" / "toy"
    process = start(SMALL, tmp_path)
    wait_until(lambda: moment(folder), process)
    # A terminal's Ctrl-C reaches every process of the foreground group; other signals are sent to one.
    os.killpg(process.pid, how) if how == signal.SIGINT else os.kill(process.pid, how)
    code, _, err = finish(process)
    assert code == (-how if how == signal.SIGKILL else 128 + how)
    assert "Traceback" not in err
    code, out, err = run(SMALL, tmp_path)
    assert code == 0, out + err
    assert_every_step_once(folder)
    assert len([event for event in standing(lines(folder / "events.jsonl")) if event["event"] == "promotion"]) == 3


LONGER = [*SMALL[:-1], f"curriculum.stages={json.dumps([STAGES[0], STAGES[1] | {'promotion': {'max_steps': 200}}])}"]


def attached(folder: Path) -> subprocess.Popen[str]:
    """A second start of the live run, once it has said that it follows."""
    follower = start(LONGER, folder)
    assert follower.stdout is not None
    assert "attached" in follower.stdout.readline()
    return follower


def test_a_second_start_attaches_and_leaving_it_leaves_the_run_alone(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "toy"
    process = start(LONGER, tmp_path)
    wait_until(lambda: bool(lines(folder / "metrics.jsonl")), process)
    follower = attached(tmp_path)
    os.killpg(follower.pid, signal.SIGINT)
    code, out, err = finish(follower)
    assert (code, err) == (0, "")
    assert "detached: the run goes on" in out
    code, out, err = finish(process)
    assert code == 0, out + err
    assert_every_step_once(folder, 208)


def test_a_live_run_is_stopped_from_outside_with_a_commit_of_its_last_step(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "toy"
    process = start(LONGER, tmp_path)
    wait_until(lambda: in_stage("longer", 4)(folder), process)
    code, out, err = run(["stop", *LONGER], tmp_path)
    assert (code, err) == (0, "")
    assert out.startswith("stopped; the command that started the run continues it")
    code, _, err = finish(process)
    assert (code, err) == (1, "stopped; the same command continues from the last commit\n")
    last = lines(folder / "metrics.jsonl")[-1]["step"]
    assert last < 208
    commits = [event for event in lines(folder / "events.jsonl") if event["event"] == "commit"]
    assert commits[-1]["step"] == last
    assert commits[-1]["reason"] in ("told to leave", "periodic")  # the latter where one was just due: nothing is left to commit then
    code, _, err = run(["stop", *LONGER], tmp_path)
    assert code == 2
    assert "no run is live in runs/toy" in err


def test_a_follower_sees_the_end_of_a_run_whose_controller_was_killed(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "toy"
    process = start(LONGER, tmp_path)
    wait_until(lambda: in_stage("longer", 4)(folder), process)
    follower = attached(tmp_path)
    owner = json.loads(max((folder / "lease").glob("[0-9]*.json")).read_text())
    os.kill(owner["pid"], signal.SIGKILL)
    for job in (process, follower):
        code, out, err = finish(job)
        assert code == 0, out + err
        assert "the controller is lost; Ray starts it again" in out
        assert "report  " in out
    assert_every_step_once(folder, 208)


def test_no_process_is_left_behind(demo: tuple[Path, str]) -> None:
    deadline = time.monotonic() + 90  # Ray's agents outlive a driver that a test before has killed by half a minute
    while marked_processes() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert marked_processes() == []


def test_a_single_video_trains_without_anything_held_out(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8)
    write_mp4(tmp_path / "one.mp4", np.stack([np.roll(noise, shift, axis=1) for shift in range(50)]), 8)
    stages = json.dumps([STAGES[0] | {"promotion": {"max_steps": 4}}])
    code, out, err = run([*SMALL, f"curriculum.stages={stages}", f"data.videos={tmp_path / 'one.mp4'}"], tmp_path)
    assert code == 0, out + err
    assert "0 held out" in out
    assert_every_step_once(tmp_path / "runs" / "toy-one.mp4", 4)


def test_the_real_clips_train_and_every_bad_file_is_named(real_videos: Path, tmp_path: Path) -> None:
    """The toy recipe's own buckets, two steps a stage."""
    few = [f"curriculum.stages.{stage}.promotion={{max_steps: 2}}" for stage in range(4)]
    quick = ["sample.videos=2", "sample.iterations=2", "sample.head_steps=4"]
    captions = f"data.captions={real_videos / 'captions.csv'}"
    code, out, err = run([*few, *quick, f"data.videos={real_videos}", captions], tmp_path)
    assert code == 0, out + err
    assert_every_step_once(tmp_path / "runs" / f"toy-{real_videos.name}", 8)
    assert re.search(r"29 videos, 27 used, 2 rejected, 0 unreadable", out)
    assert "too_short: 2" in out
    assert re.search(r"damaged  edge/decord__corrupted\.mp4: .+", out)
    sources = [json.loads(path.read_text()) for path in (tmp_path / "runs" / "datasets").glob("*/sources/*.json")]
    used = {Path(source["name"]).name for source in sources if source["status"] == "ok"}
    hard = {"h264_10bits.mp4", "h265_10bits.mp4", "av1_video.mkv", "bt709_full_range.mp4"}
    assert {f"torchcodec__{name}" for name in hard} | {"mmaction2__test.avi", "mmaction2__part_0.mp4"} <= used


@pytest.fixture
def head() -> Iterator[dict[str, str]]:
    """Variables that lead to a Ray head with its own ports and folder, as another user would have started it."""
    token = secrets.token_hex(32)
    folder = Path(tempfile.mkdtemp(prefix="videomar-head-"))  # short: a socket's path holds 107 bytes
    try:
        with ray_head(folder, token, environment()) as ray:
            yield environment() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_API_SERVER_ADDRESS": ray.url}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def submit(head: dict[str, str], arguments: list[str]) -> tuple[int, str]:
    """`ray job submit --working-dir . -- python trainer/main.py ...` and all it printed."""
    ray = Path(sys.executable).with_name("ray")
    command = [str(ray), "job", "submit", "--working-dir", ".", "--", sys.executable, "trainer/main.py", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, env=head, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_same_job_runs_through_ray_job_submit(head: dict[str, str], tmp_path: Path) -> None:
    code, out = submit(head, SMALL)
    assert code != 0
    assert "run.root=runs is relative inside a Ray job" in out
    code, out = submit(head, [*(word.replace('"', "'") for word in SMALL), f"run.root={tmp_path / 'shared'}"])
    assert code == 0, out
    assert_every_step_once(tmp_path / "shared" / "toy")
    assert (tmp_path / "shared" / "toy" / "report.html").exists()
