"""Tensor parallelism of a VideoMAR as data: which linear is cut how, where activations enter and leave, whose gradients are partial.

apply_tensor_parallel() is called by apply.py; partition_dim() by whoever must know a logical tensor's shards (checkpoints, planner).
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from torch import Tensor, nn

from model.videomar import VideoMAR
from trainer.parallel.mesh import Mesh
from trainer.parallel.regions import enter, summed

# Linears by name. Heads and FFN channels are dealt to the ranks: projections into them by column, out of them by row.
PLAN = {
    r"blocks\.\d+\.(cross_)?attention\.[qkv]": "column",
    r"blocks\.\d+\.(cross_)?attention\.out": "row",
    r"blocks\.\d+\.ffn\.up": "column",
    r"blocks\.\d+\.ffn\.down": "row",
}
# Modules whose first argument, the tokens, enters the region that ranks share by channels. Each leaves it through its row linear.
ENTRIES = r"blocks\.\d+\.((cross_)?attention|ffn)"
# Replicated, but used inside that region by each rank's own heads only; null_text and the conditions feed all the cross-attentions.
ALWAYS_PARTIAL = r"blocks\.\d+\.(cross_)?attention\.[qk]_norm\.weight|null_text|conditions\..*"


def kind_of(linear: str) -> str | None:
    """column, row, or None for a linear that stays whole."""
    return next((kind for pattern, kind in PLAN.items() if re.fullmatch(pattern, linear)), None)


def partition_dim(name: str) -> int | None:
    """The dimension along which tensor parallelism cuts the parameter `name` into equal parts; None: every rank holds it whole."""
    linear, _, part = name.rpartition(".")
    kind = kind_of(linear)
    if kind == "row":
        return 1 if part == "weight" else None
    return 0 if kind == "column" else None


def is_partial(name: str, megatron_sp: bool) -> bool:
    """Whether a rank's gradient of a parameter is only its part of a sum over the tensor-parallel group.

    Under Megatron-SP that is so for every whole parameter, each rank having seen its own tokens; but text_embed, whose output
    gathers its gradient itself (see apply_tensor_parallel).
    """
    if re.fullmatch(ALWAYS_PARTIAL, name):
        return True
    return megatron_sp and partition_dim(name) is None and not name.startswith("text_embed.")


def apply_tensor_parallel(model: VideoMAR, mesh: Mesh) -> None:
    """Cut the model's linears as planned; it must hold the same weights on every rank. With tp = 1 nothing is changed."""
    if mesh.layout.tp == 1:
        return
    from trainer.parallel.layers import ColumnLinear, RowLinear  # Megatron is needed here only

    group, tokens_cut = mesh.tp_group, mesh.layout.megatron_sp
    for name, module in list(model.named_modules()):
        parent, _, leaf = name.rpartition(".")
        if isinstance(module, nn.Linear) and kind_of(name) == "column":
            setattr(model.get_submodule(parent), leaf, ColumnLinear(module, group))
        elif isinstance(module, nn.Linear) and kind_of(name) == "row":
            setattr(model.get_submodule(parent), leaf, RowLinear(module, group, tokens_cut))
        elif re.fullmatch(ENTRIES, name):
            module.register_forward_pre_hook(partial(enter_first, group, tokens_cut))
    # The caption is whole on every rank and enters once, for the keys and values of all blocks.
    model.text_embed.register_forward_hook(lambda module, arguments, text: enter(text, group, False))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and is_partial(name, mesh.layout.megatron_sp):
            parameter.register_hook(partial(summed, group=group))


def enter_first(group: Any, tokens_cut: bool, module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """Forward pre-hook: the first argument enters the tensor-parallel region."""
    return enter(arguments[0], group, tokens_cut), *arguments[1:]
