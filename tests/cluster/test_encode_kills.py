"""Encoding the real clips while something is killed at a random time: a decoder, an encoder, the driver, or the driver by SIGTERM.

Whatever it was, the data set that is there in the end has the bytes of an undisturbed one. VIDEOMAR_TEST_VIDEOS names the clips.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from cluster import dataset as datasets
from cluster.session import REPOSITORY, Session
from data_pipeline.storage import list_files, read_bytes
from trainer import config as configs

pytestmark = [pytest.mark.timeout(240)]
STAGES = [
    {"name": "short", "frames": 5, "height": 64, "width": 64, "tokens_per_step": 256, "promotion": {"max_steps": 1}},
    {"name": "longer", "frames": 9, "height": 96, "width": 96, "tokens_per_step": 2048, "promotion": {"max_steps": 1}},
]
VICTIMS = ("decoder", "encoder", "driver", "SIGTERM")
ROUNDS = [(VICTIMS[seed % 4], seed) for seed in range(6)]
MORE_ROUNDS = [pytest.param(VICTIMS[seed % 4], seed, marks=pytest.mark.slow) for seed in range(6, 26)]


class Reference:
    """The recipe, and what encoding it undisturbed gives."""

    def __init__(self, videos: Path, root: Path) -> None:
        self.videos = videos
        started = time.monotonic()
        self.dataset = self.prepare(root)
        self.seconds = time.monotonic() - started
        self.files = contents(self.dataset)

    def arguments(self, root: Path) -> list[str]:
        small = ["data.max_clips=8", "data.sources_per_shard=3", "data.latent_channels=4", f"curriculum.stages={json.dumps(STAGES)}"]
        return [f"data.videos={self.videos}", f"data.captions={self.videos / 'captions.csv'}", f"data.root={root}", *small]

    def prepare(self, root: Path) -> Path:
        """In this process, which is then the driver."""
        config = configs.load(self.arguments(root))
        job = datasets.find(config, datasets.encode_spec(config))
        dataset, _ = datasets.prepare(job, 2, lambda progress: None)
        return Path(str(dataset.folder))

    def begin(self, root: Path) -> Path:
        """A folder that has the tokenizer already: fitting one is not what is disturbed here."""
        folder = root / self.dataset.name
        shutil.copytree(self.dataset / "tokenizer", folder / "tokenizer")
        return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path)[len(str(folder)) + 1 :]: read_bytes(path) for path, _ in list_files(folder)}


@pytest.fixture(scope="module")
def reference(real_videos: Path, ray_session: Session, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(real_videos, tmp_path_factory.mktemp("undisturbed"))


def actors(kind: str) -> list[int]:
    """The processes of this session's living actors of a class: Ray gives them its name as their title."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error, IndexError):
            if process.cmdline()[0].startswith(f"ray::{kind}"):
                found.append(process.pid)
    return found


def sources_done(folder: Path) -> int:
    return len(list(folder.glob("sources/*.json")))


class Moment:
    """When something is killed: after a random number of sources, at most two thirds of them, and a random time in which a part of a chunk
    is decoded and encoded."""

    def __init__(self, reference: Reference, draw: random.Random) -> None:
        self.sources = draw.randrange(2 * sources_done(reference.dataset) // 3)
        self.delay = draw.uniform(0, 0.05 * reference.seconds)

    def wait(self, folder: Path, over: Callable[[], object]) -> None:
        """Until it has come, unless it is over before."""
        while not (actors("Decoder") and sources_done(folder) >= self.sources) and not over():
            time.sleep(0.02)
        time.sleep(self.delay)


@contextmanager
def a_killer(kind: str, moment: Moment, folder: Path, draw: random.Random) -> Iterator[list[int]]:
    """Kills one of the living actors of a class when the moment has come; gives the list of whom it killed."""
    killed: list[int] = []
    over = threading.Event()

    def work() -> None:
        moment.wait(folder, over.is_set)
        if alive := actors(kind):
            killed.append(draw.choice(alive))
            os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def start(reference: Reference, session: Session, root: Path) -> subprocess.Popen[str]:
    """`python trainer/main.py encode ...` on the Ray of these tests."""
    command = [sys.executable, "trainer/main.py", "encode", f"cluster.address={session.address}", *reference.arguments(root)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("victim", "seed"), [*ROUNDS, *MORE_ROUNDS])
def test_whatever_is_killed_the_data_set_has_the_bytes_of_an_undisturbed_one(
    victim: str, seed: int, reference: Reference, ray_session: Session, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    folder, moment = reference.begin(tmp_path), Moment(reference, draw)
    if victim in ("decoder", "encoder"):
        with a_killer(victim.capitalize(), moment, folder, draw) as killed:
            assert reference.prepare(tmp_path) == folder
        assert killed
    else:
        process, number = start(reference, ray_session, tmp_path), signal.SIGKILL if victim == "driver" else signal.SIGTERM
        moment.wait(folder, lambda: process.poll() is not None)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == (-number if victim == "driver" else 128 + number), err
        assert "Traceback" not in err
        assert not (folder / "manifest.json").exists()
        assert reference.prepare(tmp_path) == folder
    assert contents(folder) == reference.files


def test_a_run_that_cannot_do_everything_exits_non_zero_and_lists_what_is_missing(
    reference: Reference, ray_session: Session, tmp_path: Path
) -> None:
    folder = reference.begin(tmp_path)
    (folder / "5x64x64" / "shard-000002.tar").mkdir(parents=True)  # where a shard should be
    process = start(reference, ray_session, tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "error: 1 chunks were not encoded, run again to retry them: shard-000002: " in err
    assert not (folder / "manifest.json").exists()
    (folder / "5x64x64" / "shard-000002.tar").rmdir()
    assert reference.prepare(tmp_path) == folder
    assert contents(folder) == reference.files
