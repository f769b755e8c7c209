"""Wall time of a run that encodes while it trains, against the longer of encoding alone and training alone.

    python -m tests.benchmarks.just_in_time [--steps 120] [--paces 0.7 1.0 1.5] [--repeats 3]

The encoder is rate-limited: it waits before every chunk, as if on machines of its own, so that encoding takes `pace` times as long as
training. The run is the product's own, on warm seats; every measurement has a data set of its own. Each repeat trains alone and then at
every pace, for machines have fast minutes and slow ones; a pace's ratio is the median of its repeats, and the ratio is the worst pace's.
Training begins once five of the 64 chunks are there: where the encoder takes as long as training, waiting for them alone is 8 %.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from cluster import dataset as datasets
from cluster import run_folder, session
from cluster.controller import preload
from cluster.encode import Progress
from cluster.feeding import Feeding
from cluster.gang import Gang
from cluster.progress import Board
from cluster.readiness import Feed
from cluster.run import Run
from data_pipeline.chunks import Chunk
from data_pipeline.encode import encode_chunk, finished_chunks, work_fingerprint
from data_pipeline.loader import tokenizer_at
from data_pipeline.records import ChunkRecord
from data_pipeline.spec import EncodeSpec
from data_pipeline.storage import Location
from data_pipeline.text import load_text
from tests.benchmarks.machine import publish
from trainer import config as configs
from trainer.config import RunConfig
from trainer.instruments import RunInstruments
from trainer.meter import Meter
from trainer.metrics import read_metrics

GATE = 1.1
CLIPS = 64


def recipe(root: Path, name: str, data: str, steps: int) -> RunConfig:
    stage = f"{{name: only, frames: 9, height: 64, width: 64, tokens_per_step: 1536, promotion: {{max_steps: {steps}}}}}"
    small = [f"data.synthetic={{clips: {CLIPS}, frames: 34, size: 64}}", "data.sources_per_shard=1", "data.start_fraction=0.04"]
    brief = ["sample.videos=1", "sample.iterations=1", "sample.head_steps=2", "train.evaluate_samples=2", "train.preflight=false"]
    places = [f"run.root={root}", f"run.name={name}", f"data.root={root / data}", "cluster.workers=1"]
    return configs.load([*small, *brief, *places, f"curriculum.stages=[{stage}]"])


class RateLimited:
    """An encoder of `seconds` per chunk."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(
        self,
        chunks: Sequence[Chunk],
        spec: EncodeSpec,
        tokenizer_folder: Location,
        folder: Location,
        cpus: Callable[[], int],
        on_progress: Callable[[Progress], None],
        draining: Callable[[], bool] = lambda: False,
    ) -> list[ChunkRecord]:
        tokenizer, text = tokenizer_at(tokenizer_folder), load_text(tokenizer_folder, spec)
        records = dict(finished_chunks(chunks, lambda chunk: work_fingerprint(chunk, spec, tokenizer, text), folder))
        started = time.monotonic()
        found = len(records)
        for index in [index for index in range(len(chunks)) if index not in records]:
            record = encode_chunk(chunks[index], spec, tokenizer, text, folder)
            while time.monotonic() < started + (len(records) + 1 - found) * self.seconds:
                if draining():
                    return [*records.values()]
                time.sleep(0.01)
            records[index] = record
            on_progress(Progress(len(records), len(chunks), 0, time.monotonic() - started, records=dict(records)))
            if draining():
                break
        return [*records.values()]


def encode_alone(config: RunConfig, encode: RateLimited) -> float:
    """Seconds until the whole data set is encoded."""
    jobs = datasets.find_all(config)
    started = time.perf_counter()
    feed = Feed(config, jobs, 1, encode=encode).start()
    while not feed.finished:
        feed.poll()
        time.sleep(0.01)
    seconds = time.perf_counter() - started
    feed.close()
    return seconds


def run(config: RunConfig, gang: Gang, encode: RateLimited) -> float:
    """Seconds of a whole run, encoding included; its seats are warm."""
    jobs, board, instruments = datasets.find_all(config), Board(), RunInstruments(Meter("benchmark"), config.curriculum.stages)
    folder, number = run_folder.take(config, restarted=False)
    started = time.perf_counter()
    feed = Feed(config, jobs, 1, encode=encode).start()
    try:
        data = Feeding(feed, folder, 1, board, instruments, lambda: None)
        training = Run(config, folder, number, data, gang, board, instruments, lambda: None)
        training.begin()
        training.to_the_end()
    finally:
        feed.close()
    seconds = time.perf_counter() - started
    assert len(read_metrics(folder)) == config.curriculum.stages[0].promotion.max_steps
    return seconds


def measure(root: Path, steps: int, paces: Sequence[float], repeats: int) -> dict[str, Any]:
    with session.connect(None, 2):
        gang = Gang(preload(recipe(root, "x", "x", steps)), {"CPU": 1}, threads=1, maximum=1)
        try:
            gang.gather(1, 60.0, True, gang.refresh, print)
            natural = encode_alone(recipe(root, "none", "ready", steps), RateLimited(0.0))
            trained = [run(recipe(root, "alone-0", "ready", steps), gang, RateLimited(0.0))]
            encoders = [RateLimited(pace * trained[0] / CLIPS) for pace in paces]
            encoded = [encode_alone(recipe(root, "none", f"alone-{pace}", steps), one) for pace, one in zip(paces, encoders, strict=True)]
            together: list[list[float]] = [[] for _ in paces]
            for repeat in range(repeats):
                if repeat:
                    trained.append(run(recipe(root, f"alone-{repeat}", "ready", steps), gang, RateLimited(0.0)))
                for pace, encoder, seconds in zip(paces, encoders, together, strict=True):
                    name = f"together-{pace}-{repeat}"
                    seconds.append(run(recipe(root, name, name, steps), gang, encoder))
        finally:
            gang.close()
    found = []
    for pace, encode, seconds in zip(paces, encoded, together, strict=True):
        ratios = [both / max(encode, train) for both, train in zip(seconds, trained, strict=True)]
        found.append({"pace": pace, "encode_seconds": encode, "run_seconds": seconds, "ratios": ratios, "ratio": median(ratios)})
    return {"train_seconds": trained, "unlimited_encode_seconds": natural, "measurements": found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--paces", type=float, nargs="+", default=[0.7, 1.0, 1.5])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jit-") as root:
        found = measure(Path(root), options.steps, options.paces, options.repeats)
    ratio = max(each["ratio"] for each in found["measurements"])
    publish({"benchmark": "just_in_time", "steps": options.steps, **found, "ratio": ratio, "gate": GATE, "passed": ratio <= GATE})
    return 0 if ratio <= GATE else 1


if __name__ == "__main__":
    sys.exit(main())
