"""The two borders of a tensor-parallel layer, as autograd functions that run on any device: what enters, and what leaves as a sum.

Under Megatron-SP tokens [B, L, D] are cut over the group outside the layer: they are gathered on the way in and dealt out on the way out.
Megatron's own versions allocate on CUDA, and hand back an unreduced sum when a tensor is not contiguous.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


class Enter(torch.autograd.Function):
    """Forward: the input, or all tokens of the group. Backward: the sum over the group, or this rank's tokens of it."""

    @staticmethod
    def forward(context: Any, x: Tensor, group: ProcessGroup, tokens_cut: bool) -> Tensor:
        context.group, context.tokens_cut = group, tokens_cut
        return gather_tokens(x, group) if tokens_cut else x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        total = scatter_sum(gradient, context.group) if context.tokens_cut else summed(gradient, context.group)
        return total, None, None


class Leave(torch.autograd.Function):
    """Forward: the sum over the group, or this rank's tokens of it. Backward: the gradient, or that of all tokens of the group."""

    @staticmethod
    def forward(context: Any, x: Tensor, group: ProcessGroup, tokens_cut: bool) -> Tensor:
        context.group, context.tokens_cut = group, tokens_cut
        return scatter_sum(x, group) if tokens_cut else summed(x, group)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return gather_tokens(gradient, context.group) if context.tokens_cut else gradient, None, None


def summed(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum over the group, in a new tensor: gradients that autograd hands over must not be changed in place."""
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def gather_tokens(x_BLD: Tensor, group: ProcessGroup) -> Tensor:
    """[B, L, D] on each of n ranks -> [B, n * L, D], in the order of ranks."""
    batch, length, width = x_BLD.shape
    parts = x_BLD.new_empty(group.size() * batch, length, width)
    dist.all_gather_single(parts, x_BLD.contiguous(), group=group)
    return parts.view(group.size(), batch, length, width).transpose(0, 1).reshape(batch, -1, width)


def scatter_sum(x_BLD: Tensor, group: ProcessGroup) -> Tensor:
    """[B, n * L, D] on each of n ranks -> their sum's [B, L, D] of this rank."""
    batch, length, width = x_BLD.shape
    parts = x_BLD.view(batch, group.size(), -1, width).transpose(0, 1).reshape(group.size() * batch, -1, width)
    own = x_BLD.new_empty(batch, length // group.size(), width)
    dist.reduce_scatter_single(own, parts.contiguous(), group=group)
    return own


@torch.compiler.disable
def enter(x: Tensor, group: ProcessGroup, tokens_cut: bool) -> Tensor:
    """Into a tensor-parallel layer; in the precision that autocast computes in, so that no more is sent than is used.

    Kept out of compiled graphs: tracing would replace the backward pass by the derivative of a buffer that a collective fills, zero.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    return Enter.apply(x, group, tokens_cut)


@torch.compiler.disable
def leave(x: Tensor, group: ProcessGroup, tokens_cut: bool) -> Tensor:
    """Out of a tensor-parallel layer whose ranks each hold a part of the sum."""
    return Leave.apply(x, group, tokens_cut)
