"""What only a GPU can show: that the attention backends agree there, what a step of the 1.4 B model takes, and how fast it samples.

    python -m tests.benchmarks.gpu [--parts parity step sampling] [--budget 540]
    python -m tests.benchmarks.gpu --size toy --device cpu        (a rehearsal of everything but the CUDA kernels)

Weights, activations and gradients are bf16; head and loss are computed in fp32; no optimiser. MFU counts the FLOPs that the objective needs
(model/flops.py), nothing that is computed again, against the dense bf16 peak. Every case is on its own: an error is its result, and after
`--budget` seconds the rest is left out. Imports nothing but torch, numpy, einops and safetensors. Without a GPU it says so and exits 0.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.attention import BACKENDS, attend
from model.config import SIZES, ModelConfig, named_size
from model.flops import training_flops
from model.sampling import SamplingConfig, generate
from model.supervision import AllFrames, TrainingBatch, masks_and_rows
from model.videomar import VideoMAR
from model.visibility import Visibility
from tests.benchmarks.machine import publish
from trainer.parallel.activations import checkpoint_blocks

PEAK_FLOPS = {"H100 PCIe": 756e12, "H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bf16, by a part of the device's name
CUDA_ONLY = ("flex", "flash")
GRIDS = {"toy": (4, 6)}
GRID = (30, 48)  # 480 x 768 video through an 8 x 16 x 16 tokenizer
GATES = {"bytes": 80e9, "mfu": 0.40, "seconds_per_frame": 1.0, "parity": 2e-2}


class Cases:
    """Results by name; one that fails or comes too late says so and leaves the others alone."""

    def __init__(self, device: torch.device, budget: float) -> None:
        self.device, self.deadline = device, time.monotonic() + budget
        self.results: dict[str, dict[str, Any]] = {}

    def run(self, name: str, backend: str, case: Callable[[], dict[str, Any]]) -> None:
        if backend in CUDA_ONLY and self.device.type != "cuda":
            result: dict[str, Any] = {"skipped": f"{backend} needs CUDA"}
        elif time.monotonic() > self.deadline:
            result = {"skipped": "out of time"}
        else:
            started = time.monotonic()
            try:
                result = case()
            except Exception as error:
                result = {"error": f"{type(error).__name__}: {error}"[:500]}
            result["took_seconds"] = round(time.monotonic() - started, 1)
        self.results[name] = result
        print(name, json.dumps(result), file=sys.stderr, flush=True)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def wait(device: torch.device) -> float:
    """The time, in seconds, once the device has done all it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_flops(device: torch.device) -> float:
    """0 where it is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), 0.0)


def parity(device: torch.device, backend: str) -> dict[str, Any]:
    """Largest error of the output and of each gradient, over the largest value, in bf16 against the dense fp32 reference."""
    visibility = AllFrames(masks=2).sequence([], 4, 200).visibility
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(2, 4, visibility.starts[-1], 64, generator=generator).to(device) for _ in range(4)]
    rounded = [x.bfloat16() for x in draws]
    found, expected = (with_gradients(rounded, visibility, backend), with_gradients([x.float() for x in rounded], visibility, "dense"))
    errors = {name: float((found[name].float() - expected[name]).abs().max() / expected[name].abs().max()) for name in found}
    return {"errors": errors, "passed": max(errors.values()) <= GATES["parity"]}


def with_gradients(tensors: list[Tensor], visibility: Visibility, backend: str) -> dict[str, Tensor]:
    """Attention of the first three, and their gradients under the fourth."""
    q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
    output = attend(q, k, v, visibility, backend)
    return dict(zip(("output", "dq", "dk", "dv"), (output.detach(), *torch.autograd.grad(output, (q, k, v), tensors[3])), strict=True))


def make_model(config: ModelConfig, device: torch.device, backend: str) -> VideoMAR:
    """Random weights in bf16; the model itself computes head and loss in fp32."""
    torch.manual_seed(0)
    with device:
        return VideoMAR(config, attention=backend).bfloat16()


def make_batch(model: VideoMAR, frames: int, grid: tuple[int, int], device: torch.device) -> TrainingBatch:
    """One video under all_frames supervision, with the longest caption."""
    config, rng, supervision = model.config, np.random.default_rng(0), AllFrames()
    target = supervision.draw(rng, frames, grid[0] * grid[1], config)
    sequence = supervision.sequence([target], frames, grid[0] * grid[1])
    masked, rows = masks_and_rows([target], sequence)
    times, noise = (torch.from_numpy(x) for x in model.head.draw(rng, len(rows)))
    return TrainingBatch(
        latents=torch.from_numpy(rng.standard_normal((1, frames, *grid, config.latent_channels), np.float32)),
        sequence=sequence,
        masked=masked,
        rows=rows,
        head_draws=(times, noise),
        text=torch.from_numpy(rng.standard_normal((1, config.text_tokens, config.text_width), np.float32)).bfloat16(),
        text_length=torch.tensor([config.text_tokens]),
        drop_text=torch.tensor([False]),
        conditions=torch.zeros(1, len(config.conditions)),
    ).to(device)


def train_step(
    config: ModelConfig, device: torch.device, backend: str, checkpointing: str, grid: tuple[int, int], frames: int, repeats: int
) -> dict[str, Any]:
    """Forward and backward of one video: median seconds, MFU, and peak bytes, alone and with AdamW's fp32 master and moments beside it."""
    model = make_model(config, device, backend)
    checkpoint_blocks(model, checkpointing)
    batch, seconds = make_batch(model, frames, grid, device), []
    for repeat in range(-2, repeats):
        if repeat == 0 and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        started = wait(device)
        loss = model(batch).sum()
        loss.backward()
        if repeat >= 0:
            seconds.append(wait(device) - started)
        model.zero_grad(set_to_none=True)
    step, peak = median(seconds), peak_flops(device)
    used = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    flops = training_flops(config, batch.sequence.visibility, len(batch.rows))
    return {
        "step_seconds": step,
        "all_seconds": seconds,
        "peak_bytes": used,
        "peak_bytes_with_adamw": used + 12 * sum(parameter.numel() for parameter in model.parameters()),
        "flops": flops,
        "mfu": flops / step / peak if peak else 0.0,
        "tokens": batch.sequence.visibility.starts[-1],
        "supervised_tokens": len(batch.rows),
        "loss_is_finite": bool(torch.isfinite(loss)),
    }


