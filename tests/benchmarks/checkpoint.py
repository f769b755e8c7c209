"""What a save costs training: the excess of 20 steps that contain one, over 20 that do not. One process, its writer beside it.

    python -m tests.benchmarks.checkpoint [--sizes toy videomar-0.4b] [--device cpu] [--threads 1] [--folder DIR]

Steps with and without a save are interleaved; the excess is the median over the pairs. At toy size it may be one median step; at a
larger size the time that copying as many bytes to host memory takes, at the bandwidth measured just before, and 10 %. A step there takes
seconds, so the excess of 20 is known only to within `noise_seconds` (of their spread); the time that training stands still is known
well, and must be within the bound by itself. The file may be 5 % larger than 16 bytes per parameter (weight, two moments, average).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, pstdev
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from model.config import named_size
from model.supervision import AllFrames, TrainingBatch
from model.videomar import VideoMAR
from tests.benchmarks.machine import publish
from tests.benchmarks.train_step import batch_of
from trainer.allocator import keep_freed_memory
from trainer.checkpoint.files import FileRecord
from trainer.checkpoint.saver import Saver
from trainer.engine import Engine
from trainer.parallel.apply import parallelise
from trainer.parallel.mesh import build_mesh
from trainer.planner import Layout
from trainer.sections import ParallelSection, TrainSection

STEPS, WARM_UP = 20, 3
SHAPES = {"toy": (5, 12, 20, 5)}  # latent frames, grid side, steps without a save in a pair, pairs
LARGE = (2, 2, 20, 3)  # a step's cost is the optimiser's


def build(size: str, frames: int, grid: int, device: torch.device) -> tuple[Engine, TrainingBatch]:
    """The engine of the product around a model of a size, and one batch for it."""
    mesh = build_mesh(Layout(dp=1, tp=1, sp=1, zero=0, micro_batch=1, accumulation=1), device.type)
    model, rng, supervision = VideoMAR(named_size(size)), np.random.default_rng(0), AllFrames()
    parallelise(model, mesh, device=device)
    target = supervision.draw(rng, frames, grid * grid, model.config)
    batch = batch_of(model, supervision, [target], frames, grid, every_token=False)
    return Engine(model, TrainSection(), ParallelSection(zero=0), mesh), batch


def step(engine: Engine, batch: TrainingBatch) -> float:
    """Seconds of one optimiser step."""
    started = time.perf_counter()
    engine.backward(engine.losses(batch).sum() / len(batch.rows))
    engine.finish_step()
    return time.perf_counter() - started


def bandwidth(device: torch.device, size: int = 1 << 29) -> float:
    """Bytes per second of copying from the device's memory to the host's."""
    source, seconds = torch.ones(size // 4, device=device), []
    target = torch.zeros(size // 4, pin_memory=device.type == "cuda")
    for _ in range(5):
        started = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - started)
    return size / median(seconds)


def measure(size: str, device: torch.device, folder: Path) -> dict[str, Any]:
    """Steps with and without a save, interleaved, after a few that warm up."""
    frames, grid, without, pairs = SHAPES.get(size, LARGE)
    engine, batch = build(size, frames, grid, device)
    saver, records, sealed = Saver(engine.named_fragments(), 0, lambda value: [value]), [], []
    engine.before_update = saver.copied

    def seal(files: list[FileRecord]) -> None:
        records.append(files)
        sealed.append(time.perf_counter())

    for _ in range(WARM_UP):
        step(engine, batch)
    plain, excess, stalls, written, copying = [], [], [], [], []
    for pair in range(pairs):
        copying.append(bandwidth(device))
        plain.append([step(engine, batch) for _ in range(without)])
        print(size, pair, [round(seconds, 3) for seconds in plain[-1]], file=sys.stderr, flush=True)
        started = time.perf_counter()
        saver.save(folder, seal)
        for _ in range(STEPS):
            step(engine, batch)
        total = time.perf_counter() - started
        stalls.append(saver.stall())
        saver.wait()
        written.append(sealed[-1] - started)
        excess.append(total - STEPS * sum(plain[-1]) / without)
        print(size, pair, f"excess {excess[-1]:.4f} s, stall {stalls[-1]:.4f} s", file=sys.stderr, flush=True)
    saver.close()
    parameters, size_on_disk = sum(each.numel() for each in engine.model.parameters()), sum(file.bytes for file in records[-1])
    one_step = median(seconds for block in plain for seconds in block)
    allowed = one_step if size in SHAPES else 1.1 * size_on_disk / median(copying)
    noise = 0.0 if size in SHAPES else STEPS * pstdev(plain[-1]) / (without * pairs) ** 0.5
    within = median(excess) <= allowed + noise and median(stalls) <= allowed
    return {
        "parameters": parameters,
        "bytes": size_on_disk,
        "bytes_per_parameter": size_on_disk / parameters,
        "step_seconds": one_step,
        "excess_seconds": median(excess),
        "noise_seconds": noise,
        "stall_seconds": median(stalls),
        "allowed_seconds": allowed,
        "written_after_seconds": median(written),
        "copy_bytes_per_second": median(copying),
        "ratio": max(median(stalls), median(excess) - noise) / allowed,
        "passed": within and size_on_disk <= 1.05 * 16 * parameters,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["toy", "videomar-0.4b"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of training; the writer has its own")
    parser.add_argument("--folder", type=Path, help="where the commits are written (default: a temporary folder)")
    known = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(known.threads)
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    dist.init_process_group("nccl" if known.device == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    with tempfile.TemporaryDirectory(dir=known.folder) as folder:
        results = {size: measure(size, torch.device(known.device), Path(folder) / size) for size in known.sizes}
    ratio = max(result["ratio"] for result in results.values())
    passed = all(result["passed"] for result in results.values())
    result = {"benchmark": "checkpoint", "ratio": ratio, "passed": passed, "threads": known.threads, "device": known.device}
    publish(result | {"sizes": results})


if __name__ == "__main__":
    main()
