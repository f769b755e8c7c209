"""One optimiser step of the real model and the real engine on one rank of any world, without memory, devices or the other ranks: fake
tensors have shapes only, and fake process groups answer every collective at once. What it holds is counted by torch's MemTracker.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from model.config import ModelConfig
from model.supervision import AllFrames, OneFrame, TrainingBatch
from model.videomar import HEADS, VideoMAR
from trainer.engine import Engine
from trainer.parallel.apply import parallelise
from trainer.parallel.mesh import build_mesh
from trainer.parallel.places import token_shards
from trainer.planner import Layout
from trainer.preflight import Trial, largest_batch
from trainer.sections import ParallelSection, TrainSection


@dataclass(frozen=True)
class Case:
    """What is stepped: a stage's T latent frames of height x width tokens, every token of a masked copy masked."""

    model: ModelConfig
    layout: Layout
    frames: int
    height: int
    width: int
    supervision: str = "all_frames"
    masks: int = 1
    precision: str = "fp32"


@dataclass(frozen=True)
class Stepped:
    """What one rank did: its peak and what it sent, in bytes; its parameters, the elements of its fragments, the updates it made."""

    peak: int
    sent: float
    parameters: int
    fragments: int
    updates: int


class PeakTracker(MemTracker):
    """MemTracker's peak without its figures per module, which cost time in the square of their number and forbid a second pass."""

    def _pre_fw_hook(self, *told: Any) -> None: ...

    _post_fw_hook = _pre_bw_hook = _post_bw_hook = _pre_fw_hook

    def peak(self) -> int:
        """Bytes on the device; what fake tensors leave behind on meta when DeepSpeed moves parameters into flat buffers is not there."""
        return next(snapshot["Total"] for device, snapshot in self.get_tracker_snapshot("peak").items() if device.type == "cpu")


SHARES = {"allreduce_": 2, "_allgather_base_": 1, "_reduce_scatter_base_": 1, "alltoall_base_": 1, "allgather_": 1}


class Witness(TorchDispatchMode):
    """Gives fake tensors that Python wants to read a value (1.0, or 0 for integers), counts what is sent as rings send it, and updates."""

    def __init__(self) -> None:
        super().__init__()
        self.sent, self.updates = 0.0, 0

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if operation is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if arguments[0].is_floating_point() else 0
        self.updates += operation is torch.ops.aten._fused_adam_.default or operation is torch.ops.aten._fused_adamw_.default
        if operation.namespace == "c10d":
            self.count(operation, arguments)
        return operation(*arguments, **(options or {}))

    def count(self, operation: Any, arguments: Any) -> None:
        name = operation._schema.name.removeprefix("c10d::")
        group = next(dist.ProcessGroup.unbox(argument) for argument in arguments if isinstance(argument, torch.ScriptObject))
        if name in SHARES:
            tensors = [tensor for argument in arguments[:2] for tensor in flat(argument)]
            largest = max(sum(tensor.nbytes for tensor in flat(argument)) for argument in arguments[:2]) if tensors else 0
            self.sent += SHARES[name] * largest * (group.size() - 1) / group.size()


def flat(argument: Any) -> list[torch.Tensor]:
    """The tensors in an argument of a collective."""
    if isinstance(argument, torch.Tensor):
        return [argument]
    return [tensor for part in argument for tensor in flat(part)] if isinstance(argument, list | tuple) else []


def step(rank: int, world: int, host: str, port: int, listener: Any, case: Case, place: int = 0) -> Stepped:
    """Target of run_ranks(1, ...), which gives it a process of its own: one optimiser step of rank `place` of the layout's world."""
    layout = case.layout
    devices = layout.dp * layout.tp * layout.sp
    os.environ.update(RANK=str(place), WORLD_SIZE=str(devices), LOCAL_RANK="0")
    dist.init_process_group("fake", rank=place, world_size=devices, store=FakeStore())
    batch, mesh, tracker, witness = real_batch(case), build_mesh(layout), PeakTracker(), Witness()
    alone = "deepspeed.runtime.zero.partitioned_param_coordinator.assert_ints_same_as_other_ranks"  # there are no others to ask
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, patch(alone, lambda *told: None), patch.object(VideoMAR, "initialise"):
        torch.set_default_dtype(torch.bfloat16 if case.precision == "bf16" else torch.float32)
        model = VideoMAR(case.model)
        torch.set_default_dtype(torch.float32)
        model.to = model.bfloat16 = lambda *told, **named: model  # type: ignore[method-assign] # fake parameters cannot be moved
        parallelise(model, mesh, layout.checkpointing, False, case.precision, torch.device("cpu"))
        tracker.track_external(model)
        with witness, tracker:
            engine = Engine(model, TrainSection(), ParallelSection(zero=layout.zero, precision=case.precision), mesh)
            fragments = sum(fragment.stop - fragment.start for fragment in engine.named_fragments())
            for _ in range(layout.accumulation):
                engine.backward(engine.deepspeed(fake_batch(fake, batch)).sum())
            engine.finish_step()
        return Stepped(tracker.peak(), witness.sent, count(model), fragments, witness.updates)


def count(model: torch.nn.Module) -> int:
    """Parameters of this rank; ZeRO-3 leaves them empty, with their number beside."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())


def real_batch(case: Case) -> TrainingBatch:
    """The stage's largest micro-batch, with the supervised rows of the rank that has most of them."""
    supervision = OneFrame() if case.supervision == "one_frame" else AllFrames(masks=case.masks)
    trial = Trial("stage", case.layout, case.frames, case.height * case.width)
    batch = largest_batch(case.model, supervision, HEADS[case.model.head](case.model), trial)
    piece = batch.rows % batch.masked.shape[1] // (batch.masked.shape[1] // token_shards(case.layout))
    fullest = piece == piece.mode().values
    times, noise = batch.head_draws
    return replace(batch, rows=batch.rows[fullest], head_draws=(times[fullest], noise[fullest]))


def fake_batch(fake: FakeTensorMode, batch: TrainingBatch) -> TrainingBatch:
    """The batch as fake tensors, made anew for every pass as a loader does."""
    times, noise = (fake.from_tensor(draws) for draws in batch.head_draws)
    tensors = {name: fake.from_tensor(value) for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    return replace(batch, head_draws=(times, noise), **tensors)
