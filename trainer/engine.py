"""DeepSpeed around an untouched model: the one place that knows ZeRO. Lists what it holds as flat fragments of logical tensors.

The loop sees losses in and a step result out; checkpoints see fragments.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import deepspeed
import torch
from torch import Tensor, nn

from trainer.checkpoint.fragments import Fragment, whole
from trainer.config import TrainSection
from trainer.optimizer import adamw
from trainer.planner import Layout


@dataclass
class FlatGroup:
    """What ZeRO (or nothing) left of one parameter group on this rank: a flat fp32 master, its optimiser state and its moving average."""

    master: Tensor
    state: dict[str, Tensor]
    ema: Tensor
    places: list[tuple[str, int, int, int]]  # name, start and stop in the logical tensor, offset in the master


class Engine:
    """A model, its optimiser and its moving average under one layout.

    accepts: whether a step of this gradient norm counts; if not, it changes neither weights nor moments nor the average. May be replaced.
    """

    def __init__(self, model: nn.Module, train: TrainSection, layout: Layout) -> None:
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        # Its shared-memory kernel serves inference only, and would be compiled for a minute at the first start on a machine.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.layout, self.ema_decay, self.clip = layout, train.ema, train.clip
        self.accepts: Callable[[float], bool] = math.isfinite
        self.shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        optimizer = adamw(model, train)
        optimizer.gate = lambda: self.accepts(self.norm())
        self.deepspeed, self.optimizer, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config={
                "train_micro_batch_size_per_gpu": layout.micro_batch,
                "gradient_accumulation_steps": layout.accumulation,
                "gradient_clipping": train.clip if layout.zero else 0.0,
                "zero_optimization": {"stage": layout.zero},
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 10**9,
            },
        )
        self.groups = self.zero_groups(model) if layout.zero else self.plain_groups(model)

    @property
    def model(self) -> nn.Module:
        """The model whose parameters are being trained."""
        return self.deepspeed.module

    def backward(self, loss: Tensor) -> None:
        """Accumulate one micro-batch's gradients, and after the last one of a step update the weights."""
        self.deepspeed.backward(loss)
        if not self.layout.zero and self.deepspeed.is_gradient_accumulation_boundary():
            self.plain_norm = self.clip_plain()
        self.deepspeed.step()

    def clip_plain(self) -> float:
        """Without ZeRO: clip, and return the norm before, which DeepSpeed would not keep."""
        parameters = list(self.model.parameters())
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
        return float(norm)

    def norm(self) -> float:
        """The gradient's norm before clipping, of the step that is being or was last made; inf or NaN when it is not finite."""
        return float(self.optimizer._global_grad_norm) if self.layout.zero else self.plain_norm

    def finish_step(self) -> tuple[float, bool]:
        """(gradient norm before clipping, skipped)."""
        norm = self.norm()
        skipped = not self.accepts(norm)
        if not skipped:
            for group in self.groups:
                group.ema.lerp_(group.master.detach(), 1.0 - self.ema_decay)
        return norm, skipped

    def set_learning_rate(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def fragments(self) -> list[Fragment]:
        """Every piece of every logical tensor this rank holds; over the ranks of a ZeRO layout they cover each tensor once."""
        fragments = []
        for group in self.groups:
            flat = {
                "weight": group.master.detach(),
                "exp_avg": group.state["exp_avg"],
                "exp_avg_sq": group.state["exp_avg_sq"],
                "ema": group.ema,
            }
            for name, start, stop, offset in group.places:
                views = {kind: tensor.view(-1)[offset : offset + stop - start] for kind, tensor in flat.items()}
                fragments.append(replace(whole(name, self.shapes[name], views), start=start, stop=stop))
        return fragments

    def set_optimizer_step(self, steps: int) -> None:
        """Adam's step count, which is the same for every parameter."""
        for group in self.groups:
            group.state["step"].fill_(float(steps))

    def publish_masters(self) -> None:
        """After fragments were overwritten: bring the parameters that compute in line with the fp32 masters, on every rank."""
        if not self.layout.zero:
            return
        zero = self.optimizer
        for partitions, master in zip(zero.parallel_partitioned_bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            own = partitions[torch.distributed.get_rank(zero.dp_process_group)]
            own.data.copy_(master.data)
            torch.distributed.all_gather([part.data for part in partitions], own.data.clone(), group=zero.dp_process_group)

    def zero_groups(self, model: nn.Module) -> list[FlatGroup]:
        """ZeRO-1 and 2: each parameter group is flattened in order and cut into equal partitions, one per data-parallel rank."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        zero, groups = self.optimizer, []
        rank = torch.distributed.get_rank(zero.dp_process_group)
        for index, master in enumerate(zero.single_partition_of_fp32_groups):
            begin, end = rank * master.numel(), (rank + 1) * master.numel()
            places, offset = [], 0
            for parameter in zero.round_robin_bit16_groups[index]:
                start, stop = max(begin, offset), min(end, offset + parameter.numel())
                if start < stop:
                    places.append((names[id(parameter)], start - offset, stop - offset, start - begin))
                offset += parameter.numel()
            groups.append(FlatGroup(master, adam_state(zero.optimizer, master), master.detach().clone(), places))
        return groups

    def plain_groups(self, model: nn.Module) -> list[FlatGroup]:
        """No ZeRO: every rank holds every parameter whole."""
        return [
            FlatGroup(parameter, adam_state(self.optimizer, parameter), parameter.detach().clone(), [(name, 0, parameter.numel(), 0)])
            for name, parameter in model.named_parameters()
        ]


def adam_state(optimizer: torch.optim.Optimizer, tensor: Tensor) -> dict[str, Tensor]:
    """The optimiser's state of one tensor, made now (it would be at the first step) so that a commit can be loaded into it."""
    state = optimizer.state[tensor]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(tensor.data), torch.zeros_like(tensor.data)
    return state
