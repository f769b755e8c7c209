"""Before a run spends anything: one real step of every stage at its layout on its largest batch, so that memory runs out in the first
minute and not in the last stage; and how fast the group's collectives are. Called by process.py in a run's first generation.

The engine's gate stays shut meanwhile, so weights, moments, step counts and average are as before; no random state is touched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from model.config import ModelConfig
from model.heads import Head
from model.supervision import Supervision, TrainingBatch, masks_and_rows
from trainer import events, micro_batches
from trainer.engine import Engine
from trainer.measure import peak_memory
from trainer.planner import Layout

PAYLOAD_BYTES = 16 << 20  # of the all-reduce that is timed
COUNTERS = ("micro_steps", "global_steps", "global_samples", "skipped_steps")  # DeepSpeed's, of steps that do not count here


@dataclass(frozen=True)
class Trial:
    """A bucket of a stage as preflight runs it: T latent frames of S tokens under a layout."""

    stage: str
    layout: Layout
    frames: int
    tokens: int


class OutOfMemory(Exception):
    """A pass did not fit; says what the next generation will do about it."""


def preflight(run: Path, engine: Engine, model: ModelConfig, supervision: Supervision, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Seconds and peak bytes (of the fullest rank) per stage. Raises OutOfMemory, with half the micro-batch noted."""
    figures = []
    with memory_history(engine.device):
        for trial in trials:
            if engine.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(engine.device)
            started = perf_counter()
            with smaller_next_time(run, trial.stage, trial.layout, engine.device):
                step(engine, largest_batch(model, supervision, engine.model.head, trial), min(2, trial.layout.accumulation))
            peak = torch.tensor(peak_memory(engine.device), device=engine.device)
            dist.all_reduce(peak, dist.ReduceOp.MAX)
            seconds = perf_counter() - started
            figures.append({"stage": trial.stage, "micro_batch": trial.layout.micro_batch, "seconds": seconds, "peak_bytes": int(peak)})
    return figures


def bus_bandwidth(device: torch.device) -> float | None:
    """Bytes per second that the group's all-reduce moves on each rank's way, as nccl-tests count them: 2 (N - 1) / N of the payload's bytes
    over the time; the median of three after a first one that makes the connections. None where there is one rank."""
    world, seconds = dist.get_world_size(), []
    if world == 1:
        return None
    payload = torch.zeros(PAYLOAD_BYTES // 4, device=device)
    for _ in range(4):
        started = perf_counter()
        dist.all_reduce(payload)
        float(payload[0])  # waits for the device
        seconds.append(perf_counter() - started)
    return 2 * (world - 1) / world * PAYLOAD_BYTES / median(seconds[1:])


def step(engine: Engine, batch: TrainingBatch, passes: int) -> None:
    """One optimiser step that changes nothing; from the second pass on a step holds the gradients of the earlier ones."""
    deepspeed, accepts = engine.deepspeed, engine.accepts
    counters = {name: getattr(deepspeed, name) for name in COUNTERS}
    engine.accepts = never
    for turn in range(passes):
        deepspeed.set_gradient_accumulation_boundary(turn + 1 == passes)
        engine.backward(engine.losses(batch).sum() / len(batch.rows))
    engine.finish_step()
    engine.accepts, deepspeed._is_gradient_accumulation_boundary = accepts, None
    for name, value in counters.items():
        setattr(deepspeed, name, value)


def never(norm: float) -> bool:
    """The gate of a step that must not count."""
    return False


def largest_batch(model: ModelConfig, supervision: Supervision, head: Head, trial: Trial) -> TrainingBatch:
    """A micro-batch of noise as large as the stage's can be: the longest sequence, every token masked that can be, whole captions."""
    samples, tokens = trial.layout.micro_batch, trial.tokens
    masked_whole = replace(model, mask_ratio_min=1.0)
    drawn = (supervision.draw(np.random.default_rng(seed), trial.frames, tokens, masked_whole) for seed in count())
    target = next(target for target in drawn if target.frames == trial.frames)
    sequence = supervision.sequence([target] * samples, trial.frames, tokens)
    masked, rows = masks_and_rows([target] * samples, sequence)
    noise, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    times, draws = (torch.from_numpy(part) for part in head.draw(rng, len(rows)))
    return TrainingBatch(
        latents=torch.randn(samples, 1 + max(sequence.frame_order), tokens, 1, model.latent_channels, generator=noise),
        sequence=sequence,
        masked=masked,
        rows=rows,
        head_draws=(times, draws),
        text=torch.randn(samples, model.text_tokens, model.text_width, generator=noise),
        text_length=torch.full((samples,), model.text_tokens),
        drop_text=torch.zeros(samples, dtype=torch.bool),
        conditions=torch.full((samples, len(model.conditions)), torch.nan),
    )


@contextlib.contextmanager
def smaller_next_time(run: Path, stage: str, layout: Layout, device: torch.device) -> Iterator[None]:
    """Out of memory inside: note half the micro-batch for the next generation, say so in events.jsonl, keep a memory snapshot, and
    raise OutOfMemory. What the failed pass left behind, on this rank and in collectives on others, ends with the generation."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        half = micro_batches.halve(run, stage, layout.micro_batch)
        snapshot = keep_snapshot(run, stage, device)
        events.record(run, "out_of_memory", stage=stage, micro_batch=layout.micro_batch, next_micro_batch=half, snapshot=snapshot)
        remedy = (
            f"planning again with {half}" if half else "set train.checkpointing=full, or raise parallel.zero, parallel.tp or parallel.sp"
        )
        raise OutOfMemory(f"stage {stage}: out of memory with {layout.micro_batch} samples per pass; {remedy}") from error


@contextlib.contextmanager
def memory_history(device: torch.device) -> Iterator[None]:
    """Record allocations on CUDA, so that a snapshot shows who holds what."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.memory._record_memory_history(max_entries=100_000)
    try:
        yield
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)


def keep_snapshot(run: Path, stage: str, device: torch.device) -> str | None:
    """The path of CUDA's memory snapshot (for pytorch.org/memory_viz), or None on other devices."""
    if device.type != "cuda":
        return None
    path = run / "logs" / f"out-of-memory-{stage}-rank-{dist.get_rank():05d}.pickle"
    path.parent.mkdir(exist_ok=True)
    torch.cuda.memory._dump_snapshot(str(path))
    return str(path)
