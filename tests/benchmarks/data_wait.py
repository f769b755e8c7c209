"""The share of training in which it waits for data, from a disk and from S3: `python -m tests.benchmarks.data_wait`.

The toy recipe with two of its stages, cut short, as a job of its own each time. The cache of shards from S3 is empty and holds a
quarter of the data set, so that shards are fetched throughout.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from data_pipeline import storage
from tests.benchmarks.demo import REPOSITORY
from tests.benchmarks.machine import publish
from tests.benchmarks.s3_server import s3_server
from tests.s3 import new_bucket
from trainer.config import load
from trainer.events import read_events
from trainer.metrics import read_metrics

GATE, STEPS = 0.02, 100  # of a stage
STAGES = [
    {"name": "short", "frames": 5, "height": 64, "width": 64, "tokens_per_step": 2048, "promotion": {"max_steps": STEPS}},
    {"name": "larger", "frames": 17, "height": 96, "width": 96, "tokens_per_step": 2880, "promotion": {"max_steps": STEPS}},
]
KEYS = [f"curriculum.stages={json.dumps(STAGES)}", "sample.videos=2", "sample.iterations=2", "sample.head_steps=4"]


def waits(folder: Path, keys: list[str]) -> dict[str, float]:
    """Runs the job; of all its steps, and of a stage's first ones alone, what waiting for data took."""
    arguments = [f"run.root={folder / 'runs'}", *KEYS, *keys]
    subprocess.run([sys.executable, REPOSITORY / "trainer" / "main.py", *arguments], stdout=sys.stderr, check=True)
    run = load(arguments).run_folder
    metrics = read_metrics(run)
    assert len(metrics) == STEPS * len(STAGES)
    waited = [step["data_seconds"] for step in metrics]
    return {
        "share": sum(waited) / sum(step["step_seconds"] + step["data_seconds"] for step in metrics),
        "first_seconds": max(waited[index * STEPS] for index in range(len(STAGES))),
        "longest_later_seconds": max(seconds for index, seconds in enumerate(waited) if index % STEPS),
        "step_seconds": sum(step["step_seconds"] for step in metrics) / len(metrics),
        "generations": float(sum(event["event"] == "generation" for event in read_events(run))),
    }


def measure(server: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        disk = waits(Path(name, "disk"), [])
        size = sum(bytes for path, bytes in storage.list_files(Path(name, "disk", "runs", "datasets")) if path.suffix == ".tar")
        root = [f"data.root={new_bucket()}/sets", f"data.cache={Path(name, 'cache')}", f"data.cache_bytes={size // 4}"]
        s3 = waits(Path(name, "s3"), root)
    publish({"benchmark": "data_wait", "ratio": s3["share"], "gate": GATE, "server": server, "bytes": size, "s3": s3, "disk": disk})


def main() -> None:
    with s3_server() as name:
        measure(name)


if __name__ == "__main__":
    main()
