"""attend(): scaled dot-product attention under a visibility rule, one function per backend. Called by block.py."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from model.flash import attend_flash
from model.visibility import Visibility


def attend_chunked(q_BNLd: Tensor, k_BNLd: Tensor, v_BNLd: Tensor, visibility: Visibility) -> Tensor:
    """Part by part against just the keys it sees: no L x L mask exists, forbidden blocks cost nothing, any fused kernel serves."""
    queries = q_BNLd.split([part.tokens for part in visibility.parts], dim=2)
    chunks = zip(queries, seen_by_part(k_BNLd, visibility), seen_by_part(v_BNLd, visibility), strict=True)
    return torch.cat([F.scaled_dot_product_attention(q, k, v) for q, k, v in chunks], dim=2)


def seen_by_part(x_BNLd: Tensor, visibility: Visibility) -> Iterator[Tensor]:
    """The keys (or values) that each part sees, in the parts' order.

    A slice's gradient is a tensor of zeros as long as what it was cut from. So the sequence is split, whose gradient is one
    concatenation, and parts that see the same run of clean keys share one slice.
    """
    pieces = x_BNLd.split([part.tokens for part in visibility.parts], dim=2)
    clean = torch.cat([x_BNLd[:, :, :0], *(pieces[place] for place in visibility.clean)], dim=2)
    runs: dict[tuple[int, int], Tensor] = {}
    for clean_runs, masked in visibility.chunks:
        for start, stop in clean_runs:
            runs.setdefault((start, stop), clean[:, :, start:stop])
        seen = [*(runs[run] for run in clean_runs), *(pieces[place] for place in masked)]
        yield seen[0] if len(seen) == 1 else torch.cat(seen, dim=2)


def attend_dense(q_BNLd: Tensor, k_BNLd: Tensor, v_BNLd: Tensor, visibility: Visibility) -> Tensor:
    """The reference: one dense boolean mask over the whole sequence."""
    return F.scaled_dot_product_attention(q_BNLd, k_BNLd, v_BNLd, attn_mask=dense_mask(visibility, q_BNLd.device))


def attend_flex(q_BNLd: Tensor, k_BNLd: Tensor, v_BNLd: Tensor, visibility: Visibility) -> Tensor:
    """One compiled kernel that skips the blocks nobody sees. Compiled once per bucket and rule."""
    mask = block_mask(visibility, q_BNLd.device)
    attend_blocks = compiled_flex() if q_BNLd.device.type == "cuda" else flex_attention
    return attend_blocks(q_BNLd, k_BNLd, v_BNLd, block_mask=mask)


BACKENDS = {"sdpa-chunked": attend_chunked, "dense": attend_dense, "flex": attend_flex, "flash": attend_flash}


def attend(q_BNLd: Tensor, k_BNLd: Tensor, v_BNLd: Tensor, visibility: Visibility | None, backend: str = "auto") -> Tensor:
    """Attention output [B, N, Lq, head_dim]; with visibility None every query sees every key (a cached frame step of the sampler)."""
    if visibility is None:
        return F.scaled_dot_product_attention(q_BNLd, k_BNLd, v_BNLd)
    if backend == "auto":
        backend = "flex" if q_BNLd.device.type == "cuda" else "sdpa-chunked"
    return BACKENDS[backend](q_BNLd, k_BNLd, v_BNLd, visibility)


@lru_cache(maxsize=8)
def dense_mask(visibility: Visibility, device: torch.device) -> Tensor:
    """The rule as one [L, L] mask, kept for the buckets in use."""
    return visibility.dense(device)


@lru_cache(maxsize=64)
def block_mask(visibility: Visibility, device: torch.device) -> BlockMask:
    """The rule as flex_attention's BlockMask; tokens look their parts up in two small tables."""
    part, seen = visibility.part_of_token(device), visibility.part_mask(device)

    def token_sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return seen[part[query], part[key]]

    length = visibility.starts[-1]
    return create_block_mask(token_sees, None, None, length, length, device=device)


@cache
def compiled_flex() -> Any:
    """flex_attention compiled for fixed shapes: a new bucket is a new kernel, a new step is not."""
    return torch.compile(flex_attention, dynamic=False)


def recompiles() -> int:
    """How many block masks, and so compiled shapes, were made so far: one per bucket, rule and device, or something is wrong."""
    return block_mask.cache_info().misses
