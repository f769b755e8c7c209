"""What the embedded default costs: wall time, the share of it inside training steps or sampling, peak memory of all its processes.

    python -m tests.benchmarks.demo [key=value ...]

Gates: the job under 300 s, at least 60 % of it in steps or sampling, peak memory under 8 GB.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.machine import publish
from trainer.config import load
from trainer.events import read_events
from trainer.metrics import read_metrics

REPOSITORY = Path(__file__).parents[2]
MAX_SECONDS, MIN_SHARE, MAX_BYTES = 300.0, 0.6, 8e9
MARK = "VIDEOMAR_BENCHMARK"


def memory(mark: str) -> int:
    """Bytes that all living processes of the job hold together; pages they share count once (proportional set size)."""
    total = 0
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                total += process.memory_full_info().pss
        except (psutil.Error, OSError):
            continue
    return total


def measure(overrides: list[str], root: Path) -> dict[str, Any]:
    """Run the job once and weigh it."""
    mark, arguments = uuid.uuid4().hex, [f"run.root={root}", *overrides]
    started, peak = time.monotonic(), 0
    job = subprocess.Popen(
        [sys.executable, REPOSITORY / "trainer" / "main.py", *arguments], env=os.environ | {MARK: mark}, stdout=sys.stderr
    )
    while job.poll() is None:
        peak = max(peak, memory(mark))
        time.sleep(1.0)
    seconds = time.monotonic() - started
    assert job.returncode == 0, "the job failed"
    run = load(arguments).run_folder
    metrics, happened = read_metrics(run), read_events(run)
    samples = next(event for event in happened if event["event"] == "samples")
    steps = sum(step["step_seconds"] for step in metrics)
    return {
        "seconds": seconds,
        "share": (steps + samples["seconds"]) / seconds,
        "peak_memory_bytes": peak,
        "step_seconds": steps,
        "sampling_seconds": samples["seconds"],
        "data_wait_seconds": sum(step["data_seconds"] for step in metrics),
        "commit_seconds": sum(event["seconds"] for event in happened if event["event"] == "commit"),
        "tokens_per_second": sum(step["tokens"] for step in metrics) / steps,
        "psnr": samples["psnr"],
        "psnr_copy_last_frame": samples["psnr_copy_last_frame"],
    }


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(sys.argv[1:], Path(scratch))
    passed = result["seconds"] < MAX_SECONDS and result["share"] >= MIN_SHARE and result["peak_memory_bytes"] < MAX_BYTES
    gates = {"seconds": MAX_SECONDS, "share": MIN_SHARE, "peak_memory_bytes": MAX_BYTES}
    publish({"benchmark": "demo", "ratio": result["share"], "gates": gates, "passed": passed, **result})
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
