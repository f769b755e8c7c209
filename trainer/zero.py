"""What DeepSpeed's ZeRO left of a model on this rank, stage by stage: flat fp32 masters, and which pieces of which parameters they hold.

Called by engine.py only, which knows the layout; reads DeepSpeed's optimisers, whose names change with its versions (pinned).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.utils import is_model_parallel_parameter
from torch import Tensor, nn


@dataclass(frozen=True)
class Span:
    """Elements [start, stop) of a flattened parameter, standing in a flat tensor from `offset` on."""

    name: str
    start: int
    stop: int
    offset: int


@dataclass(frozen=True)
class FlatPart:
    """A flat master that the optimiser steps on, and what it holds; padding belongs to no span."""

    master: Tensor
    spans: list[Span]


def flat_parts(model: nn.Module, optimizer: Any, stage: int) -> list[FlatPart]:
    """This rank's masters at a ZeRO stage."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return LISTED[stage](names, optimizer, model)


def whole_parameters(names: dict[int, str], optimizer: Any, model: nn.Module) -> list[FlatPart]:
    """No ZeRO: every trained parameter is its own master, whole."""
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    return [FlatPart(parameter, [Span(names[id(parameter)], 0, parameter.numel(), 0)]) for parameter in trained]


def cut_groups(names: dict[int, str], zero: Any, model: nn.Module) -> list[FlatPart]:
    """Stages 1 and 2: each parameter group is flattened in order and cut into equal partitions, one per rank of the replica group."""
    parts, rank = [], dist.get_rank(zero.dp_process_group)
    for index, master in enumerate(zero.single_partition_of_fp32_groups):
        begin, end = rank * master.numel(), (rank + 1) * master.numel()
        spans, offset = [], 0
        for parameter in zero.round_robin_bit16_groups[index]:
            start, stop = max(begin, offset), min(end, offset + parameter.numel())
            if start < stop:
                spans.append(Span(names[id(parameter)], start - offset, stop - offset, start - begin))
            offset += parameter.numel()
        parts.append(FlatPart(master, spans))
    return parts


def cut_parameters(names: dict[int, str], zero: Any, model: nn.Module) -> list[FlatPart]:
    """Stage 3: every parameter is cut into equal, padded partitions; a rank's partitions stand one after the other."""
    spans: list[list[Span]] = [[] for _ in zero.fp32_partitioned_groups_flat]
    rank = dist.get_rank(zero.dp_process_group)
    for group in zero.fp16_groups:
        for parameter in group:
            index, offset, padded = zero.grad_position[zero.get_param_id(parameter)]
            start, stop = rank * padded, min((rank + 1) * padded, parameter.ds_numel)
            if start < stop:
                spans[index].append(Span(names[id(parameter)], start, stop, offset))
    return [FlatPart(*part) for part in zip(zero.fp32_partitioned_groups_flat, spans, strict=True)]


def square_sum(tensors: Sequence[Tensor]) -> Tensor:
    """Of all elements, in float64: whatever way they are shared out over tensors and ranks, the root rounds to the same fp32 number."""
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in tensors]
    return torch.stack(norms).square().sum() if norms else torch.zeros((), dtype=torch.float64)


def norm_by_any_number_of_ranks(zero: Any, groups: Sequence[dist.ProcessGroup]) -> None:
    """Stages 1 and 2: have DeepSpeed clip by a norm that is rounded once. It adds up the ranks' sums in fp32, so another number of ranks
    is another norm, and a run that is continued on it slowly becomes another run."""

    def scaled_global_norm(norm_type: int = 2) -> Tensor:
        counted = []
        for index, parameters in enumerate(zero.params_in_partition):
            whole = (gradient for gradient in zero.averaged_gradients[index] if not getattr(gradient, "_zero_padding", False))
            pairs = zip(whole, parameters, strict=False)
            counted += [gradient for gradient, own in pairs if is_model_parallel_parameter(own) or not zero.model_parallel_rank]
        square = square_sum(counted).to(zero.device)
        for group in groups:
            dist.all_reduce(square, group=group)
        norm = square.sqrt().float()
        return torch.where(norm.isfinite(), norm, math.inf)

    zero.scaled_global_norm = scaled_global_norm


def publish_masters(optimizer: Any, stage: int) -> None:
    """After masters were overwritten: bring the parameters that compute in line with them, on every rank."""
    if stage in (1, 2):
        optimizer.update_lp_params()
    elif stage == 3:
        optimizer._partition_all_parameters()
        for index in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def watch_reduction(engine: Any, optimizer: Any, stage: int, start: Callable[[], None], stop: Callable[[], None]) -> bool:
    """Stages 0 to 2: have DeepSpeed call `start` and `stop` around each reduction of gradients over the ranks, on the stream it is on.
    Returns whether that can be: stage 3 reduces beside the backward pass, on a stream of its own."""
    if stage == 3:
        return False
    owner, name = (optimizer, "average_tensor") if stage else (engine, "allreduce_gradients")
    reduce = getattr(owner, name)

    def watched(*arguments: Any, **named: Any) -> None:
        start()
        reduce(*arguments, **named)
        stop()

    setattr(owner, name, watched)
    return True


LISTED: dict[int, Callable[[dict[int, str], Any, nn.Module], list[FlatPart]]] = {
    0: whole_parameters,
    1: cut_groups,
    2: cut_groups,
    3: cut_parameters,
}
