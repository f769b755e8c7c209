"""What is done to an untouched model before the engine takes it, always in this order: each step sees what the one before has made.

1. tensor parallelism: needs the plain linears; 2. sequence parallelism: wraps the trunk and attention around them; 3. activation
checkpointing: recomputes a block with its communication; 4. compilation of the blocks; 5. precision; then, in engine.py, ZeRO.
"""

from __future__ import annotations

from typing import Literal

import torch

from model.videomar import VideoMAR
from trainer.parallel.activations import checkpoint_blocks, compile_blocks
from trainer.parallel.mesh import Mesh
from trainer.parallel.sequence import apply_sequence_parallel
from trainer.parallel.tensor import apply_tensor_parallel

Precision = Literal["fp32", "bf16"]


def parallelise(
    model: VideoMAR,
    mesh: Mesh,
    checkpointing: str = "none",
    compiled: bool = False,
    precision: Precision = "fp32",
    device: torch.device | None = None,
) -> None:
    """Apply steps 1 to 5 to a model that holds the same seeded weights on every rank, and bring what is left of it to the device."""
    apply_tensor_parallel(model, mesh)
    model.to(device)
    apply_sequence_parallel(model, mesh)
    checkpoint_blocks(model, checkpointing)
    if compiled:
        compile_blocks(model)
    if precision == "bf16":
        # Matrix products in bf16 over bf16 weights (the engine keeps fp32 masters); losses and noise stay in fp32.
        kind = next(model.parameters()).device.type
        model.forward = torch.autocast(kind, torch.bfloat16)(model.forward)  # type: ignore[method-assign]
