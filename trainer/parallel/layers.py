"""Megatron-core's column- and row-parallel linears, cut from a whole one. Imported only under tensor parallelism.

They compute; who communicates is tensor.py's plan: a layer's inputs are made whole once, at its border, not once per projection.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from trainer.parallel.regions import leave

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that Transformer Engine and Apex are missing, once per module of it
    from megatron.core.model_parallel_config import ModelParallelConfig
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear, set_tensor_model_parallel_attributes


def cut(parameter: nn.Parameter, dim: int | None, group: ProcessGroup) -> nn.Parameter:
    """This rank's equal part of a parameter along `dim` (None: all of it), marked as Megatron marks it, for DeepSpeed's norm; frozen
    if the whole is."""
    if dim is None:
        return parameter
    part = nn.Parameter(parameter.detach().chunk(group.size(), dim)[group.rank()].clone(), parameter.requires_grad)
    set_tensor_model_parallel_attributes(part, True, dim, 1)
    return part


def options(whole: nn.Linear, group: ProcessGroup) -> dict[str, Any]:
    """What both kinds are made with; their weights are replaced by parts of the whole ones, so that they depend on no layout."""
    config = ModelParallelConfig(
        tensor_model_parallel_size=group.size(), use_cpu_initialization=True, perform_initialization=False, params_dtype=whole.weight.dtype
    )
    return {"config": config, "init_method": nn.init.zeros_, "bias": whole.bias is not None, "skip_bias_add": False, "tp_group": group}


class ColumnLinear(ColumnParallelLinear):
    """Every rank computes its own output channels of the whole input."""

    get_extra_state = nn.Module.get_extra_state  # Megatron's puts a None into every state dict

    def __init__(self, whole: nn.Linear, group: ProcessGroup) -> None:
        super().__init__(whole.in_features, whole.out_features, gather_output=False, disable_grad_reduce=True, **options(whole, group))
        self.weight = cut(whole.weight, 0, group)
        if whole.bias is not None:
            self.bias = cut(whole.bias, 0, group)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class RowLinear(RowParallelLinear):
    """Every rank computes with its own input channels; the outputs are summed over the group, then the bias is added once."""

    get_extra_state = nn.Module.get_extra_state

    def __init__(self, whole: nn.Linear, group: ProcessGroup, tokens_cut: bool) -> None:
        super().__init__(whole.in_features, whole.out_features, input_is_parallel=True, **options(whole, group))
        self.tokens_cut = tokens_cut
        self.weight = cut(whole.weight, 1, group)
        if whole.bias is not None:
            self.bias = cut(whole.bias, None, group)

    def forward(self, x: Tensor) -> Tensor:
        partial_sum = self._forward_impl(
            input=x,
            weight=self.weight,
            bias=None,
            gradient_accumulation_fusion=False,
            allreduce_dgrad=False,
            sequence_parallel=False,
            tp_group=self.tp_group,
            grad_output_buffer=None,
        )
        total = leave(partial_sum, self.tp_group, self.tokens_cut)
        return total if self.bias is None else total + self.bias
