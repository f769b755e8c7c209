"""What a step's line in metrics.jsonl says, from what the loop has at hand."""

from __future__ import annotations

import math
import resource
from typing import Any

import torch
import torch.distributed as dist

from model.attention import recompiles
from model.flops import training_flops
from trainer.batches import Step
from trainer.curriculum import RunState
from trainer.planning.cost import DEVICES
from trainer.task import StageTask


def step_metrics(
    task: StageTask, step: Step, state: RunState, sums: list[list[float]], norm: float, lr: float, seconds: float, waited: float
) -> dict[str, Any]:
    """The fields of StepMetrics, but for the checkpoint's."""
    own, layout, world = task.sources[0], task.layout, dist.get_world_size()
    counts, consumed = own.draws.supervised_by_frame(step.plans[0]), state.samples[own.draws.shape.bucket]
    shapes, supervised = [source.draws.shape for source in task.sources], [plan.supervised for plan in step.plans]
    tokens = sum(len(plan.positions) * shape.frames * shape.tokens for plan, shape in zip(step.plans, shapes, strict=True))
    by_source = [sum(row) for row in sums]
    return {
        "step": state.step,
        "stage": task.stage.name,
        "loss": finite(sum(source.weight * total for source, total in zip(task.sources, by_source, strict=True)) / step.weighted),
        "loss_by_frame": [finite(total / count) if count else None for total, count in zip(sums[0], counts, strict=False)],
        "loss_by_source": {shape.bucket: finite(total / count) for shape, total, count in zip(shapes, by_source, supervised, strict=True)},
        "grad_norm": finite(norm),
        "lr": lr,
        "samples_consumed": consumed,
        "epoch": own.data.epoch_of(consumed - 1)[0],
        "tokens": tokens,
        "supervised_tokens": sum(supervised),
        "world_size": world,
        "generation": task.generation,
        "dp": layout.dp,
        "tp": layout.tp,
        "sp": layout.sp,
        "zero": layout.zero,
        "micro_batch": layout.micro_batch,
        "step_seconds": seconds,
        "data_seconds": waited,
        "tokens_per_second": tokens / (seconds + waited),
        "supervised_tokens_per_second": sum(supervised) / (seconds + waited),
        "mfu": step_flops(task, step) / (seconds * world * peak) if (peak := peak_flops(task.device)) else 0.0,
        "memory_bytes": peak_memory(task.device),
        "skipped": bool(state.skipped) and state.skipped[-1] == state.step - 1,
        "recompiles": recompiles(),
    }


def finite(value: float) -> float | None:
    """The value, or None where it is not a number that JSON can hold."""
    return value if math.isfinite(value) else None


def step_flops(task: StageTask, step: Step) -> int:
    """FLOPs the objective needs for a step: every sample's own sequence, nothing for padding."""
    pairs = [(source.draws, target) for source, plan in zip(task.sources, step.plans, strict=True) for target in plan.targets]
    return sum(training_flops(task.model, draws.sequence([target]).visibility, target.supervised) for draws, target in pairs)


def peak_flops(device: torch.device) -> float:
    """The device's dense bf16 peak in FLOP/s, 0 where it is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((known.flops for part, known in DEVICES.items() if part in name), 0.0)


def peak_memory(device: torch.device) -> int:
    """Peak bytes allocated on the device, or the process's peak resident size on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
