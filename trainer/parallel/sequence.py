"""Sequences cut over ranks: which tokens a rank works on (Megatron-SP over tp, Ulysses over sp), and attention over all of them.

A sequence of clean and masked frames is cut contiguously, which its order (supervision.py) makes balanced. Applied by apply.py; knows no
visibility rule: attention sees the whole sequence, with the heads dealt out instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from deepspeed.sequence.layer import DistributedAttention
from torch import Tensor

from model.supervision import TrainingBatch
from model.videomar import VideoMAR
from trainer.parallel.mesh import Mesh
from trainer.parallel.places import gathered_tokens, own_tokens, token_shards

Attend = Callable[..., Tensor]


def apply_sequence_parallel(model: VideoMAR, mesh: Mesh) -> None:
    """Let the trunk see this rank's tokens only, and attention all of them. With one shard nothing is changed."""
    if token_shards(mesh.layout) > 1:
        model.trunk = partial(cut_trunk, model.trunk, mesh)  # type: ignore[method-assign]
    if mesh.layout.sp > 1:
        for block in model.blocks:
            core = partial(on_heads, block.attention.attend)
            block.attention.attend = partial(ulysses, DistributedAttention(core, mesh.sp_group, scatter_idx=2, gather_idx=1))


def cut_trunk(trunk: Attend, mesh: Mesh, latents_BLC: Tensor, masked_BL: Tensor, positions_L3: Tensor, *rest: Any, **named: Any) -> Tensor:
    """Hidden states [B, L, D] where only this rank's tokens are computed; the others are zero and no row of own_rows() reads them."""
    length = len(positions_L3)
    own, gathered = (tokens(length, mesh.layout, mesh.place) for tokens in (own_tokens, gathered_tokens))
    hidden_BLD = trunk(latents_BLC[:, own], masked_BL[:, own], positions_L3[gathered], *rest, **named)
    return F.pad(hidden_BLD, (0, 0, own.start, length - own.stop))


def own_rows(batch: TrainingBatch, mesh: Mesh) -> TrainingBatch:
    """The batch with the supervised rows of this rank's tokens only, which may be none: the head then runs on no row, in the graph all
    the same. Called before the batch goes to the device."""
    if token_shards(mesh.layout) == 1:
        return batch
    length = batch.masked.shape[1]
    own, token = own_tokens(length, mesh.layout, mesh.place), batch.rows % length
    mine = (token >= own.start) & (token < own.stop)
    times, noise = batch.head_draws
    return replace(batch, rows=batch.rows[mine], head_draws=(times[mine], noise[mine]))


@torch.compiler.disable
def ulysses(exchange: DistributedAttention, q_BNLd: Tensor, k_BNLd: Tensor, v_BNLd: Tensor, *rest: Any) -> Tensor:
    """DeepSpeed-Ulysses around attend(): tokens are exchanged for heads before it, and back after it.

    q, k, v [B, N, L / sp, head_dim] are of this rank's tokens; `rest` (the visibility, the backend) speaks of the whole sequence.
    """
    q, k, v = (x.transpose(1, 2) for x in (q_BNLd, k_BNLd, v_BNLd))
    return exchange(q, k, v, 0, None, *rest).transpose(1, 2)  # batch first; positions are in q and k already


def on_heads(attend: Attend, q_BLNd: Tensor, k_BLNd: Tensor, v_BLNd: Tensor, *rest: Any) -> Tensor:
    """attend() with the axes as DeepSpeed orders them."""
    q, k, v = (x.transpose(1, 2) for x in (q_BLNd, k_BLNd, v_BLNd))
    return attend(q, k, v, *rest).transpose(1, 2)