def sampling(config: ModelConfig, device: torch.device, grid: tuple[int, int], frames: int, guidance: float) -> dict[str, Any]:
    """Median seconds from one latent frame to the next, each 10 iterations x 8 flow steps and the clean pass of the one before."""
    model = make_model(replace(config, head="flow"), device, "auto").eval()
    how, rngs = SamplingConfig(iterations=10, head_steps=8, guidance=guidance), [np.random.default_rng(0)]
    given = torch.randn(1, 1, *grid, config.latent_channels, device=device)
    text = torch.randn(1, config.text_tokens, config.text_width, device=device).bfloat16()
    length = torch.tensor([config.text_tokens], device=device)
    generate(model, given, text, length, 3, how, rngs)  # warm up
    ends = [wait(device)]
    video = generate(model, given, text, length, frames, how, rngs, lambda index, frame: ends.append(wait(device)))
    seconds = [after - before for before, after in pairwise(ends)]
    return {
        "seconds_per_frame": median(seconds),
        "all_seconds": seconds,
        "guidance": guidance,
        "is_finite": bool(torch.isfinite(video).all()),
    }


def verdicts(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Each gate's measured value and whether it holds; a case that did not run holds nothing."""
    steps = {name: result for name, result in results.items() if name.startswith("step ") and "mfu" in result}
    mfu = max((result["mfu"] for name, result in steps.items() if name.split()[1] in CUDA_ONLY), default=0.0)
    bytes_used = min((result["peak_bytes"] for name, result in steps.items() if name.endswith(" selective")), default=float("inf"))
    frame = results.get("sampling with guidance", {}).get("seconds_per_frame", float("inf"))
    agreeing = {name: result.get("passed", False) for name, result in results.items() if name.startswith("parity ")}
    return {
        "parity": {"value": agreeing, "passed": bool(agreeing) and all(agreeing.values())},
        "fits 80 GB with selective checkpointing": {"value": finite(bytes_used), "passed": 0 < bytes_used <= GATES["bytes"]},
        "MFU with flex or flash": {"value": mfu, "passed": mfu >= GATES["mfu"]},
        "seconds per latent frame": {"value": finite(frame), "passed": frame < GATES["seconds_per_frame"]},
    }


def finite(value: float) -> float | None:
    return value if value != float("inf") else None


def table(results: dict[str, dict[str, Any]]) -> str:
    """One line per case."""
    lines = []
    for name, result in results.items():
        if "step_seconds" in result:
            text = f"{result['step_seconds']:8.3f} s  {result['peak_bytes'] / 1e9:6.1f} GB  MFU {result['mfu']:.3f}"
        elif "seconds_per_frame" in result:
            text = f"{result['seconds_per_frame']:8.3f} s per latent frame"
        elif "errors" in result:
            text = f"{'ok' if result['passed'] else 'WRONG':>8}  largest error {max(result['errors'].values()):.1e}"
        else:
            text = result.get("skipped") or result["error"]
        lines.append(f"{name:<32}{text}")
    return "\n".join(lines)


def measure(cases: Cases, config: ModelConfig, grid: tuple[int, int], parts: list[str], frames: int, repeats: int) -> None:
    """The cases, what matters most first."""
    device, backends = cases.device, ("flex", "flash", "sdpa-chunked")
    assert set(backends) <= set(BACKENDS)
    if "parity" in parts:
        for backend in backends:
            cases.run(f"parity {backend}", backend, lambda backend=backend: parity(device, backend))  # type: ignore[misc]
    if "sampling" in parts:
        for name, guidance in (("with guidance", 3.0), ("without guidance", 1.0)):
            cases.run(f"sampling {name}", "auto", lambda guidance=guidance: sampling(config, device, grid, frames, guidance))  # type: ignore[misc]
    if "step" in parts:
        for mode in ("selective", "none", "full"):
            for backend in backends:
                case = (config, device, backend, mode, grid, frames, repeats)
                cases.run(f"step {backend} {mode}", backend, lambda case=case: train_step(*case))  # type: ignore[misc]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="videomar-1.4b")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--parts", nargs="+", choices=["parity", "step", "sampling"], default=["parity", "step", "sampling"])
    parser.add_argument("--frames", type=int, default=7, help="latent frames")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds after which no new case is begun")
    known = parser.parse_args(arguments)
    if known.device == "cuda" and not torch.cuda.is_available():
        publish({"benchmark": "gpu", "ran": False, "reason": "no CUDA device here; --size toy --device cpu rehearses it"})
        return 0
    cases, grid = Cases(torch.device(known.device), known.budget), GRIDS.get(known.size, GRID)
    measure(cases, named_size(known.size), grid, known.parts, known.frames, known.repeats)
    gates = verdicts(cases.results) if known.device == "cuda" else {}
    print(table(cases.results))
    publish(
        {
            "benchmark": "gpu",
            "ran": True,
            "size": known.size,
            "precision": "bf16 weights, activations and gradients; head and loss computed in fp32",
            "tokens_per_frame": grid[0] * grid[1],
            "frames": known.frames,
            "ratio": gates["MFU with flex or flash"]["value"] / GATES["mfu"] if gates else None,
            "gates": gates,
            "passed": all(gate["passed"] for gate in gates.values()) if gates else None,
            "cases": cases.results,
        }
    )
    return 0 if not gates or all(gate["passed"] for gate in gates.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
