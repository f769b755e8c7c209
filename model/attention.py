"""attend(): scaled dot-product attention under a visibility rule, one function per backend. Called by block.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.visibility import Visibility


def attend_chunked(q_BNLd: Tensor, k_BNLd: Tensor, v_BNLd: Tensor, visibility: Visibility) -> Tensor:
    """Frame by frame against just the keys it sees: no L x L mask exists and forbidden blocks cost nothing."""
    outputs = []
    for queries, keys in visibility.chunks:
        k, v = (x[:, :, keys[0]] if len(keys) == 1 else torch.cat([x[:, :, part] for part in keys], dim=2) for x in (k_BNLd, v_BNLd))
        outputs.append(F.scaled_dot_product_attention(q_BNLd[:, :, queries], k, v))
    return torch.cat(outputs, dim=2)


def attend_dense(q_BNLd: Tensor, k_BNLd: Tensor, v_BNLd: Tensor, visibility: Visibility) -> Tensor:
    """The reference: one dense boolean mask over the whole sequence."""
    return F.scaled_dot_product_attention(q_BNLd, k_BNLd, v_BNLd, attn_mask=visibility.dense(q_BNLd.device))


BACKENDS = {"sdpa-chunked": attend_chunked, "dense": attend_dense}


def attend(q_BNLd: Tensor, k_BNLd: Tensor, v_BNLd: Tensor, visibility: Visibility | None, backend: str = "sdpa-chunked") -> Tensor:
    """Attention output [B, N, Lq, head_dim]; with visibility None every query sees every key (a cached frame step of the sampler)."""
    if visibility is None:
        return F.scaled_dot_product_attention(q_BNLd, k_BNLd, v_BNLd)
    return BACKENDS[backend](q_BNLd, k_BNLd, v_BNLd, visibility)
