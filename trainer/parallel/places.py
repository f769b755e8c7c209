"""Arithmetic of layouts: where a rank stands, which tokens it works on, and whether a stage divides at all. Pure; no torch.

Used by mesh.py, and before anything is started by the checks of a recipe.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from data_pipeline.errors import UserError
from trainer.planner import Layout


@dataclass(frozen=True)
class Place:
    """Coordinates of a rank: rank = (dp_rank * sp + sp_rank) * tp + tp_rank.

    tp is fastest, so that its traffic, the heaviest, stays between neighbours of a node; sp comes next, dp is slowest.
    """

    dp_rank: int
    sp_rank: int
    tp_rank: int


def place_of(rank: int, layout: Layout) -> Place:
    """Coordinates of a rank in a layout."""
    rest, tp_rank = divmod(rank, layout.tp)
    dp_rank, sp_rank = divmod(rest, layout.sp)
    return Place(dp_rank, sp_rank, tp_rank)


def token_shards(layout: Layout) -> int:
    """Into how many pieces a sequence is cut where channels are whole."""
    return layout.sp * (layout.tp if layout.megatron_sp else 1)


def own_tokens(length: int, layout: Layout, place: Place) -> slice:
    """The tokens that a rank embeds, normalises and gives to the head: a contiguous piece, by sp first, then by tp."""
    inner = layout.tp if layout.megatron_sp else 1
    return piece(length, token_shards(layout), place.sp_rank * inner + place.tp_rank % inner)


def gathered_tokens(length: int, layout: Layout, place: Place) -> slice:
    """The tokens that enter a rank's tensor-parallel layers: its own, and under Megatron-SP those of its tp group."""
    return piece(length, layout.sp, place.sp_rank)


def piece(length: int, pieces: int, index: int) -> slice:
    """The index-th of equal contiguous pieces."""
    assert length % pieces == 0, f"{length} tokens in {pieces} pieces: check_divisible refuses it before the start"
    size = length // pieces
    return slice(index * size, (index + 1) * size)


def sequence_lengths(supervision: str, masks: int, block: int, frames: int, tokens: int) -> list[int]:
    """Every length that a training sequence of T latent frames of S tokens can have (videomar.md, sections 2 and 9)."""
    if frames == 1:
        return [tokens if supervision == "one_frame" else masks * tokens]
    if supervision == "one_frame":
        return [kept * tokens for kept in range(2, frames + 1)]
    last = (frames - 1) % block or block  # frames of the last unit, which has no clean copy
    return [(masks * (frames - 1) + frames - last) * tokens]


def check_divisible(stage: str, layout: Layout, heads: int, lengths: Iterable[int]) -> None:
    """Raises UserError when heads or tokens cannot be dealt out evenly."""
    shards = layout.tp * layout.sp
    if heads % shards:
        raise UserError(
            f"parallel.tp={layout.tp} x parallel.sp={layout.sp} does not divide the model's {heads} heads: "
            "choose degrees whose product does"
        )
    parts, unit = token_shards(layout), math.gcd(*lengths)
    if unit % parts:
        raise UserError(
            f"stage {stage}: sequences of {', '.join(map(str, lengths))} tokens cannot all be cut into {parts} equal parts "
            f"(parallel.sp={layout.sp}, parallel.megatron_sp={str(layout.megatron_sp).lower()}): choose degrees that divide {unit}"
        )
