"""Mistakes of parallel training, planted one at a time: each trains without complaint, and the matrix must notice it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import model.supervision
from model.supervision import TokenSequence
from trainer.engine import Engine
from trainer.parallel import layers, sequence, tensor
from trainer.parallel.mesh import DeepSpeedMesh

INTERLEAVED = model.supervision.interleaved
CUT_TRUNK, BACKWARD, GATHERED, LEAVE = sequence.cut_trunk, Engine.backward, sequence.gathered_tokens, layers.leave


def text_cut(trunk: Any, mesh: Any, latents: Tensor, masked: Tensor, positions: Tensor, text: Any, mask_BK: Tensor, *rest: Any) -> Tensor:
    """Every rank of the sequence group sees its own half of the caption's keys."""
    keys = torch.arange(mask_BK.shape[1]) % mesh.layout.sp == mesh.place.sp_rank
    return CUT_TRUNK(trunk, mesh, latents, masked, positions, text, mask_BK & keys, *rest)


def bias_on_every_rank(x: Tensor, group: Any, tokens_cut: bool) -> Tensor:
    """As if every rank added its bias, here 0.01, before the sum."""
    return LEAVE(x + 0.01, group, tokens_cut)


def seeing_itself(*arguments: Any) -> TokenSequence:
    """The sequence under a rule by which every part sees nothing but itself; made anew, not the right one that is remembered."""
    return replace(INTERLEAVED.__wrapped__(*arguments), rule=lambda query, key: key == query)


MISTAKES: dict[str, Callable[[int], Any]] = {
    "q/k-norm gradients not summed": lambda rank: patch.object(tensor, "ALWAYS_PARTIAL", "null_text"),
    "null text's gradient not summed": lambda rank: patch.object(tensor, "ALWAYS_PARTIAL", r".*[qk]_norm\.weight"),
    "gradients of cut tokens not summed": lambda rank: patch.object(tensor, "is_partial", lambda name, cut: IS_PARTIAL(name, False)),
    "wrong mask on one rank": lambda rank: patch.object(model.supervision, "interleaved", seeing_itself if rank else INTERLEAVED),
    "sequence averaged, not summed": lambda rank: patch.object(
        Engine, "backward", lambda self, loss: BACKWARD(self, loss / self.layout.sp)
    ),
    "text cut over the sequence group": lambda rank: patch.object(sequence, "cut_trunk", text_cut),
    "positions of the first rank on all": lambda rank: patch.object(
        sequence, "gathered_tokens", lambda n, layout, place: slice(0, n // layout.sp)
    ),
    "not averaged over replicas": lambda rank: patch.object(Engine, "backward", lambda self, loss: BACKWARD(self, loss * self.layout.dp)),
    "each replica its own gradient": lambda rank: patch.object(
        Engine, "backward", lambda self, loss: BACKWARD(self, loss * (1.02 if rank else 0.98))
    ),
    "ZeRO-3 partitions over another group": lambda rank: patch.multiple(DeepSpeedMesh, create=True, **TWO_GROUPS),
    "bias added by every rank": lambda rank: patch.object(layers, "leave", bias_on_every_rank),
    "norm counts whole parameters per rank": lambda rank: patch.multiple(
        DeepSpeedMesh, get_model_parallel_rank=lambda self: 0, get_tensor_model_parallel_rank=lambda self: 0
    ),
}
IS_PARTIAL = tensor.is_partial
TWO_GROUPS: dict[str, Any] = {
    "get_data_parallel_group": lambda self: self.mesh.tp_group,  # of one rank here, as the plain data-parallel group would be
    "get_sequence_data_parallel_group": lambda self: self.mesh.replica_group,
}


def planted(name: str, rank: int) -> Any:
    """The mistake as a context, made on the ranks where it would be made; no name, no mistake."""
    return MISTAKES[name](rank) if name else contextlib.nullcontext()
