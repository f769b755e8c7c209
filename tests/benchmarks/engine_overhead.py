"""Seconds of a training step by the engine at one process, against a plain torch loop of the same model, batch, optimiser and average.

    python -m tests.benchmarks.engine_overhead [--pairs 15] [--frames 5] [--grid 12] [--stages 1 0 2 3]

Both loops do forward, backward, clipping by the norm, AdamW and the moving average, on one video per step. Steps are interleaved in
pairs; the ratio is the median over the pairs, and the gate is on the first ZeRO stage listed, the default of the recipe.
"""

from __future__ import annotations

import argparse
import copy
import socket
import sys
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

from model.config import named_size
from model.supervision import AllFrames, TrainingBatch
from model.videomar import VideoMAR
from tests.benchmarks.machine import publish
from tests.benchmarks.train_step import batch_of
from trainer.ema import Ema
from trainer.engine import Engine
from trainer.optimizer import adamw
from trainer.parallel.apply import parallelise
from trainer.parallel.mesh import build_mesh
from trainer.planner import Layout
from trainer.process import join_group
from trainer.sections import ParallelSection, TrainSection

GATE = 1.10
TRAIN = TrainSection(lr=1e-4)


def plain_step(model: VideoMAR, batch: TrainingBatch) -> Callable[[], None]:
    """One step in plain torch."""
    optimizer, average = adamw(model, TRAIN), Ema(list(model.parameters()), TRAIN.ema)

    def step() -> None:
        (model(batch).sum() / len(batch.rows)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), TRAIN.clip)
        optimizer.step()
        optimizer.zero_grad()
        average.update()

    return step


def engine_step(model: VideoMAR, batch: TrainingBatch, stage: int) -> Callable[[], None]:
    """The same step by the engine at a ZeRO stage."""
    mesh = build_mesh(Layout(1, 1, 1, stage, 1, 1))
    parallelise(model, mesh)
    engine = Engine(model, TRAIN, ParallelSection(zero=stage), mesh)

    def step() -> None:
        engine.backward(engine.losses(batch).sum() / len(batch.rows))
        engine.finish_step()

    return step


def seconds(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--frames", type=int, default=5, help="latent frames")
    parser.add_argument("--grid", type=int, default=12, help="tokens per latent frame: the grid's square")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 0, 2, 3])
    known = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", 0))
    join_group({"rank": 0, "world": 1, "host": "127.0.0.1", "port": listener.getsockname()[1]}, listener)
    torch.manual_seed(0)
    whole = VideoMAR(named_size("toy"))
    target = AllFrames().draw(np.random.default_rng(0), known.frames, known.grid**2, whole.config)
    batch = batch_of(whole, AllFrames(), [target], known.frames, known.grid, False)
    plain, ratios, medians = plain_step(copy.deepcopy(whole), batch), {}, {}
    for stage in known.stages:
        ours = engine_step(copy.deepcopy(whole), batch, stage)
        pairs = [(seconds(ours), seconds(plain)) for _ in range(known.pairs + 2)][2:]  # the first ones warm up
        ratios[stage] = median(a / b for a, b in pairs)
        medians[stage] = {"engine_seconds": median(a for a, _ in pairs), "plain_seconds": median(b for _, b in pairs)}
        print(f"ZeRO-{stage}: {ratios[stage]:.3f} {medians[stage]}", file=sys.stderr)
    ratio = ratios[known.stages[0]]
    publish(
        {
            "benchmark": "engine_overhead",
            "ratio": ratio,
            "gate": GATE,
            "passed": ratio < GATE,
            "ratio_by_zero_stage": ratios,
            "medians_by_zero_stage": medians,
            "model": vars(whole.config),
            "tokens": batch.masked.numel(),
        }
    )


if __name__ == "__main__":
    main()
