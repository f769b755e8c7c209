"""Activation checkpointing and compilation, block by block, from outside the model. Called by process.py before the engine is built."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.attention.varlen  # registers the operator of the backend flash
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from model.videomar import VideoMAR

aten = torch.ops.aten
# Dear to compute again for the bytes they take: matrix products and attention.
SAVED = {
    aten.mm.default,
    aten.addmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.torch_attn._varlen_attn.default,
}


def checkpoint_blocks(model: VideoMAR, mode: str) -> None:
    """Compute activations again in the backward pass: of whole blocks (full), or all but SAVED (selective); none changes nothing."""
    if mode == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, policy)
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, **options)  # type: ignore[method-assign]


def policy(context: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    """What a selective checkpoint does with the output of one operation."""
    return CheckpointPolicy.MUST_SAVE if operation in SAVED else CheckpointPolicy.PREFER_RECOMPUTE


def compile_blocks(model: VideoMAR) -> None:
    """Compile every block by itself: one graph serves all of them, and shapes are those of the bucket."""
    for block in model.blocks:
        block.compile(dynamic=False)
