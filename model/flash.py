"""Attention by torch's packed ("varlen") flash kernel, on CUDA: each part of a sequence is a short sequence of its own, beside just the
keys it sees. attention.py's backend `flash`; knows rules only as what a part sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from model.visibility import Visibility

Kernel = Callable[..., Any]  # torch 2.10 to 2.13 agree on the first seven arguments of varlen_attn; nothing else is used


@dataclass(frozen=True)
class Packing:
    """How the parts of all samples lie end to end: queries as they are, keys gathered part by part."""

    keys: Tensor  # places in the flattened [B * L] tokens, those that the first part sees first
    query_starts: Tensor  # [B * parts + 1] int32, where each part's queries begin, and their end
    key_starts: Tensor  # [B * parts + 1] int32, the same of the gathered keys
    longest_query: int
    longest_keys: int


@lru_cache(maxsize=64)
def packing(visibility: Visibility, samples: int, device: torch.device) -> Packing:
    """Made once for a bucket, a rule, a batch size and a device."""
    starts, parts = visibility.starts, range(len(visibility.parts))
    seen = [torch.cat([torch.arange(starts[key], starts[key + 1]) for key in visibility.seen(query)]) for query in parts]
    queries = [part.tokens for part in visibility.parts]
    one_sample, offsets = torch.cat(seen), starts[-1] * torch.arange(samples)
    return Packing(
        keys=(offsets[:, None] + one_sample).flatten().to(device),
        query_starts=running_sum(queries * samples, device),
        key_starts=running_sum([len(keys) for keys in seen] * samples, device),
        longest_query=max(queries),
        longest_keys=max(len(keys) for keys in seen),
    )


def running_sum(lengths: list[int], device: torch.device) -> Tensor:
    """int32 [len + 1], from 0."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def attend_packed(q_BNLd: Tensor, k_BNLd: Tensor, v_BNLd: Tensor, visibility: Visibility, kernel: Kernel) -> Tensor:
    """Attention [B, N, L, head_dim] by a kernel over packed sequences: (q, k, v [tokens, N, head_dim], starts and longest of both)."""
    packed = packing(visibility, len(q_BNLd), q_BNLd.device)
    # The norms may have left q and k in fp32 beside a bf16 v, and automatic casting does not know the kernel.
    q, k, v = (x.to(v_BNLd.dtype).transpose(1, 2).flatten(0, 1) for x in (q_BNLd, k_BNLd, v_BNLd))
    k, v = k.index_select(0, packed.keys), v.index_select(0, packed.keys)
    out = kernel(q, k, v, packed.query_starts, packed.key_starts, packed.longest_query, packed.longest_keys)
    return out.unflatten(0, (len(q_BNLd), -1)).transpose(1, 2)


def attend_flash(q_BNLd: Tensor, k_BNLd: Tensor, v_BNLd: Tensor, visibility: Visibility) -> Tensor:
    """attend_packed by the CUDA kernel. Raises ValueError where that cannot run: on another device, or on fp32."""
    if q_BNLd.device.type != "cuda":
        raise ValueError(f"attention backend flash runs on CUDA, not on {q_BNLd.device.type}: choose sdpa-chunked")
    if v_BNLd.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"attention backend flash takes bfloat16 or float16, not {v_BNLd.dtype}: choose flex or sdpa-chunked")
    from torch.nn.attention.varlen import varlen_attn  # here: it brings the compiler along, two seconds for whoever only samples

    return attend_packed(q_BNLd, k_BNLd, v_BNLd, visibility, varlen_attn)
