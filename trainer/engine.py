"""DeepSpeed around a parallelised model: the one place that knows ZeRO. Lists what it holds as flat fragments of logical tensors.

The loop sees micro-batches in, losses and a step result out; checkpoints see fragments.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.supervision import TrainingBatch
from model.videomar import VideoMAR
from trainer.checkpoint.fragments import Box, Fragment
from trainer.ema import Ema
from trainer.optimizer import adam_state, adamw
from trainer.parallel.mesh import DeepSpeedMesh, Mesh
from trainer.parallel.sequence import own_rows
from trainer.parallel.tensor import partition_dim
from trainer.planner import Layout
from trainer.planning.memory import BUCKET, LIVE
from trainer.sections import ParallelSection, TrainSection
from trainer.zero import flat_parts, norm_by_any_number_of_ranks, publish_masters, square_sum, watch_reduction


class Engine:
    """A model, its optimiser and its moving average under one layout.

    accepts: whether a step of this gradient norm counts; if not, it changes neither weights nor moments, nor Adam's step nor the
    average. May be replaced, by the same rule on every rank. before_update: called before anything of that may change.
    """

    def __init__(self, model: VideoMAR, train: TrainSection, parallel: ParallelSection, mesh: Mesh) -> None:
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        self.mesh, self.layout, self.clip = mesh, mesh.layout, train.clip
        self.stage = zero_stage(mesh.layout, parallel)
        self.device = next(model.parameters()).device
        self.accepts: Callable[[float], bool] = math.isfinite
        self.before_update: Callable[[], None] = lambda: None
        self.shards = {name: shard_of(name, tuple(parameter.shape), mesh) for name, parameter in model.named_parameters()}
        optimizer = adamw(model, train)
        optimizer.gate = self.opens
        self.deepspeed, self.optimizer, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=deepspeed_config(self.layout, self.stage, train.clip, parallel),
            mpu=DeepSpeedMesh(mesh),
        )
        if self.stage in (1, 2) and not parallel.offload:
            norm_by_any_number_of_ranks(self.optimizer, [mesh.replica_group, mesh.tp_group])
        self.parts = flat_parts(model, self.optimizer, self.stage)
        adam = self.optimizer.optimizer if self.stage else self.optimizer
        self.moments = [adam_state(adam, part.master) for part in self.parts]
        self.ema = Ema([part.master for part in self.parts], train.ema)

    @property
    def model(self) -> VideoMAR:
        """The model whose parameters are being trained."""
        return self.deepspeed.module

    def losses(self, inputs: TrainingBatch) -> Tensor:
        """Loss sums per sample and frame [B, T], of this rank's rows (mesh.sum_losses adds them up)."""
        return self.deepspeed(own_rows(inputs, self.mesh).to(self.device))

    def backward(self, loss: Tensor) -> None:
        """Accumulate one micro-batch's gradients, and after the last one of a step update the weights.

        loss: this rank's summand of the step's loss. DeepSpeed averages over the replica group and over the micro-batches.
        """
        self.deepspeed.backward(loss * (self.layout.dp * self.layout.sp * self.layout.accumulation))
        if not self.stage and self.deepspeed.is_gradient_accumulation_boundary():
            self.plain_norm = clip_plain(self.model, self.mesh, self.clip)
        self.deepspeed.step()

    def opens(self) -> bool:
        """The optimiser's gate."""
        self.before_update()
        return self.accepts(self.norm())

    def watch_reduction(self, start: Callable[[], None], stop: Callable[[], None]) -> bool:
        """See zero.watch_reduction."""
        return watch_reduction(self.deepspeed, self.optimizer, self.stage, start, stop)

    def norm(self) -> float:
        """The gradient's norm before clipping, of the step that is being or was last made; inf or NaN when it is not finite."""
        return float(self.optimizer._global_grad_norm) if self.stage else self.plain_norm

    def finish_step(self) -> tuple[float, bool]:
        """(gradient norm before clipping, skipped)."""
        norm = self.norm()
        skipped = not self.accepts(norm)
        if not skipped:
            self.ema.update()
        return norm, skipped

    def set_learning_rate(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def named_fragments(self) -> list[Fragment]:
        """Every piece of every logical tensor this rank holds; over all ranks they cover each tensor, some of it more than once
        (ranks with equal fragments hold equal numbers)."""
        fragments = []
        for part, moments, ema in zip(self.parts, self.moments, self.ema.averages, strict=True):
            flat = {"weight": part.master.detach(), "exp_avg": moments["exp_avg"], "exp_avg_sq": moments["exp_avg_sq"], "ema": ema}
            for span in part.spans:
                views = {kind: tensor.view(-1)[span.offset : span.offset + span.stop - span.start] for kind, tensor in flat.items()}
                fragments.append(Fragment(span.name, *self.shards[span.name], span.start, span.stop, views))
        return fragments

    def set_optimizer_step(self, steps: int) -> None:
        """Adam's step count, which is the same for every parameter."""
        for moments in self.moments:
            moments["step"].fill_(float(steps))

    def publish_masters(self) -> None:
        """After fragments were overwritten: bring the parameters that compute in line with the fp32 masters, on every rank."""
        publish_masters(self.optimizer, self.stage)


def shard_of(name: str, extent: tuple[int, ...], mesh: Mesh) -> tuple[tuple[int, ...], Box]:
    """(shape of the logical tensor, this rank's box of it) of a parameter that is `extent` large here."""
    dim, tp, index = partition_dim(name), mesh.layout.tp, mesh.place.tp_rank
    if dim is None or tp == 1:
        return extent, Box((0,) * len(extent), extent)
    shape = tuple(size * tp if axis == dim else size for axis, size in enumerate(extent))
    return shape, Box(tuple(size * index if axis == dim else 0 for axis, size in enumerate(extent)), extent)


def zero_stage(layout: Layout, parallel: ParallelSection) -> int:
    """The layout's stage, but 0 where one rank holds all that ZeRO would share out: there it would only copy."""
    alone = layout.dp * layout.sp == 1 and not parallel.offload and parallel.precision == "fp32"
    return 0 if alone else layout.zero


def deepspeed_config(layout: Layout, stage: int, clip: float, parallel: ParallelSection) -> dict[str, Any]:
    """DeepSpeed's configuration. At stage 0 it clips nothing: its own clipping keeps no norm and steps into a NaN."""
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
        "stage3_prefetch_bucket_size": BUCKET,
        "stage3_max_live_parameters": LIVE,
        "stage3_max_reuse_distance": LIVE,
    }
    if parallel.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": layout.micro_batch,
        "gradient_accumulation_steps": layout.accumulation,
        "gradient_clipping": clip if stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": parallel.precision == "bf16"},
        "steps_per_print": 10**9,
    }


def clip_plain(model: nn.Module, mesh: Mesh, clip: float) -> float:
    """Without ZeRO: clip as DeepSpeed does with it, to the bit, and return the norm before, every logical element counted once."""
    counted = mesh.layout.tp == 1 or mesh.place.tp_rank == 0
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    gradients = list(found.values())
    square = square_sum([gradient for name, gradient in found.items() if counted or partition_dim(name) is not None]).to(
        gradients[0].device
    )
    if mesh.layout.tp > 1:
        dist.all_reduce(square, group=mesh.tp_group)
    norm = square.sqrt().to(gradients[0].dtype)
    torch._foreach_mul_(gradients, 1.0 / ((norm + 1e-6) / clip).clamp(min=1.0))
    return float(norm)
